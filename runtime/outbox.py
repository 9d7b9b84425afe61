"""The durable queue between pipeline and broker: SQLite in WAL mode, many messages per commit.

`put` returns when its message is on disk; a message leaves only when the broker has acknowledged it. While the disk
is full or cannot be written, messages wait in memory instead, and detection goes on; they move to the disk, in their
order, once it takes them.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvau_edge.runtime.errors import OutboxError

log = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, phase TEXT NOT NULL, stored REAL NOT NULL,
  payload BLOB NOT NULL
)"""
_COLUMNS = ["id", "topic", "phase", "stored", "payload"]
_IN_MEMORY = 1000  # messages kept while the disk cannot be written
_RETRY_SECONDS = 1.0  # between two tries to write a disk that refuses
FIRST = 0  # below every message's number


@dataclass(frozen=True, slots=True)
class Entry:
    """A message that waits.

    Attributes:
        number: rises with each message; the order of delivery.
        topic: whole topic.
        phase: start, update or end.
        stored: epoch seconds at which it was put.
        payload: bytes.
    """

    number: int
    topic: str
    phase: str
    stored: float
    payload: bytes


@dataclass(slots=True)
class _Waiting:
    """A message on its way to the disk."""

    topic: str
    phase: str
    stored: float
    payload: bytes
    done: threading.Event = field(default_factory=threading.Event)


