"""The language model in a process of its own: llama.cpp is C++, and its crash must not take detection down.

`LanguageProcess` starts `python -m tvau_edge.runtime.language.process` and talks to it over a pair of sockets, in
packed messages. A process that ends, whatever killed it, is started anew with the next request.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Literal

from tvau_edge.runtime.errors import LanguageModelError, TvauError
from tvau_edge.runtime.language.messages import Reply, pack, unpack
from tvau_edge.runtime.language.server import LanguageServer, LanguageSettings

log = logging.getLogger(__name__)

_LOADING = 600.0  # seconds that a large model may take on a slow disk
_PAUSES = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds before the restart after so many crashes in a row

State = Literal["loading", "ready", "answering", "gone", "closed"]


class LanguageProcess:
    """The parent's side; one request at a time, from any thread.

    Args:
        settings: what the process loads.

    Raises:
        LanguageModelError: it cannot load the model; says what the process said.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._crashes = 0  # in a row
        self._crashed = 0.0
        self._closing = threading.Event()
        self.restarts = 0
        self.state: State = "loading"
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        process = self._process
        return process.pid if process is not None else None

    def __enter__(self) -> "LanguageProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def exchange(self, request: bytes, seconds: float) -> bytes:
        """Send a packed request and wait for its packed reply; see `Language`.

        Raises:
            LanguageModelError: the process ended meanwhile, did not answer in time and was ended, or does not start.
                The next request finds a new one.
        """
        with self._lock:
            if self._closing.is_set():
                raise LanguageModelError("the language model is closed")
            if self._process is not None and self._process.poll() is not None:
                self._bury("it ended while it was idle")
            if self._pipe is None:
                self._restart()
            pipe = self._pipe
            assert pipe is not None  # just started
            self.state = "answering"
            try:
                pipe.send_bytes(request)
                if not pipe.poll(seconds):
                    if self._process is not None:
                        self._process.kill()
                    self._bury(f"no answer in {seconds:g} s")
                    raise LanguageModelError(
                        f"the language model did not answer in {seconds:g} s; it is started anew"
                    )
                reply = pipe.recv_bytes()
            except (EOFError, OSError) as error:
                how = self._bury("it ended during a request")
                raise LanguageModelError(
                    f"the language model's process ended ({how}); it is started anew"
                ) from error
            self._crashes = 0
            self.state = "ready"
            return reply

    def close(self) -> None:
        """End the process, also in the middle of a request."""
        self._closing.set()
        process = self._process
        if process is not None and self._lock.locked():
            process.kill()  # who waits for it is told that it is gone
        with self._lock:
            self._end()
            self.state = "closed"

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            settings = {key: str(value) if isinstance(value, Path) else value for key, value in self._facts()}
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), json.dumps(settings)]
            # A group of its own: Ctrl-C at the terminal is for us, and we end it when our work is done.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._pipe = pipe = Connection(ours.detach())
        try:
            if not pipe.poll(_LOADING):
                raise LanguageModelError(f"the language model did not load in {_LOADING:g} s")
            reply, _ = unpack(pipe.recv_bytes(), Reply)
        except (EOFError, OSError) as error:
            how = self._end()
            raise LanguageModelError(f"the language model's process ended while it loaded ({how})") from error
        except TvauError:
            self._end()
            raise
        if not reply.ok:
            self._end()
            raise LanguageModelError(reply.error or "the language model cannot be loaded")
        self.state = "ready"

    def _facts(self) -> list[tuple[str, object]]:
        return list(asdict(self._settings).items())

    def _restart(self) -> None:
        wait = self._crashed + _PAUSES[min(self._crashes, len(_PAUSES)) - 1] - time.monotonic()
        if wait > 0:
            self._closing.wait(wait)
        if self._closing.is_set():
            raise LanguageModelError("the language model is closed")
        self.state = "loading"
        self.restarts += 1
        try:
            self._start()
        except LanguageModelError:
            self._bury("it does not start")
            raise
        log.warning("the language model is there again, in process %s", self.pid)

    def _bury(self, what: str) -> str:
        """Take note of a process that is gone or must go; returns how it ended."""
        self._crashes += 1
        self._crashed = time.monotonic()
        how = self._end()
        self.state = "gone"
        log.error("the language model's process failed: %s (%s); detection goes on", what, how)
        return how

    def _end(self) -> str:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        process, self._process = self._process, None
        if process is None:
            return "not running"
        try:
            status = process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return signal.Signals(-status).name if status < 0 else f"status {status}"


def serve(descriptor: int, settings: LanguageSettings) -> None:
    """The process's side: load the model, say so, and answer until the other side closes."""
    pipe = Connection(descriptor)
    try:
        server = LanguageServer(settings)
    except TvauError as error:
        pipe.send_bytes(pack(Reply(ok=False, error=str(error))))
        return
    with server:
        pipe.send_bytes(pack(Reply(ok=True)))
        while True:
            try:
                request = pipe.recv_bytes()
                pipe.send_bytes(server.exchange(request))
            except (EOFError, OSError):
                return


def main() -> None:
    """Run as `python -m tvau_edge.runtime.language.process DESCRIPTOR SETTINGS`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    os.nice(5)  # detection comes first
    facts = json.loads(sys.argv[2])
    for key in ("bundle", "calibration"):
        facts[key] = Path(facts[key]) if facts[key] is not None else None
    serve(int(sys.argv[1]), LanguageSettings(**facts))


if __name__ == "__main__":
    main()
