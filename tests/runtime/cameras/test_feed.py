import logging
import random
import threading
import time
from datetime import datetime

import pytest

from tvau_edge.runtime.cameras import feed as module
from tvau_edge.runtime.cameras.feed import Backoff, Feed
from tvau_edge.runtime.cameras.intake import Cut, Intake
from tvau_edge.runtime.config import CameraConfig
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry

CLIP = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses of hundredths of a second."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(module, "_TICK", 0.02)


class Reader:
    """Takes what a feed puts into the intake, on a thread of its own."""

    def __init__(self, intake):
        self.intake, self.taken = intake, []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while batch := self.intake.take():
            self.taken += batch

    @property
    def patches(self):
        return [item for item in self.taken if not isinstance(item, Cut)]

    @property
    def cuts(self):
        return [item for item in self.taken if isinstance(item, Cut)]


@pytest.fixture
def start():
    """Starts a feed of the camera `door` and a reader behind it."""
    running = []

    def build(source, now=None, **settings):
        config = CameraConfig(name="door", source=str(source), **settings)
        intake = Intake(["door"])
        feed = Feed(config, CLIP, intake, **({"now": now} if now else {}))
        running.append((feed, intake))
        reader = Reader(intake)
        feed.start()
        return feed, reader

    yield build
    for feed, intake in running:
        feed.stop()
        intake.close()
        assert feed.join(30), "a thread of the feed is still alive"


@pytest.fixture
def play(send_act):
    """An act that sends a stream of ten seconds in two: faster than life, not faster than we can decode."""
    return lambda data, **settings: send_act(data, rate=len(data) / 2, **settings)


@pytest.fixture(scope="module")
def stream(tmp_path_factory, draw_clip):
    """Ten seconds of a drawn camera as MPEG-TS, enough for FFmpeg to open it."""
    return draw_clip(tmp_path_factory.mktemp("stream") / "stream.ts", 10, (2, 5)).read_bytes()


# ---------------------------------------------------------------- pauses


def test_pauses_double_up_to_the_longest_and_are_spread():
    backoff = Backoff(1, 60, random.Random(1))
    pauses = [backoff.pause() for _ in range(10)]
    for pause, whole in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60], strict=True):
        assert whole / 2 <= pause <= whole
    assert len({round(pause, 6) for pause in pauses[6:]}) == 4
    backoff.reset()
    assert backoff.pause() <= 1


def test_the_first_pause_is_not_longer_than_the_longest():
    assert Backoff(1, 0.1).pause() <= 0.1


# ---------------------------------------------------------------- files


def test_a_file_is_played_once(start, draw_clip, tmp_path):
    feed, reader = start(draw_clip(tmp_path / "clip.mp4", 4))
    reader.thread.join(30)
    assert len(reader.patches) == 8
    assert feed.facts.state == "ended"
    assert (feed.facts.frames, feed.facts.reconnects, feed.facts.error, feed.error) == (32, 0, None, None)
    assert not feed.overdue


def test_a_file_that_is_absent_is_the_end(start, tmp_path):
    feed, reader = start(tmp_path / "absent.mp4")
    reader.thread.join(30)
    assert "no such file" in str(feed.error)


# ---------------------------------------------------------------- live sources come back


def test_a_camera_that_goes_is_opened_again(start, faulty_camera, play, stream, eventually, caplog):
    camera = faulty_camera(play(stream))
    with caplog.at_level(logging.WARNING):
        feed, reader = start(camera.url, reconnect_seconds=0.05)
        eventually(lambda: camera.connections >= 3 and len(reader.cuts) >= 2, "a third connection")
    assert feed.error is None
    assert feed.facts.reconnects >= 2
    assert "ended: the camera or its server closed the stream; trying again in" in caplog.text
    assert "camera door: it is back" in caplog.text
    assert "hunter2" not in caplog.text
    assert "hunter2" not in (feed.facts.error or "")
    indices = [patch.index for patch in reader.patches]
    assert indices == sorted(set(indices))  # numbered on through the gaps