class Outbox:
    """A queue of messages on disk.

    Args:
        path: of the SQLite file; made when it is not there. A file that is damaged is renamed and a new one begun.
        max_bytes: of payloads. Above it the oldest `update` goes first, then the oldest of the others.
        max_age_seconds: after which an `update` goes.

    Raises:
        OutboxError: its folder cannot be written, or the file is in use or of another program.
    """

    def __init__(self, path: Path, max_bytes: int = 64 << 20, max_age_seconds: float = 7 * 86400.0) -> None:
        self._path, self._max_bytes, self._max_age = path, max_bytes, max_age_seconds
        self._lock = threading.Lock()  # of the database; taken before `_changed` where both are
        self._changed = threading.Condition()  # of all below
        self._waiting: list[_Waiting] = []
        self._memory: list[Entry] = []
        self._delivered: set[int] = set()  # acknowledged, and not yet taken from the disk
        self._failing = self._closing = False
        self.dropped = 0
        self._database = self._open()
        self._bytes, self._last = self._database.execute(
            "SELECT (SELECT COALESCE(SUM(LENGTH(payload)), 0) FROM outbox), "
            "COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0)"
        ).fetchone()
        self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._writer.start()

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return _connect(self._path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return _connect(self._path)
        except sqlite3.Error as error:
            advice = (
                "another tvau uses it" if "locked" in str(error) else "is its folder writable, with room?"
            )
            raise OutboxError(f"outbox {self._path} cannot be opened: {error}; {advice}") from error
        except OSError as error:
            raise OutboxError(f"outbox {self._path} cannot be made: {error.strerror}") from error

    def _set_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{self._path.name}.corrupt-{int(time.time())}")
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        log.error("outbox %s is damaged (%s): kept as %s, and a new one begun", self._path, error, aside.name)

    def put(self, topic: str, phase: str, payload: bytes) -> None:
        """Store a message; returns when it is durable, or kept in memory because the disk cannot be written.

        Raises:
            OutboxError: the outbox is closed.
        """
        entry = _Waiting(topic, phase, time.time(), payload)
        with self._changed:
            if self._closing:
                raise OutboxError(f"outbox {self._path} is closed")
            self._waiting.append(entry)
            self._changed.notify_all()
        entry.done.wait()

    def delivered(self, number: int) -> None:
        """Forget a message that the broker has acknowledged."""
        with self._changed:
            self._memory = [entry for entry in self._memory if entry.number != number]
            self._delivered.add(number)
            self._changed.notify_all()

    def after(self, number: int, most: int) -> list[Entry]:
        """The oldest messages with a higher number, at most `most`; start with `FIRST`."""
        with self._lock:
            with self._changed:
                memory, delivered = self._memory, json.dumps(list(self._delivered))
            try:
                rows = self._database.execute(
                    "SELECT id, topic, phase, stored, payload FROM outbox WHERE id > ? "
                    "AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
                    (number, delivered, most),
                ).fetchall()
            except sqlite3.Error:
                rows = []  # the writer tells of a disk that fails
        # What is in memory was put after all that is on disk.
        found = [Entry(*row) for row in rows] + [entry for entry in memory if entry.number > number]
        return found[:most]

    def wait(self, seconds: float) -> None:
        """Wait until something changes, or for so long."""
        with self._changed:
            self._changed.wait(seconds)

    def __len__(self) -> int:
        """Messages that wait."""
        with self._lock:
            with self._changed:
                memory, delivered = len(self._memory), json.dumps(list(self._delivered))
            try:
                (count,) = self._database.execute(
                    "SELECT COUNT(*) FROM outbox WHERE id NOT IN (SELECT value FROM json_each(?))",
                    (delivered,),
                ).fetchone()
            except sqlite3.Error:
                count = 0  # the writer tells of a disk that fails
        return int(count) + memory

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
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._waiting or self._closing or (self._delivered and not self._failing),
                    _RETRY_SECONDS if self._failing else None,
                )
                waiting, self._waiting = self._waiting, []
                closing = self._closing
            entries = [
                Entry(self._last + k, entry.topic, entry.phase, entry.stored, entry.payload)
                for k, entry in enumerate(waiting, 1)
            ]
            self._last += len(entries)
            self._commit(entries)
            for entry in waiting:
                entry.done.set()
            with self._changed:
                self._changed.notify_all()
        if self._memory:
            log.error("outbox %s: %d messages are lost with the memory", self._path, len(self._memory))

    def _commit(self, entries: list[Entry]) -> None:
        """Bring the disk up to date; when it refuses, keep the entries in memory."""
        with self._lock:
            with self._changed:
                memory, delivered = self._memory, list(self._delivered)
            size, dropped = self._bytes, self.dropped
            try:
                with self._database:
                    self._store([*memory, *entries])
                    self._forget(delivered)
                    self._shrink()
            except sqlite3.Error as error:
                self._bytes, self.dropped = size, dropped
                self._keep(entries)
                if not self._failing:
                    log.error(  # noqa: TRY400 (the message tells all)
                        "outbox %s cannot be written (%s): messages wait in memory", self._path, error
                    )
                self._failing = True
                return
            with self._changed:
                stored = {entry.number for entry in memory}
                self._memory = [entry for entry in self._memory if entry.number not in stored]
                self._delivered.difference_update(delivered)
            if self._failing:
                log.warning("outbox %s can be written again", self._path)
            self._failing = False

    def _store(self, entries: Sequence[Entry]) -> None:
        self._database.executemany(
            "INSERT INTO outbox (id, topic, phase, stored, payload) VALUES (?, ?, ?, ?, ?)",
            [(entry.number, entry.topic, entry.phase, entry.stored, entry.payload) for entry in entries],
        )
        self._bytes += sum(len(entry.payload) for entry in entries)

    def _forget(self, delivered: Sequence[int]) -> None:
        for number in delivered:
            self._delete("id = ?", (number,))

    def _shrink(self) -> None:
        self.dropped += self._delete("phase = 'update' AND stored < ?", (time.time() - self._max_age,))
        while self._bytes > self._max_bytes:
            gone = self._delete(_OLDEST.format("WHERE phase = 'update'")) or self._delete(_OLDEST.format(""))
            self.dropped += gone
            if not gone:
                break

    def _delete(self, which: str, values: Sequence[object] = ()) -> int:
        """Delete messages and return how many."""
        rows = self._database.execute(
            f"DELETE FROM outbox WHERE {which} RETURNING LENGTH(payload)",  # noqa: S608 (no text of others)
            values,
        ).fetchall()
        self._bytes -= sum(size for (size,) in rows)
        return len(rows)

    def _keep(self, entries: Sequence[Entry]) -> None:
        with self._changed:
            memory = [*self._memory, *entries]
            while len(memory) > _IN_MEMORY:
                update = next((k for k, entry in enumerate(memory) if entry.phase == "update"), 0)
                del memory[update]
                self.dropped += 1
            self._memory = memory


_OLDEST = "id = (SELECT id FROM outbox {} ORDER BY id LIMIT 1)"


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=1)
    try:
        # Of one process alone: two would number their messages alike and deliver each other's.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(_TABLE)
        _check(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    if [row[1] for row in database.execute("PRAGMA table_info(outbox)")] != _COLUMNS:
        raise OutboxError(f"outbox {path} is a database of another program; choose another outbox.path")
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("its pages do not fit together")
