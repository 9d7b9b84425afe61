"""The outbox: what it returned for is still there, in order, whatever happens to process and disk."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tvau_edge.runtime.delivery import outbox as module
from tvau_edge.runtime.delivery.outbox import FIRST, Outbox
from tvau_edge.runtime.delivery.outbox_file import delete, insert, open_file
from tvau_edge.runtime.errors import OutboxError

WRITER = """
import sys
from pathlib import Path
from tvau_edge.runtime.delivery.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), 10**9):
    outbox.put("t", "start", str(number).encode())
    print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    box = Outbox(path)
    yield box
    box.close()


def payloads(outbox: Outbox) -> list[bytes]:
    return [entry.payload for entry in outbox.after(FIRST, 10_000)]


def test_messages_leave_in_their_order(outbox):
    for number in range(50):
        outbox.put(f"t/{number}", "update", b"%d" % number)
    entries = outbox.after(FIRST, 20)
    assert [entry.topic for entry in entries] == [f"t/{number}" for number in range(20)]
    more = outbox.after(entries[-1].number, 1000)
    assert [entry.payload for entry in more] == [b"%d" % number for number in range(20, 50)]
    assert outbox.after(more[-1].number, 10) == []
    assert len(outbox) == 50


def test_delivered_messages_are_gone_for_good(path):
    box = Outbox(path)
    for number in range(5):
        box.put("t", "start", b"%d" % number)
    for entry in box.after(FIRST, 2):
        box.delivered(entry.number)
    assert len(box) == 3
    box.close()
    box = Outbox(path)
    assert payloads(box) == [b"2", b"3", b"4"]
    box.put("t", "start", b"5")
    assert payloads(box)[-1] == b"5"
    box.close()


def test_numbers_never_come_again(path):
    box = Outbox(path)
    box.put("t", "start", b"a")
    (first,) = box.after(FIRST, 10)
    box.delivered(first.number)
    box.close()
    box = Outbox(path)
    box.put("t", "start", b"b")
    (second,) = box.after(FIRST, 10)
    assert second.number > first.number
    box.close()


def test_a_full_outbox_drops_the_oldest_updates_first(path):
    box = Outbox(path, max_bytes=60)
    for number, phase in enumerate(["start", "update", "update", "end", "start", "update"]):
        box.put("t", phase, b"%d123456789" % number)
    assert box.dropped == 0
    box.put("t", "start", b"6123456789")
    assert [payload[:1] for payload in payloads(box)] == [b"0", b"2", b"3", b"4", b"5", b"6"]
    for number in (7, 8):
        box.put("t", "end", b"%d123456789" % number)
    assert [payload[:1] for payload in payloads(box)] == [b"0", b"3", b"4", b"6", b"7", b"8"]
    box.put("t", "end", b"9123456789")  # no update is left: the oldest goes
    assert [payload[:1] for payload in payloads(box)] == [b"3", b"4", b"6", b"7", b"8", b"9"]
    assert box.dropped == 4
    box.close()


def test_the_bound_holds_after_reopening(path):
    box = Outbox(path)
    for number in range(10):
        box.put("t", "start", b"%d123456789" % number)
    box.close()
    box = Outbox(path, max_bytes=50)
    box.put("t", "start", b"x123456789")
    assert len(box) == 5
    box.close()


