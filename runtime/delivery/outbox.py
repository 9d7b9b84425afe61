"""The durable queue between pipeline and broker: SQLite in WAL mode, many messages per commit.

`put` returns when its message is on disk; a message leaves only when the broker has acknowledged it. While the disk
is full, read-only or broken, messages wait in memory instead, and detection goes on; they move to the disk, in their
order, once it takes them.

Threads that put at the same time share a commit: the first writes for all that wait. What has been acknowledged is
deleted along with the next messages, or soon after; one that a crash brings back is a copy with the same id.
"""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from tvau_edge.runtime.delivery.outbox_file import (
    SELECT,
    DiskRefusesError,
    begin_anew,
    delete,
    delete_on_full_disk,
    insert,
    keep_reserve,
    open_file,
)
from tvau_edge.runtime.errors import OutboxError

log = logging.getLogger(__name__)

_IN_MEMORY = 1000  # messages kept while the disk cannot be written
_FRESH = 2000  # newest messages that are in memory as well, so that the sender need not read them back
_TIDY_SECONDS = 0.25  # until what was acknowledged is deleted, if no `put` does it before
_AGE_SECONDS = 1.0  # between two looks for what is too old
_RETRY_SECONDS = 1.0  # between two tries to write a disk that refuses
_STEP_SECONDS = 2.0  # by which the clock must leave its steady course to count as set
FIRST = 0  # below every message's number

_AFTER = "WHERE id > ? AND id NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?"
_OLDEST_UPDATE = "id = (SELECT id FROM outbox WHERE phase = 'update' ORDER BY stored, id LIMIT 1)"
_OLDEST = "id = (SELECT id FROM outbox ORDER BY id LIMIT 1)"


class Entry(NamedTuple):
    """A message that waits.

    Attributes:
        number: rises with each message; the order of delivery.
        topic: whole topic.
        phase: start, update or end.
        stored: epoch seconds at which it was put, by the clock as it is set now.
        payload: bytes.
    """

    number: int
    topic: str
    phase: str
    stored: float
    payload: bytes


class _Waiting:
    """A message whose `put` has not returned.

    Attributes:
        leads: its thread writes, for itself and all that wait by then.
        done: it is written.
        turn: released when one of these comes true; a lock for each, so that no thread is woken for nothing.
    """

    __slots__ = ("done", "leads", "payload", "phase", "stored", "topic", "turn")

    def __init__(self, topic: str, phase: str, payload: bytes) -> None:
        self.topic, self.phase, self.payload = topic, phase, payload
        self.stored = time.time()
        self.leads = self.done = False
        self.turn = threading.Lock()
        self.turn.acquire()


