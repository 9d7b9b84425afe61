"""The durable queue between pipeline and broker: SQLite in WAL mode, many messages per commit.

`put` returns when its message is on disk; a message leaves only when the broker has acknowledged it. When the disk
is full or cannot be written, messages wait in memory instead, and detection goes on.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvau_edge.runtime.errors import OutboxError

log = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, phase TEXT NOT NULL, stored REAL NOT NULL,
  payload BLOB NOT NULL
)"""
_IN_MEMORY = 1000  # messages kept while the disk cannot be written


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that waits.

    Attributes:
        number: rises with each message; the order of delivery.
        topic: whole topic.
        stored: epoch seconds at which it was put.
        payload: bytes.
    """

    number: int
    topic: str
    stored: float
    payload: bytes


@dataclass(slots=True)
class _Waiting:
    """A message on its way to the disk."""

    topic: str
    phase: str
    stored: float
    payload: bytes
    done: threading.Event


class Outbox:
    """A queue of messages on disk.

    Args:
        path: of the SQLite file; made when it is not there. A file that is damaged is renamed and a new one begun.
        max_bytes: of payloads. Above it the oldest `update` goes first, then the oldest of the others.
        max_age_seconds: after which an `update` goes.

    Raises:
        OutboxError: its folder cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int = 64 << 20, max_age_seconds: float = 7 * 86400.0) -> None:
        self._path, self._max_bytes, self._max_age = path, max_bytes, max_age_seconds
        self._lock = threading.Lock()  # of the connection
        self._changed = threading.Condition()  # of what waits
        self._waiting: list[_Waiting] = []
        self._delivered: list[int] = []
        self._memory: deque[Entry] = deque()
        self._next = -1  # numbers of messages in memory are negative: they sort before and clash with none
        self._closing = False
        self.dropped = 0
        self._database = self._open()
        with self._lock:
            (self._bytes,) = self._database.execute(
                "SELECT COALESCE(SUM(LENGTH(payload)), 0) FROM outbox"
            ).fetchone()
        self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._writer.start()

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(self._path)
        except sqlite3.OperationalError as error:
            raise OutboxError(
                f"outbox {self._path} cannot be opened: {error}; is its folder writable?"
            ) from error
        except OSError as error:
            raise OutboxError(f"outbox {self._path} cannot be made: {error.strerror}") from error
        except sqlite3.DatabaseError as error:
            aside = self._path.with_name(f"{self._path.name}.corrupt-{int(time.time())}")
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            log.error(  # noqa: TRY400 (the message tells all)
                "outbox %s is damaged (%s): kept as %s, and a new one begun", self._path, error, aside.name
            )
            return _connect(self._path)

    def put(self, topic: str, phase: str, payload: bytes) -> None:
        """Store a message; returns when it is durable, or kept in memory because the disk cannot be written."""
        entry = _Waiting(topic, phase, time.time(), payload, threading.Event())
        with self._changed:
            self._waiting.append(entry)
            self._changed.notify_all()
        entry.done.wait()

    def delivered(self, number: int) -> None:
        """Forget a message that the broker has acknowledged."""
        with self._changed:
            if number < 0:
                self._memory = deque(entry for entry in self._memory if entry.number != number)
            else:
                self._delivered.append(number)
            self._changed.notify_all()

    def after(self, number: int, most: int) -> list[Entry]:
        """The oldest messages with a higher number, at most `most`; start with `FIRST`."""
        with self._changed:
            found = [entry for entry in self._memory if entry.number > number]
        found.sort(key=lambda entry: entry.number)
        if len(found) < most:
            query = "SELECT id, topic, stored, payload FROM outbox WHERE id > ? ORDER BY id LIMIT ?"
            with self._lock, contextlib.suppress(sqlite3.OperationalError):
                rows = self._database.execute(query, (max(number, 0), most - len(found))).fetchall()
                found += [Entry(*row) for row in rows]
        return found[:most]

    def wait(self, seconds: float) -> None:
        """Wait until something changes, or for so long."""
        with self._changed:
            self._changed.wait(seconds)

    def __len__(self) -> int:
        """Messages that wait."""
        with self._lock:
            (count,) = self._database.execute("SELECT COUNT(*) FROM outbox").fetchone()
        with self._changed:
            return int(count) - len(self._delivered) + len(self._memory)

    @property
    def durable(self) -> bool:
        """Whether everything that waits is on disk."""
        with self._changed:
            return not self._memory

    def close(self) -> None:
        """Write what waits and close the file; what was not delivered stays in it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join()
        with self._lock:
            self._database.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._delivered or self._closing)
                entries, self._waiting = self._waiting, []
                delivered, self._delivered = self._delivered, []
                if self._closing and not entries and not delivered:
                    return
            try:
                with self._lock, self._database:
                    self._forget(delivered)
                    self._store(entries)
            except sqlite3.Error as error:
                log.error("outbox %s cannot be written (%s): messages wait in memory", self._path, error)  # noqa: TRY400
                self._keep(entries)
            for entry in entries:
                entry.done.set()
            with self._changed:
                self._changed.notify_all()

    def _forget(self, delivered: Sequence[int]) -> None:
        for number in delivered:
            row = self._database.execute(
                "DELETE FROM outbox WHERE id = ? RETURNING LENGTH(payload)", (number,)
            ).fetchone()
            self._bytes -= row[0] if row else 0

    def _store(self, entries: Sequence[_Waiting]) -> None:
        self._database.executemany(
            "INSERT INTO outbox (topic, phase, stored, payload) VALUES (?, ?, ?, ?)",
            [(entry.topic, entry.phase, entry.stored, entry.payload) for entry in entries],
        )
        self._bytes += sum(len(entry.payload) for entry in entries)
        old = time.time() - self._max_age
        self._evict("phase = 'update' AND stored < ?", (old,), everything=True)
        while self._bytes > self._max_bytes:
            if not self._evict("phase = 'update'", ()) and not self._evict("1", ()):
                break

    def _evict(self, which: str, values: Sequence[object], *, everything: bool = False) -> bool:
        """Drop the oldest message of a kind, or all of it, and count; False when there was none."""
        limit = "" if everything else "LIMIT 1"
        rows = self._database.execute(
            f"DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE {which} ORDER BY id {limit}) "  # noqa: S608
            "RETURNING LENGTH(payload)",
            values,
        ).fetchall()
        self._bytes -= sum(size for (size,) in rows)
        self.dropped += len(rows)
        return bool(rows)

    def _keep(self, entries: Sequence[_Waiting]) -> None:
        with self._changed:
            base = -(1 << 62)
            for entry in entries:
                self._next += 1
                self._memory.append(Entry(base + self._next, entry.topic, entry.stored, entry.payload))
                if len(self._memory) > _IN_MEMORY:
                    self._memory.popleft()
                    self.dropped += 1


FIRST = -(1 << 63)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(_TABLE)
        sound = database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except BaseException:
        database.close()
        raise
    if not sound:
        database.close()
        raise sqlite3.DatabaseError("its pages do not fit together")
    return database
