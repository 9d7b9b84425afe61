"""The outbox's file: opens it, sets a damaged one aside and reads what can still be read, and tells disks that refuse.

One table, one index; WAL, and a sync at every commit.
"""

import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from tvau_edge.runtime.errors import OutboxError

log = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS outbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, phase TEXT NOT NULL, stored REAL NOT NULL,
  payload BLOB NOT NULL
)"""
# Finds the oldest update without reading what is no update.
_INDEX = "CREATE INDEX IF NOT EXISTS updates ON outbox (stored) WHERE phase = 'update'"
_COLUMNS = ["id", "topic", "phase", "stored", "payload"]
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_LOG_PAGES = 500  # of 4 kB, after which the write-ahead log is moved into the file
RESERVE = 4 << 20  # bytes: more than the log can hold when the disk fills up
_AT_ONCE = 32  # rows that one statement inserts
_INSERT = "INSERT INTO outbox (id, topic, phase, stored, payload) VALUES (?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM outbox WHERE id BETWEEN ? AND ?"
SELECT = "SELECT id, topic, phase, stored, payload FROM outbox"


class DiskRefusesError(Exception):
    """The disk is full, read-only or failing: not a mistake of the configuration, and it may pass."""


def open_file(path: Path) -> sqlite3.Connection:
    """Open the outbox's database, or make it.

    A file that is damaged is renamed to `<name>.corrupt-<time>`, and what can be read of it is carried over.

    Raises:
        DiskRefusesError: the disk is full, read-only or failing.
        OutboxError: the place cannot be written, or the file is in use or of another program.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            return begin_anew(path, error)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise OutboxError(f"outbox {path} cannot be opened: another tvau uses it") from error
        if disk_refuses(error, path):
            raise DiskRefusesError(str(error)) from error
        raise OutboxError(
            f"outbox {path} cannot be opened: {error}; is its folder writable, with room?"
        ) from error
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise DiskRefusesError(error.strerror) from error
        raise OutboxError(f"outbox {path} cannot be made: {error.strerror}") from error


def insert(database: sqlite3.Connection, rows: Sequence[tuple[int, str, str, float, bytes]]) -> None:
    """Insert rows, many by a statement: Python gives its lock away at each, and may wait long to have it back."""
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        database.execute(_INSERT + ", (?, ?, ?, ?, ?)" * (len(part) - 1), list(chain.from_iterable(part)))


def delete(database: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Delete rows, one statement for each run of numbers without a gap."""
    first = last = None
    for number in sorted(numbers):
        if last is not None and number != last + 1:
            database.execute(_DELETE, (first, last))
            first = None
        first, last = number if first is None else first, number
    if last is not None:
        database.execute(_DELETE, (first, last))


def begin_anew(path: Path, error: sqlite3.Error) -> sqlite3.Connection:
    """Set the damaged file aside and begin a new one with what can be read of the old.

    Raises:
        sqlite3.Error: the new one cannot be written.
        OSError: the old one cannot be renamed.
    """
    aside = path.with_name(f"{path.name}.corrupt-{int(time.time())}")
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    saved = dict(_readable(aside))
    database = _connect(path)
    with database:
        insert(database, sorted(saved.values()))
    log.error(
        "outbox %s is damaged (%s): kept as %s, and a new one begun with the %d messages that could be read",
        path,
        error,
        aside.name,
        len(saved),
    )
    return database


def _readable(path: Path) -> Iterator[tuple[int, tuple[int, str, str, float, bytes]]]:
    """Rows of a damaged file that can be read, by their id: from both ends to where it is broken."""
    for order in ("ASC", "DESC"):
        with (
            contextlib.suppress(sqlite3.Error, OverflowError),
            contextlib.closing(sqlite3.connect(path)) as database,
        ):
            for row in database.execute(f"{SELECT} ORDER BY id {order}"):
                number, topic, phase, stored, payload = row
                if (
                    isinstance(number, int)
                    and number > 0
                    and isinstance(topic, str)
                    and phase in ("start", "update", "end")
                    and isinstance(stored, float)
                    and isinstance(payload, bytes)
                ):
                    yield number, row


def disk_refuses(error: sqlite3.Error, path: Path) -> bool:
    """Whether an error is the disk's: no room, no writing, no reading."""
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return True
    if "readonly" in text or "read-only" in text:
        return bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    if "unable to open" in text:
        probe = path.with_name(f".{path.name}.probe")
        try:
            probe.write_bytes(b"x")
        except OSError as problem:
            return problem.errno in _DISK_ERRORS
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    return False


def keep_reserve(path: Path) -> None:
    """Keep some room beside the outbox, if there is any: on a full disk SQLite cannot even delete without it."""
    reserve = path.with_name(f"{path.name}-reserve")
    try:
        with reserve.open("ab") as file:
            if file.tell() < RESERVE:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
    except OSError:
        with contextlib.suppress(OSError):
            reserve.unlink(missing_ok=True)


def delete_on_full_disk(database: sqlite3.Connection, path: Path, numbers: list[int]) -> list[int]:
    """Delete messages although the disk has no room, by means of the reserve, and shorten the log.

    Returns:
        Those of `numbers` that are deleted now.
    """
    done: list[int] = []
    with contextlib.suppress(OSError):
        path.with_name(f"{path.name}-reserve").unlink(missing_ok=True)
    try:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for start in range(0, len(numbers), 100):
            part = numbers[start : start + 100]
            with database:
                delete(database, part)
            done += part
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        log.debug("outbox %s: no room even to delete: %s", path, error)
    keep_reserve(path)
    return done


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=1)
    try:
        # Of one process alone: two would number their messages alike and deliver each other's.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        database.execute(_TABLE)
        _check(database, path)
        database.execute(_INDEX)
        database.commit()
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: Path) -> None:
    if [row[1] for row in database.execute("PRAGMA table_info(outbox)")] != _COLUMNS:
        raise OutboxError(f"outbox {path} is a database of another program; choose another outbox.path")
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("its pages do not fit together")