class Outbox:
    """A queue of messages on disk.

    Args:
        path: of the SQLite file; made when it is not there. A file that is damaged is renamed, and a new one begun
            with what can be read of it. On a disk that is full or read-only we begin in memory.
        max_bytes: of payloads. Above it the oldest `update` goes first, then the oldest of the others.
        max_age_seconds: after which an `update` goes.

    Raises:
        OutboxError: its folder cannot be written, or the file is in use or of another program.
    """

    def __init__(self, path: Path, max_bytes: int = 64 << 20, max_age_seconds: float = 7 * 86400.0) -> None:
        self._path, self._max_bytes, self._max_age = path, max_bytes, max_age_seconds
        self._disk = threading.Lock()  # held while the database is used; taken before `_guard` where both are
        self._guard = threading.Lock()  # of all that follows; never held for long
        self._led = False  # one of the threads that put writes, or is about to
        self._waiting: list[_Waiting] = []
        self._alive: dict[int, int] = {}  # neither acknowledged nor dropped: number -> bytes
        self._bytes = 0  # their sum
        self._memory: dict[int, Entry] = {}  # those that are not on disk
        self._fresh: dict[int, Entry] = {}  # copies of the newest
        self._fresh_from = FIRST + 1  # all from this number on that is alive is in `_fresh` or `_memory`
        self._delivered: set[int] = set()  # acknowledged, and perhaps still on disk
        self._failing = self._closing = False
        self._listener: Callable[[], None] | None = None
        self._offset = time.time() - time.monotonic()  # of the clock
        self._aged = -_AGE_SECONDS  # when we last looked for what is too old
        self.dropped = 0
        self.generation = 0  # rises when older messages than those read last have turned up
        self._woken, self._closed = threading.Event(), threading.Event()
        self._database: sqlite3.Connection | None = None
        self._last = 0
        self._open()
        if self._database is None:
            self._last = time.time_ns() // 1000  # above all numbers of a file that we can open only later
        self._own = self._last + 1  # the first message of this process
        self._tidier = threading.Thread(target=self._tidy, name="outbox", daemon=True)
        self._tidier.start()

    def _open(self) -> None:
        """Open the file, or take note that the disk refuses."""
        try:
            self._adopt(open_file(self._path))
        except DiskRefusesError as error:
            self._tell_failure(str(error))

    def _adopt(self, database: sqlite3.Connection) -> None:
        """Use this database; messages that we know and it does not hold go to memory."""
        known = dict(database.execute("SELECT id, LENGTH(payload) FROM outbox"))
        row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        with self._guard:
            self._last = max(self._last, row[0] if row else FIRST, *known)
            for number in self._alive.keys() - known.keys() - self._memory.keys():
                if number in self._fresh:
                    self._memory[number] = self._fresh[number]
                else:
                    log.error("outbox %s: message %d is lost", self._path, number)
            self._alive = known | {number: len(entry.payload) for number, entry in self._memory.items()}
            self._bytes = sum(self._alive.values())
            self._fresh, self._fresh_from = {}, self._last + 1
            self.generation += 1
        self._database = database
        keep_reserve(self._path)

    def put(self, topic: str, phase: str, payload: bytes) -> None:
        """Store a message; returns when it is durable, or kept in memory because the disk cannot be written.

        Raises:
            OutboxError: the outbox is closed.
        """
        entry = _Waiting(topic, phase, payload)
        with self._guard:
            if self._closing:
                raise OutboxError(f"outbox {self._path} is closed")
            self._waiting.append(entry)
            if not self._led:
                self._led = entry.leads = True
        if not entry.leads:
            entry.turn.acquire()
        if entry.leads:  # else another thread has written it along
            self._lead(entry)

    def _lead(self, entry: _Waiting) -> None:
        """Write all that wait, then leave the lead to a thread that came meanwhile."""
        try:
            with self._disk:
                if not entry.done:
                    self._commit()
        finally:
            with self._guard:
                heir = next((other for other in self._waiting if other is not entry), None)
                if heir is not None:
                    heir.leads = True
                self._led = heir is not None
            if heir is not None:
                heir.turn.release()
        if self._listener is not None:
            self._listener()

    def delivered(self, *numbers: int) -> None:
        """Forget messages that the broker has acknowledged."""
        with self._guard:
            for number in numbers:
                self._bytes -= self._alive.pop(number, 0)
                self._fresh.pop(number, None)
                if self._memory.pop(number, None) is None:
                    self._delivered.add(number)
        self._woken.set()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have `listener` called after each message that was put; it must not wait."""
        self._listener = listener

    def after(self, number: int, most: int) -> list[Entry]:
        """The oldest messages with a higher number, at most `most`; start with `FIRST`."""
        with self._guard:
            if number + 1 >= self._fresh_from:
                return self._newest(number, most)
        with self._disk:
            with self._guard:
                delivered = json.dumps(list(self._delivered))
                # What is in memory was put after all that is on disk, or is read from there by its number.
                memory = [entry for entry in self._memory.values() if entry.number > number]
            rows = []
            if self._database is not None:
                try:
                    rows = self._database.execute(
                        f"{SELECT} {_AFTER}",
                        (number, delivered, most),
                    ).fetchall()
                except sqlite3.Error as error:
                    self._mend(error)
        found = sorted([*(Entry(*row) for row in rows), *memory], key=lambda entry: entry.number)
        return found[:most]

    def _newest(self, number: int, most: int) -> list[Entry]:
        """As `after`, from what is in memory as well."""
        both = chain(self._fresh.values(), self._memory.values())  # in the order of their numbers
        if self._last - number < len(self._fresh) + len(self._memory):  # few are newer: look for each
            wanted = range(number + 1, self._last + 1)
            each = (self._fresh.get(candidate) or self._memory.get(candidate) for candidate in wanted)
            both = chain(entry for entry in each if entry is not None)
        return list(islice((entry for entry in both if entry.number > number), most))

    def __len__(self) -> int:
        """Messages that wait."""
        with self._guard:
            return len(self._alive)

    def __contains__(self, number: int) -> bool:
        """Whether a message still waits."""
        return number in self._alive

    @property
    def bytes(self) -> int:
        """Of the payloads that wait."""
        with self._guard:
            return self._bytes

    @property
    def durable(self) -> bool:
        """Whether everything that waits is on disk."""
        with self._guard:
            return not self._memory

    def close(self) -> None:
        """Write what waits and close the file; what was not delivered stays in it."""
        with self._guard:
            self._closing = True
        self._closed.set()
        self._woken.set()
        self._tidier.join()
        with self._disk:
            self._commit()
            if self._database is not None:
                self._database.close()
                self._database = None
        if self._memory:
            log.error("outbox %s: %d messages are lost with the memory", self._path, len(self._memory))

    def _tidy(self) -> None:
        """Delete what was acknowledged and retry a disk that refused, on a thread of its own."""
        while True:
            self._woken.wait(_RETRY_SECONDS if self._failing else None)
            self._closed.wait(_TIDY_SECONDS)  # more will be acknowledged
            if self._closing:
                return
            self._woken.clear()
            with self._disk:
                self._commit()
            if self._listener is not None:
                self._listener()

    def _commit(self) -> None:
        """Bring the disk up to date, and keep in memory what it refuses; the caller holds `_disk`."""
        if self._database is None and not self._closing:
            self._open()
        self._follow_clock()
        with self._guard:
            waiting, self._waiting = self._waiting, []
            memory, delivered = list(self._memory.values()), list(self._delivered)
            size = self._bytes + sum(len(entry.payload) for entry in waiting)
        entries = [
            Entry(number, entry.topic, entry.phase, entry.stored, entry.payload)
            for number, entry in enumerate(waiting, self._last + 1)
        ]
        self._last += len(entries)
        gone: list[int] | None = None
        try:
            if self._database is not None:
                gone = self._write(self._database, [*memory, *entries], delivered, size)
        except sqlite3.Error as error:
            self._mend(error)
            if delivered and self._database is not None:
                gone_for_good = delete_on_full_disk(self._database, self._path, delivered)
                with self._guard:
                    self._delivered.difference_update(gone_for_good)
        with self._guard:
            for entry in entries:
                self._alive[entry.number] = len(entry.payload)
                self._bytes += len(entry.payload)
            if gone is None:
                self._keep(entries)
            else:
                self._settle(memory, entries, delivered, gone)
            for each in waiting:
                each.done = True
                if not each.leads:
                    each.turn.release()

    def _write(
        self, database: sqlite3.Connection, entries: list[Entry], delivered: list[int], size: int
    ) -> list[int]:
        """Store, delete and shrink in one transaction; returns the numbers of what was dropped."""
        gone: list[int] = []

        def drop(which: str, *values: object) -> int:
            rows = database.execute(
                f"DELETE FROM outbox WHERE {which} RETURNING id, LENGTH(payload)",  # noqa: S608 (our own text)
                values,
            ).fetchall()
            gone.extend(number for number, _ in rows)
            return sum(length for _, length in rows)

        with database:
            insert(database, entries)
            delete(database, delivered)
            if time.monotonic() - self._aged >= _AGE_SECONDS:
                self._aged = time.monotonic()
                size -= drop("phase = 'update' AND stored < ?", time.time() - self._max_age)
            while size > self._max_bytes and (freed := drop(_OLDEST_UPDATE) or drop(_OLDEST)):
                size -= freed
        return gone

    def _settle(
        self, memory: list[Entry], entries: list[Entry], delivered: list[int], gone: list[int]
    ) -> None:
        """Take note of what a commit has done; the caller holds `_guard`."""
        self._delivered.difference_update(delivered)
        for entry in (*memory, *entries):
            self._memory.pop(entry.number, None)
            if entry.number in self._alive:
                self._fresh[entry.number] = entry
            else:  # acknowledged while it was on its way to the disk
                self._delivered.add(entry.number)
        for number in gone:
            self._fresh.pop(number, None)
            self._bytes -= self._alive.pop(number, 0)
        self.dropped += len(gone)
        while len(self._fresh) > _FRESH:
            oldest = next(iter(self._fresh))
            del self._fresh[oldest]
            self._fresh_from = oldest + 1
        if self._failing:
            log.warning("outbox %s can be written again", self._path)
        self._failing = False

    def _keep(self, entries: list[Entry]) -> None:
        """Keep in memory what the disk refuses; the caller holds `_guard`."""
        self._memory.update((entry.number, entry) for entry in entries)
        while len(self._memory) > _IN_MEMORY:
            updates = (number for number, entry in self._memory.items() if entry.phase == "update")
            number = next(updates, None) or next(iter(self._memory))
            del self._memory[number]
            self._bytes -= self._alive.pop(number, 0)
            self.dropped += 1

    def _mend(self, error: sqlite3.Error) -> None:
        """Begin a new file in place of one that is damaged, and note any other failure; `_disk` is held."""
        self._tell_failure(str(error))
        if isinstance(error, (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            return
        if self._database is not None:
            self._database.close()
            self._database = None
        try:
            self._adopt(begin_anew(self._path, error))
        except (sqlite3.Error, OSError) as problem:
            log.error("outbox %s cannot be begun anew: %s", self._path, problem)  # noqa: TRY400 (says it all)

    def _tell_failure(self, reason: str) -> None:
        if not self._failing:
            log.error("outbox %s cannot be written (%s): messages wait in memory", self._path, reason)
        self._failing = True
        self._woken.set()  # it is tried again soon

    def _follow_clock(self) -> None:
        """Move the stamps of this run's messages along with a clock that was set, so that their ages stay true."""
        offset = time.time() - time.monotonic()
        step, self._offset = offset - self._offset, offset
        if abs(step) < _STEP_SECONDS or self._database is None:
            return
        log.warning("the clock was set by %+.0f s", step)
        with self._guard:
            self._fresh, self._fresh_from = {}, self._last + 1
            self._memory = {
                number: Entry(number, entry.topic, entry.phase, entry.stored + step, entry.payload)
                for number, entry in self._memory.items()
            }
        try:
            with self._database:
                self._database.execute(
                    "UPDATE outbox SET stored = stored + ? WHERE id >= ?", (step, self._own)
                )
        except sqlite3.Error as error:
            self._mend(error)