def test_a_camera_that_is_off_at_first_is_awaited(start, faulty_camera, play, stream, eventually, free_port):
    feed, reader = start(f"tcp://127.0.0.1:{free_port}", reconnect_seconds=0.05)
    eventually(lambda: feed.facts.reconnects >= 3, "three attempts")
    assert feed.facts.state in ("waiting", "opening")
    assert "Connection refused" in feed.facts.error
    faulty_camera(play(stream, then="silent"), port=free_port)
    eventually(lambda: reader.patches, "a patch")
    eventually(lambda: feed.facts.error is None, "the end of the complaint")


def test_a_camera_that_stalls_is_seen_in_time_and_opened_again(
    start, faulty_camera, play, stream, eventually
):
    camera = faulty_camera(play(stream, then="silent"))
    feed, reader = start(camera.url, stall_seconds=1.0, reconnect_seconds=0.05)
    eventually(lambda: camera.connections >= 2, "a second connection")
    assert feed.facts.reconnects >= 1
    assert reader.patches


def test_garbage_is_survived(start, faulty_camera, play, stream, eventually):
    noise = random.Random(3).randbytes(200_000)
    spoilt = bytearray(stream)
    for place in random.Random(4).sample(range(len(spoilt) // 3, len(spoilt)), 200):
        spoilt[place] ^= 0xFF
    camera = faulty_camera(
        play(noise),
        play(stream[: len(stream) // 2] + noise),
        play(bytes(spoilt)),
        play(stream),
    )
    feed, reader = start(camera.url, stall_seconds=2.0, reconnect_seconds=0.05)
    eventually(lambda: camera.connections >= 5, "a fifth connection")
    assert reader.patches
    assert feed.error is None


def test_another_resolution_after_a_reconnect(
    start, faulty_camera, play, stream, draw_clip, tmp_path, eventually
):
    larger = draw_clip(tmp_path / "larger.ts", 10, size=(336, 224)).read_bytes()
    smaller = draw_clip(tmp_path / "smaller.ts", 10, size=(56, 28)).read_bytes()
    camera = faulty_camera(play(stream), play(smaller), play(larger))
    _feed, reader = start(camera.url, reconnect_seconds=0.05)
    eventually(lambda: camera.connections >= 4, "a fourth connection")
    assert {patch.frames.shape for patch in reader.patches} == {(2, 56, 84, 3)}


def test_another_resolution_in_the_middle(
    start, faulty_camera, play, stream, draw_clip, tmp_path, eventually
):
    larger = draw_clip(tmp_path / "larger.ts", 10, size=(336, 224)).read_bytes()
    camera = faulty_camera(play(stream + larger, then="silent"))
    _feed, reader = start(camera.url, stall_seconds=2.0, reconnect_seconds=0.05)
    eventually(lambda: camera.connections >= 2, "a second connection")
    assert {patch.frames.shape for patch in reader.patches} == {(2, 56, 84, 3)}


def test_without_reconnecting_the_error_is_the_end(start, faulty_camera, send_act, stream):
    feed, reader = start(faulty_camera(send_act(stream)).url, reconnect=False)
    reader.thread.join(30)
    assert isinstance(feed.error, SourceError)
    assert "ended" in str(feed.error)


def test_a_camera_that_is_faster_than_we_are_loses_the_oldest(
    faulty_camera, send_act, draw_clip, tmp_path, eventually
):
    """Nobody takes: what waits stays bounded, and what gives way is counted."""
    stream = draw_clip(tmp_path / "long.ts", 60).read_bytes()
    intake = Intake(["door"])
    feed = Feed(
        CameraConfig(name="door", source=faulty_camera(send_act(stream, then="silent")).url), CLIP, intake
    )
    feed.start()
    eventually(lambda: feed.facts.frames + feed.facts.dropped >= 400, "400 frames")
    assert len(intake.take()) == 1
    assert len(intake._waiting["door"]) <= 2
    feed.stop()
    intake.close()
    assert feed.join(30)


def test_stopping_while_it_waits_or_plays(start, faulty_camera, send_act, stream, eventually, free_port):
    waiting, _ = start(f"tcp://127.0.0.1:{free_port}", reconnect_seconds=3600)
    eventually(lambda: waiting.facts.state == "waiting", "waiting")
    waiting.stop()
    assert waiting.join(30)
    playing, _reader = start(faulty_camera(send_act(stream, then="silent")).url, stall_seconds=60)
    eventually(lambda: playing.facts.state == "playing", "playing")
    playing.stop()
    # FFmpeg holds the thread until it returns from its read: the join at the end of the test waits for the camera.


# ---------------------------------------------------------------- hours


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, hour):
        self.hour = hour

    def __call__(self):
        return datetime(2026, 11, 23, self.hour)


def test_outside_of_its_hours_a_camera_is_closed(start, faulty_camera, play, stream, eventually, monkeypatch):
    camera = faulty_camera(play(stream))
    clock = Clock(3)
    feed, reader = start(camera.url, now=clock, schedule=["08:00-10:00"], reconnect_seconds=0.05)
    eventually(lambda: feed.facts.state == "resting", "resting")
    assert camera.connections == 0
    clock.hour = 9
    eventually(lambda: reader.patches, "a patch")
    clock.hour = 10
    eventually(lambda: feed.facts.state == "resting", "resting")
    eventually(lambda: reader.cuts, "a cut")  # an event that is open then is closed
    connections = camera.connections
    time.sleep(0.3)
    assert camera.connections == connections
    assert feed.facts.error is None
    clock.hour = 8
    eventually(lambda: camera.connections > connections, "another connection")


# ---------------------------------------------------------------- threads that hang


class Hanging:
    """In place of `Source`: hangs while it opens, as a name server can make it."""

    def __init__(self, *_, **__):
        Hanging.entered.set()
        Hanging.free.wait(60)
        raise SourceError("it hung")

    @staticmethod
    def is_live(_):
        return True


def test_a_thread_that_hangs_is_overdue_and_can_be_replaced(
    start, faulty_camera, play, stream, eventually, monkeypatch
):
    Hanging.entered, Hanging.free = threading.Event(), threading.Event()
    monkeypatch.setattr(module, "_ALLOWANCE", 0.1)
    camera = faulty_camera(play(stream, then="silent"))
    with monkeypatch.context() as patched:
        patched.setattr(module, "Source", Hanging)
        feed, reader = start(camera.url, stall_seconds=0.2)
        assert Hanging.entered.wait(30)
        eventually(lambda: feed.overdue, "the thread to be overdue")
    monkeypatch.setattr(module, "_ALLOWANCE", 20)
    feed.restart()
    eventually(lambda: reader.patches, "a patch of the new thread")
    assert feed.facts.restarts == 1
    Hanging.free.set()  # the old thread comes back, and has nothing to say
    feed._threads[0].join(30)
    assert feed.error is None
    assert feed.facts.state != "ended"
    assert not reader.intake._closed


def test_a_thread_that_dies_is_overdue(start, faulty_camera, send_act, stream, eventually, monkeypatch):
    monkeypatch.setattr(Feed, "_run", lambda self, leaving: None)
    feed, _ = start(faulty_camera(send_act(stream)).url)
    eventually(lambda: feed.overdue, "the thread to be overdue")


def test_a_fault_of_ours_is_logged_and_tried_again(
    start, faulty_camera, play, stream, eventually, monkeypatch, caplog
):
    camera = faulty_camera(play(stream, then="silent"))
    real, failures = module.Source, []

    def fail_once(*arguments, **settings):
        if not failures:
            failures.append(None)
            raise ZeroDivisionError("a fault of ours")
        return real(*arguments, **settings)

    fail_once.is_live = real.is_live
    monkeypatch.setattr(module, "Source", fail_once)
    _feed, reader = start(camera.url, reconnect_seconds=0.05)
    eventually(lambda: reader.patches, "a patch")
    assert "a fault of ours" in caplog.text


def test_a_driver_that_keeps_the_device_is_not_opened_again(
    start, faulty_camera, play, stream, eventually, monkeypatch
):
    """As long as the thread that reads is held, no second one is started: they would pile up."""
    camera = faulty_camera(play(stream))
    released = threading.Event()
    ended = module.LatestFrames.ended
    monkeypatch.setattr(
        module.LatestFrames, "ended", property(lambda self: released.is_set() and ended.fget(self))
    )
    feed, _ = start(camera.url, reconnect_seconds=0.05)
    eventually(lambda: "does not let go" in (feed.facts.error or ""), "the complaint")
    time.sleep(0.2)
    assert camera.connections == 1
    released.set()
    eventually(lambda: camera.connections >= 2, "a second connection")
