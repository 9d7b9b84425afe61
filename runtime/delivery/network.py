"""The one thread that talks to the broker: it decides what is sent, writes, reads what comes back, and connects anew.

paho has a thread of its own for the connection (`loop_start`); to hand each message to it and each acknowledgement back
costs more than sending does, since Python runs one thread at a time. So this is paho's way for loops of others instead.
"""

import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt

from tvau_edge.runtime.delivery.connection import reconnect_delays

_CARE_SECONDS = 1.0  # between two looks whether a ping is due, or the answer to one
_GOODBYE_SECONDS = 1.0  # for the last of what is written to leave


class Network:
    """Keeps a paho client connected, on a thread of its own, which also calls all its callbacks.

    Args:
        client: not connected yet; knows where to by the time of `start`.
        fail: is told why there is no connection.
    """

    def __init__(self, client: mqtt.Client, fail: Callable[[Exception], None]) -> None:
        self._client, self._fail = client, fail
        self._poll = select.poll()
        self._inside, self._outside = socket.socketpair()  # to wake the thread
        self._inside.setblocking(False)
        self._outside.setblocking(False)
        self._poll.register(self._inside, select.POLLIN)
        self._woken = False
        self._prepare = client.on_socket_open
        client.on_socket_open = self._opened
        client.on_socket_close = lambda client, data, closed: self._poll.unregister(closed)
        client.on_socket_register_write = self._queued
        self._cared = 0.0  # when we last looked after pings
        self._delays = reconnect_delays()
        self._delay: float | None = None  # the last one
        self._due: float | None = 0.0  # when to connect; None: as soon as a delay has passed
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], float | None]) -> None:
        """Begin; the client may be connected already.

        Args:
            work: publishes what there is to publish. Returns the seconds after which it wants to be called again,
                should nothing happen until then; or None when all is done: then we say goodbye, and the thread ends.
        """
        if self._client.socket() is not None:
            self._due = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="mqtt", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the thread's end, so long at most: it may hang in connecting, and ends after that.

        Args:
            seconds: besides those in which it says goodbye.
        """
        if self._thread is None:
            self._close()
        else:
            self._thread.join(max(seconds, 0) + 2 * _GOODBYE_SECONDS)

    def wake(self) -> None:
        """Have `work` called soon; any thread may ask."""
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # closed: the thread has ended
                self._outside.send(b"w")

    def settle(self, barren: int) -> None:
        """Take note that the broker has accepted us, and draw the delays of the next outage.

        Args:
            barren: connections in a row in which the broker acknowledged nothing.
        """
        self._delays, self._delay = reconnect_delays(barren), None

    def _opened(self, client: mqtt.Client, data: Any, connection: Any) -> None:
        if self._prepare is not None:
            self._prepare(client, data, connection)
        self._poll.register(connection, select.POLLIN)

    def _queued(self, client: mqtt.Client, data: Any, connection: Any) -> None:
        """Take note that something is to be written; paho calls this on the thread that publishes or subscribes."""
        if threading.current_thread() is not self._thread:
            self.wake()

    def _run(self, work: Callable[[], float | None]) -> None:
        try:
            while (patience := work()) is not None:
                try:  # paho itself connects anew at some answers of the broker: either may fail
                    if self._client.socket() is None:
                        self._connect(patience)
                    else:
                        self._exchange(patience)
                except (OSError, ValueError) as error:
                    self._fail(error)
            self._part()
        finally:
            self._close()

    def _close(self) -> None:
        self._inside.close()
        self._outside.close()

    def _connect(self, patience: float) -> None:
        """Connect if it is time to, else wait for that or for news."""
        now = time.monotonic()
        if self._due is None:
            shortest, longest = self._delays
            self._delay = shortest if self._delay is None else min(self._delay * 2, longest)
            self._due = now + self._delay
        if now < self._due:
            self._wait(min(patience, self._due - now))
            return
        self._due = None
        self._client.reconnect()

    def _exchange(self, patience: float) -> None:
        """Write what is queued, wait for news, and read them."""
        client = self._client
        if client.want_write():
            client.loop_write()
        connection: Any = client.socket()
        if connection is None:
            return
        blocked = client.want_write()
        if blocked:
            self._poll.modify(connection, select.POLLIN | select.POLLOUT)
        # What TLS has decrypted already, poll does not know of.
        if getattr(connection, "pending", int)() or self._wait(min(patience, _CARE_SECONDS)):
            client.loop_read()
        connection = client.socket()
        if blocked and connection is not None:
            self._poll.modify(connection, select.POLLIN)
        now = time.monotonic()
        if now - self._cared >= _CARE_SECONDS:
            self._cared = now
            client.loop_misc()

    def _wait(self, seconds: float) -> bool:
        """Wait for news; whether the connection has some to be read."""
        readable = False
        for descriptor, events in self._poll.poll(math.ceil(seconds * 1e3)):
            if descriptor == self._inside.fileno():
                self._inside.recv(64)
                self._woken = False
            elif events != select.POLLOUT:  # to read what has failed tells so
                readable = True
        return readable

    def _part(self) -> None:
        """Say goodbye, and wait a little until it is written."""
        self._client.disconnect()
        end = time.monotonic() + _GOODBYE_SECONDS
        while self._client.socket() is not None and (left := end - time.monotonic()) > 0:
            self._exchange(left)
        connection: Any = self._client.socket()
        if connection is not None:
            connection.close()