def test_old_updates_go_and_the_rest_stays(path, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    box = Outbox(path, max_age_seconds=60)
    for phase in ("start", "update", "end"):
        box.put("t", phase, phase.encode())
    now[0] += 61
    box.put("t", "update", b"new")
    assert payloads(box) == [b"start", b"end", b"new"]
    assert box.dropped == 1
    box.close()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\x07" * 9000])
def test_a_damaged_file_is_set_aside(path, content, caplog):
    path.write_bytes(content)
    box = Outbox(path)
    box.put("t", "start", b"a")
    assert payloads(box) == [b"a"]
    box.close()
    (aside,) = path.parent.glob("outbox.db.corrupt-*")
    assert aside.read_bytes() == content
    assert str(path) in caplog.text
    assert aside.name in caplog.text


def test_what_can_be_read_of_a_damaged_file_is_carried_over(path):
    box = Outbox(path)
    for number in range(200):
        box.put("t", "start", b"%d" % number * 200)
    box.close()
    data = bytearray(path.read_bytes())
    data[8192:32768] = b"\xee" * (32768 - 8192)
    path.write_bytes(data)
    box = Outbox(path)
    kept = payloads(box)
    assert 0 < len(kept) < 200
    assert kept == [b"%d" % number * 200 for number in range(200) if b"%d" % number * 200 in kept]
    box.put("t", "start", b"a")
    assert payloads(box) == [*kept, b"a"]
    box.close()
    assert len(list(path.parent.glob("outbox.db.corrupt-*"))) == 1


@pytest.mark.parametrize("place", ["file/outbox.db", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutboxError) as caught:
        Outbox(tmp_path / place)
    assert str(tmp_path / place) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_named(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    with pytest.raises(OutboxError, match="folder"):
        Outbox(folder / "outbox.db")


def test_a_database_of_something_else_is_left_alone(path):
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE outbox (name TEXT)")
    other.close()
    with pytest.raises(OutboxError, match="another program"):
        Outbox(path)
    assert not list(path.parent.glob("*.corrupt-*"))


class FullDisk:
    """Makes every write of an outbox fail as a full disk does, until it is lifted."""

    def __init__(self, outbox: Outbox) -> None:
        self._database = outbox._database
        self._lock = outbox._disk
        self.fill()

    def fill(self) -> None:
        with self._lock:
            self._database.execute("PRAGMA query_only = ON")

    def lift(self) -> None:
        with self._lock:
            self._database.execute("PRAGMA query_only = OFF")


def test_while_the_disk_is_full_messages_wait_in_memory(path, caplog):
    box = Outbox(path)
    box.put("t", "start", b"on disk")
    disk = FullDisk(box)
    box.put("t", "update", b"in memory")
    assert not box.durable
    assert payloads(box) == [b"on disk", b"in memory"]
    assert len(box) == 2
    assert "cannot be written" in caplog.text
    disk.lift()
    box.put("t", "end", b"on disk again")
    assert box.durable
    assert payloads(box) == [b"on disk", b"in memory", b"on disk again"]
    box.close()
    box = Outbox(path)
    assert payloads(box) == [b"on disk", b"in memory", b"on disk again"]
    box.close()


def test_what_waits_in_memory_is_found_after_what_was_sent(path):
    box = Outbox(path)
    box.put("t", "start", b"sent")
    (sent,) = box.after(FIRST, 10)
    FullDisk(box)
    box.put("t", "end", b"in memory")
    (entry,) = box.after(sent.number, 10)
    assert entry.payload == b"in memory"
    box.delivered(entry.number)
    assert payloads(box) == [b"sent"]
    box.close()


def test_what_was_delivered_on_a_full_disk_is_forgotten_later(path):
    box = Outbox(path)
    box.put("t", "start", b"a")
    box.put("t", "end", b"b")
    disk = FullDisk(box)
    (first, _) = box.after(FIRST, 10)
    box.delivered(first.number)
    assert len(box) == 1
    box.put("t", "start", b"c")
    disk.lift()
    box.put("t", "end", b"d")
    assert len(box) == 3
    box.close()
    box = Outbox(path)
    assert payloads(box) == [b"b", b"c", b"d"]
    box.close()


def test_memory_is_bounded_and_keeps_starts_and_ends(path, monkeypatch):
    monkeypatch.setattr(module, "_IN_MEMORY", 4)
    box = Outbox(path)
    FullDisk(box)
    for number, phase in enumerate(["start", "update", "end", "start", "update", "end"]):
        box.put("t", phase, b"%d" % number)
    assert payloads(box) == [b"0", b"2", b"3", b"5"]
    box.put("t", "end", b"6")
    assert payloads(box) == [b"2", b"3", b"5", b"6"]
    assert box.dropped == 3
    box.close()


def test_a_full_disk_does_not_change_the_count_of_bytes(path):
    box = Outbox(path, max_bytes=100)
    disk = FullDisk(box)
    for _ in range(20):
        box.put("t", "start", b"x" * 10)
    for entry in box.after(FIRST, 1000):
        box.delivered(entry.number)
    disk.lift()
    for number in range(10):
        box.put("t", "start", b"%d" % number * 10)
    assert len(box) == 10
    box.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_the_outbox_filled_itself_recovers_when_it_is_delivered(small_disk, eventually):
    """Without a reserve SQLite could not even delete: its log has no room to say so."""
    box = Outbox(small_disk / "outbox.db")
    count = 0
    while box.durable:
        box.put("t", "start", b"%d" % count + b"x" * 2000)
        count += 1
    entries = []
    while found := box.after(entries[-1].number if entries else FIRST, 500):
        entries += found
    assert len(entries) == count
    box.delivered(*(entry.number for entry in entries))
    box.put("t", "end", b"last")
    eventually(lambda: box.durable, "room on the disk")
    box.close()
    box = Outbox(small_disk / "outbox.db")
    assert payloads(box) == [b"last"]
    box.close()


def test_a_disk_that_others_filled_recovers_when_they_give_room(small_disk, eventually):
    box = Outbox(small_disk / "outbox.db")
    box.put("t", "start", b"before")
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    while box.durable:
        box.put("t", "start", b"x" * 2000)
    waiting = payloads(box)
    ballast.unlink()
    eventually(lambda: box.durable, "room on the disk")
    assert payloads(box) == waiting
    box.close()


def test_on_a_full_disk_it_begins_in_memory_and_moves_over(small_disk, eventually):
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"0" * 4096)
    box = Outbox(small_disk / "outbox.db")
    box.put("t", "start", b"a")
    assert not box.durable
    assert payloads(box) == [b"a"]
    ballast.unlink()
    eventually(lambda: box.durable, "room on the disk")
    assert payloads(box) == [b"a"]
    box.close()


def test_a_read_only_disk_does_not_stop_us(small_disk, eventually):
    Outbox(small_disk / "outbox.db").close()
    remount = ["mount", "-o", "remount,ro", small_disk]
    if subprocess.run(remount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted anew")
    box = Outbox(small_disk / "outbox.db")
    box.put("t", "start", b"a")
    assert not box.durable
    assert payloads(box) == [b"a"]
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    eventually(lambda: box.durable, "a disk that can be written")
    box.close()


def test_a_file_that_is_damaged_while_it_is_used_is_begun_anew(path, caplog):
    box = Outbox(path)
    for number in range(100):
        box.put("t", "start", b"%d" % number * 100)
    before = payloads(box)
    with box._disk:
        box._mend(sqlite3.DatabaseError("database disk image is malformed"))
    box.put("t", "end", b"after")
    assert payloads(box) == [*before, b"after"]
    assert box.durable
    box.close()
    assert "is damaged" in caplog.text
    box = Outbox(path)
    assert payloads(box) == [*before, b"after"]
    box.close()


def test_a_clock_that_is_set_does_not_age_what_waits(path, monkeypatch):
    """As on a box without a battery, which takes it for 1970 until the time comes from the network."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    box = Outbox(path, max_age_seconds=60)
    box.put("t", "update", b"old")
    now[0] = 1.8e9
    box._aged = -1e9
    box.put("t", "update", b"new")
    assert payloads(box) == [b"old", b"new"]
    assert all(abs(entry.stored - 1.8e9) < 60 for entry in box.after(FIRST, 10))
    now[0] = 1.7e9
    box.put("t", "update", b"newer")
    assert all(abs(entry.stored - 1.7e9) < 60 for entry in box.after(FIRST, 10))
    box.close()


def test_closing_on_a_full_disk_says_what_is_lost(path, caplog):
    box = Outbox(path)
    FullDisk(box)
    box.put("t", "start", b"a")
    box.close()
    assert "1 messages are lost" in caplog.text


def test_an_evicted_message_may_still_be_delivered(path):
    box = Outbox(path, max_bytes=10)
    box.put("t", "update", b"a" * 10)
    (entry,) = box.after(FIRST, 10)
    box.put("t", "update", b"b" * 10)
    box.delivered(entry.number)
    assert len(box) == 1
    box.close()


def test_nothing_is_taken_after_closing(path):
    box = Outbox(path)
    box.close()
    with pytest.raises(OutboxError, match="closed"):
        box.put("t", "start", b"a")


def test_one_process_at_a_time(outbox, path):
    outbox.put("t", "start", b"a")
    with pytest.raises(OutboxError, match="another tvau uses it"):
        Outbox(path)
    assert payloads(outbox) == [b"a"]


def test_many_threads_may_put(outbox):
    def put(thread: int) -> None:
        for number in range(25):
            outbox.put(f"camera {thread}", "update", b"%d" % number)

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = outbox.after(FIRST, 10_000)
    assert len(entries) == len(outbox) == 200
    for thread in range(8):
        mine = [entry.payload for entry in entries if entry.topic == f"camera {thread}"]
        assert mine == [b"%d" % number for number in range(25)]


def test_a_put_that_fails_leaves_the_lead_to_the_next(outbox, monkeypatch, eventually):
    """An error that nobody foresaw ends one `put`; those that wait behind it are written all the same."""
    commit, entered, go_on = outbox._commit, threading.Event(), threading.Event()

    def fail() -> None:
        entered.set()
        go_on.wait()
        monkeypatch.setattr(outbox, "_commit", commit)
        raise OutboxError("unforeseen")

    monkeypatch.setattr(outbox, "_commit", fail)
    failed = []

    def first() -> None:
        with contextlib.suppress(OutboxError):
            outbox.put("t", "start", b"first")
            failed.append("did not fail")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    entered.wait()
    threads += [
        threading.Thread(target=outbox.put, args=("t", "start", b"%d" % number)) for number in range(3)
    ]
    for thread in threads[1:]:
        thread.start()
    eventually(lambda: len(outbox._waiting) == 4, "four that wait")
    go_on.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed
    assert set(payloads(outbox)) == {b"first", b"0", b"1", b"2"}
    outbox.put("t", "start", b"last")
    assert payloads(outbox)[-1] == b"last"


@given(st.sets(st.integers(1, 100)))
@settings(deadline=None)
def test_what_is_deleted_is_what_was_delivered_and_no_more(numbers):
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(open_file(Path(folder) / "o.db")) as database,
    ):
        insert(database, [(number, "t", "update", 0.0, b"%d" % number) for number in range(1, 101)])
        delete(database, numbers)
        left = {number for (number,) in database.execute("SELECT id FROM outbox")}
    assert left == set(range(1, 101)) - numbers


def test_a_listener_is_told_of_each_message(outbox):
    heard = []
    outbox.listen(lambda: heard.append(len(outbox)))
    outbox.put("t", "start", b"a")
    assert heard == [1]


def test_kill_9_loses_nothing(path):
    """Five times, a process is killed while it puts; every message that `put` returned for is there."""
    acknowledged: list[int] = []
    for life in range(5):
        first = acknowledged[-1] + 2 if acknowledged else 0  # the one after the last may be there as well
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(first)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged.append(int(line))
            if len(acknowledged) >= 20 * (life + 1):
                process.send_signal(signal.SIGKILL)
                break
        acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        process.stdout.close()
        process.wait()
    box = Outbox(path)
    there = [int(payload) for payload in payloads(box)]
    box.close()
    assert set(acknowledged) <= set(there)
    assert there == sorted(set(there))
    assert not list(path.parent.glob("*.corrupt-*"))


class OutboxMachine(RuleBasedStateMachine):
    """An outbox beside a list that does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "outbox.db"
        self.box = Outbox(self.path, max_bytes=40)
        self.model: list[tuple[str, bytes]] = []
        self.count = 0

    @rule(phase=st.sampled_from(["start", "update", "end"]), size=st.integers(4, 12))
    def put(self, phase, size):
        self.count += 1
        payload = b"%04d" % self.count + b"." * (size - 4)
        self.box.put("t", phase, payload)
        self.model.append((phase, payload))
        while sum(len(payload) for _, payload in self.model) > 40:
            update = next((entry for entry in self.model if entry[0] == "update"), self.model[0])
            self.model.remove(update)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def deliver(self, data):
        index = data.draw(st.integers(0, len(self.model) - 1))
        self.box.delivered(self.box.after(FIRST, 1000)[index].number)
        del self.model[index]

    @rule()
    def reopen(self):
        self.box.close()
        self.box = Outbox(self.path, max_bytes=40)

    @invariant()
    def same(self):
        assert payloads(self.box) == [payload for _, payload in self.model]
        assert len(self.box) == len(self.model)

    def teardown(self):
        self.box.close()
        self.folder.cleanup()


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
