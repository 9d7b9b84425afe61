"""A TCP proxy that misbehaves on demand: cuts, refuses, stalls, throttles, passes single bytes."""

import contextlib
import socket
import struct
import threading
import time
from typing import Literal

Mode = Literal["pass", "refuse", "stall", "throttle", "drip"]


class FaultProxy:
    """Between clients and one server on the loopback interface.

    Args:
        target: the server's port.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._mode: Mode = "pass"
        self._rate = 4096.0  # bytes per second when throttled
        self._changed = threading.Condition()
        self._ends: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: Mode, rate: float = 4096.0) -> None:
        """Behave so from now on; "refuse" cuts what is connected as well."""
        with self._changed:
            self._mode, self._rate = mode, rate
            self._changed.notify_all()
        if mode == "refuse":
            self.cut()

    def cut(self) -> None:
        """Reset every connection, both ends."""
        with self._changed:
            ends, self._ends = self._ends, set()
        for end in ends:
            _reset(end)

    def close(self) -> None:
        """Listen no more."""
        self.set("refuse")
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._mode == "refuse":
                    raise ConnectionRefusedError
                theirs = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                _reset(ours)
                continue
            for end in (ours, theirs):
                end.settimeout(None)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._ends |= {ours, theirs}
            for source, sink in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                self._pass_on(sink, data)
        # This direction has ended; what is on its way in the other one still arrives.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RD)

    def _pass_on(self, sink: socket.socket, data: bytes) -> None:
        while data:
            with self._changed:
                self._changed.wait_for(lambda: self._mode != "stall")
                mode, rate = self._mode, self._rate
            if mode == "drip":
                piece, data = data[:1], data[1:]
                sink.sendall(piece)
            elif mode == "throttle":
                piece, data = data[:256], data[256:]
                sink.sendall(piece)
                time.sleep(len(piece) / rate)
            else:
                sink.sendall(data)
                return


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
