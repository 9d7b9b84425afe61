"""A broker, a producer, a counting subscriber, the proxies between them, and all that can go wrong with them."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from counting import Counter, Ledger, wait_for
from proxy import FaultProxy

PRODUCER = Path(__file__).with_name("producer.py")
PATIENCE = 60.0
QUIET = 0.3  # seconds without a message
DISK = 32 << 20  # bytes of the tmpfs


class World:
    """Everything that the faults happen to.

    Args:
        folder: for files of the broker.
        disk: folder of the outbox; a small file system of its own, where we may mount one.
    """

    def __init__(self, folder: Path, disk: Path) -> None:
        self._folder, self._disk = folder, disk
        self.ledger = Ledger()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._broker: subprocess.Popen[bytes] | None = None
        self.start_broker()
        self.publishing, self.subscribing = FaultProxy(self._port), FaultProxy(self._port)
        self.counter = Counter(self.subscribing.port)
        wait_for(lambda: self.counter.connected, PATIENCE, "a subscription")
        self._producer: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.left: int | None = None  # undelivered, once the producer has finished
        self.start_producer()

    def start_broker(self) -> None:
        """Start mosquitto, which knows nothing."""
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
        config = self._folder / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"{user}listener {self._port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            # What a subscriber misses is kept whole, and what it is there for is sent at once.
            "max_queued_messages 0\nmax_inflight_messages 0\n"
        )
        with (self._folder / "mosquitto.log").open("ab") as log:
            self._broker = subprocess.Popen([program, "-c", config], stdout=log, stderr=log)
        wait_for(self._broker_listens, PATIENCE, "mosquitto's port")

    def _broker_listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
            return True
        return False

    def start_producer(self) -> None:
        """Start the producer where the last one was killed."""
        command = [
            sys.executable,
            PRODUCER,
            self.publishing.port,
            self._disk / "outbox.db",
            *self.ledger.firsts(),
        ]
        self._producer = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._producer,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._complain, args=(self._producer,), daemon=True).start()

    def _read(self, producer: subprocess.Popen[str]) -> None:
        assert producer.stdout is not None
        for line in producer.stdout:
            if line.startswith("left "):
                self.left = int(line.split()[1])
            elif line.endswith("\n"):
                self.ledger.note(line)

    def _complain(self, producer: subprocess.Popen[str]) -> None:
        assert producer.stderr is not None
        with (self._folder / "producer.log").open("a") as log:
            for line in producer.stderr:
                log.write(line)
                log.flush()

    def promised(self) -> int:
        """Verdicts that `put` has returned for."""
        return sum(len(numbers) for numbers in self.ledger.promised.values())

    def tell(self, line: str) -> None:
        """Give the producer a line."""
        assert self._producer is not None
        assert self._producer.stdin is not None
        self._producer.stdin.write(f"{line}\n")
        self._producer.stdin.flush()

    def await_promises(self) -> None:
        """Wait until the producer has put something more."""
        before = self.promised()
        wait_for(lambda: self.promised() > before, PATIENCE, "another verdict")

    # The faults: each happens, lasts, and is over when it returns.

    def broker_killed(self, random: Random) -> None:
        """Kill -9; it comes back empty.

        What a broker has acknowledged and not yet brought to a subscriber dies with it, whatever we do. So the
        publisher is cut off in the middle of its traffic first, and let in again when the subscriber, whose session
        the broker has forgotten, has subscribed anew.
        """
        self.publishing.set("refuse")
        self._await_quiet()
        assert self._broker is not None
        before = self.counter.subscriptions
        self._broker.kill()
        self._broker.wait()
        time.sleep(random.uniform(0, 0.3))
        self.start_broker()
        wait_for(lambda: self.counter.subscriptions > before, PATIENCE, "a new subscription")
        self.publishing.set("pass")

    def _await_quiet(self) -> None:
        """Wait until the subscriber has all that the broker has."""
        while True:
            wait_for(lambda: self.counter.connected, PATIENCE, "the subscriber")
            before = self.counter.count(), self.counter.subscriptions
            time.sleep(QUIET)
            if before == (self.counter.count(), self.counter.subscriptions) and self.counter.connected:
                return

    def broker_frozen(self, random: Random) -> None:
        """SIGSTOP, for up to longer than the keep-alive."""
        assert self._broker is not None
        self._broker.send_signal(signal.SIGSTOP)
        time.sleep(random.choice([random.uniform(0, 0.5), random.uniform(2, 5)]))
        self._broker.send_signal(signal.SIGCONT)

    def connection_cut(self, random: Random) -> None:
        """Reset in the middle of whatever is on its way."""
        self.publishing.cut()

    def connection_refused(self, random: Random) -> None:
        """Cut, and nothing listens for a while."""
        self.publishing.set("refuse")
        time.sleep(random.uniform(0.1, 1.5))
        self.publishing.set("pass")

    def connection_stalled(self, random: Random) -> None:
        """Half open: nothing comes through in either direction; then it goes on, or is cut."""
        self.publishing.set("stall")
        time.sleep(random.choice([random.uniform(0, 0.5), random.uniform(2, 5)]))
        if random.random() < 0.5:
            self.publishing.cut()
        self.publishing.set("pass")

    def connection_throttled(self, random: Random) -> None:
        """A few kB per second."""
        self.publishing.set("throttle", rate=random.uniform(2e3, 5e4))
        time.sleep(random.uniform(0.2, 1.5))
        self.publishing.set("pass")

    def byte_by_byte(self, random: Random) -> None:
        """Each byte a segment of its own."""
        self.publishing.set("drip")
        time.sleep(random.uniform(0.1, 0.8))
        self.publishing.set("pass")

    def process_killed(self, random: Random) -> None:
        """Kill -9 of the producer at a random moment, its start included."""
        if random.random() < 0.7:
            self.await_promises()
        time.sleep(random.uniform(0, 0.4))
        assert self._producer is not None
        assert self._reader is not None
        self._producer.kill()
        self._producer.wait()
        self._reader.join()
        self.ledger.died()
        self.start_producer()

    def disk_full(self, random: Random) -> None:
        """No byte is left for the outbox, which grows, since the broker is away as well."""
        self.publishing.set("refuse")
        ballast = self._disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: self.ledger.in_memory, 8, "a verdict that is in memory alone")
        time.sleep(random.uniform(0, 0.5))
        ballast.unlink()
        self.publishing.set("pass")

    def clock_set_back(self, random: Random) -> None:
        """By seconds to a year."""
        self.tell(f"clock {-(10 ** random.uniform(0, 7.5))}")

    def clock_set_forward(self, random: Random) -> None:
        """By seconds to a year, as when the time comes from the network."""
        self.tell(f"clock {10 ** random.uniform(0, 7.5)}")

    def subscriber_away(self, random: Random) -> None:
        """Its connection is reset and refused for a while; its session waits at the broker."""
        self.subscribing.set("refuse")
        time.sleep(random.uniform(0.05, 1.0))
        self.subscribing.set("pass")

    def finish(self, seconds: float) -> None:
        """Let everything through, have the rest delivered, and end the producer."""
        for proxy in (self.publishing, self.subscribing):
            proxy.set("pass")
        self.await_promises()
        self.tell(f"finish {seconds}")
        assert self._producer is not None
        self._producer.wait(seconds + 30)
        assert self._reader is not None
        self._reader.join()
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self.ledger.missing(self.counter), PATIENCE, "what was promised")

    def close(self) -> None:
        """End all that was started."""
        self.counter.close()
        for process in (self._producer, self._broker):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        for proxy in (self.publishing, self.subscribing):
            proxy.close()


Fault = Callable[[World, Random], None]
# How often each is drawn, of 1000 faults.
FAULTS: dict[Fault, int] = {
    World.process_killed: 200,
    World.connection_cut: 140,
    World.broker_killed: 80,
    World.broker_frozen: 80,
    World.connection_refused: 80,
    World.connection_stalled: 80,
    World.connection_throttled: 80,
    World.byte_by_byte: 80,
    World.clock_set_back: 50,
    World.clock_set_forward: 30,
    World.disk_full: 50,
    World.subscriber_away: 50,
}
