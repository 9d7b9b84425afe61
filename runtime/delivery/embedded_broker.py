"""An MQTT broker inside this process, for the demo and a first try (extra: broker). Not for production."""

import asyncio
import contextlib
import logging
import socket
import threading
from types import TracebackType

from tvau_edge.runtime.errors import BrokerError
from tvau_edge.runtime.extras import load


class EmbeddedBroker:
    """amqtt on a free port of the loopback interface, on a thread of its own; it speaks MQTT 3.1.1.

    Raises:
        MissingExtraError: the extra `broker` is not installed.
        BrokerError: it does not start.
    """

    def __init__(self) -> None:
        self._amqtt = load("amqtt.broker", "the embedded broker", "broker")
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="embedded broker", daemon=True)

    def __enter__(self) -> "EmbeddedBroker":
        self._thread.start()
        self._ready.wait(20)
        if self._error is not None or not self._ready.is_set():
            raise BrokerError(
                f"the embedded broker does not start: {self._error or 'no sign of life in 20 s'}"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # handed to the thread that waits for us
            self._error = error
            self._ready.set()
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        broker = self._amqtt.Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await broker.start()
        self._ready.set()
        await self._stop.wait()
        await broker.shutdown()
