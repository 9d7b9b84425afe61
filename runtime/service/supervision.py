"""Under systemd: tells it when we are ready, alive, reloading or stopping (sd_notify(3)), and nothing anywhere else."""

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


class Notifier:
    """Speaks the protocol of sd_notify(3) to whoever started us; silent where nobody listens.

    Args:
        address: of systemd's socket; "@" at its start stands for the abstract name space. None: nobody listens.
        watchdog_seconds: within which we must show that we are alive; None: nobody waits for it.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self.watchdog_seconds = watchdog_seconds if address else None
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @classmethod
    def from_environment(cls) -> "Notifier":
        """As systemd says in NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; processes that we start hear none of it."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        wanted, process = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", None)
        ours = process is None or process == str(os.getpid())
        seconds = int(wanted) / 1e6 if wanted.isdigit() and int(wanted) > 0 and ours else None
        return cls(address, seconds)

    def ready(self, status: str = "") -> None:
        """We do our work from now on."""
        self._send("READY=1", f"STATUS={status}")

    def alive(self) -> None:
        """Put the watchdog off."""
        self._send("WATCHDOG=1")

    def allow(self, seconds: float) -> None:
        """Have the watchdog wait for so long from now on, as opening a large model needs it."""
        if self.watchdog_seconds:
            self._send(f"WATCHDOG_USEC={int(seconds * 1e6)}", "WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; ends with `ready`."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We are on our way out."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if self._socket is None or self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            self._socket.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
        except OSError as error:
            log.debug("systemd cannot be told: %s", error)

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
