import threading
from types import SimpleNamespace

import pytest

from tvau_edge.runtime.cameras.intake import Cut, Intake


def patch(camera, number):
    return SimpleNamespace(camera=camera, number=number)


def numbers(batch):
    return [(entry.camera, entry.number) for entry in batch]


def test_takes_one_of_each_camera():
    intake = Intake(["a", "b"])
    for number in range(2):
        intake.put(patch("a", number), live=False)
    intake.put(patch("b", 0), live=False)
    assert numbers(intake.take()) == [("a", 0), ("b", 0)]
    assert numbers(intake.take()) == [("a", 1)]


def test_live_keeps_the_newest_and_counts_the_rest():
    intake = Intake(["a"], depth=2)
    for number in range(5):
        intake.put(patch("a", number), live=True)
    assert numbers(intake.take()) == [("a", 3)]
    assert intake.dropped == {"a": 3}


def test_a_file_waits_for_room_and_loses_nothing():
    intake = Intake(["a"], depth=1)

    def feed():
        for number in range(20):
            intake.put(patch("a", number), live=False)
        intake.end("a")

    feeder = threading.Thread(target=feed)
    feeder.start()
    taken = []
    while batch := intake.take():
        taken += [entry.number for entry in batch]
    feeder.join(5)
    assert taken == list(range(20))
    assert intake.dropped == {"a": 0}


@pytest.mark.parametrize("ender", ["end", "close"])
def test_end_and_close_wake_the_reader(ender):
    intake = Intake(["a"])
    result = []
    reader = threading.Thread(target=lambda: result.append(intake.take()))
    reader.start()
    intake.end("a") if ender == "end" else intake.close()
    reader.join(5)
    assert result == [[]]


def test_close_frees_a_waiting_file():
    intake = Intake(["a"], depth=1)
    intake.put(patch("a", 0), live=False)
    feeder = threading.Thread(target=lambda: intake.put(patch("a", 1), live=False))
    feeder.start()
    intake.close()
    feeder.join(5)
    assert not feeder.is_alive()


def test_more_cameras_than_fit_take_turns():
    cameras = ["a", "b", "c", "d", "e"]
    intake = Intake(cameras, depth=100, most=2)
    for number in range(20):
        for camera in cameras:
            intake.put(patch(camera, number), live=False)
    served = dict.fromkeys(cameras, 0)
    for _ in range(10):  # 20 places for 5 cameras
        batch = intake.take()
        assert len(batch) == 2
        for entry in batch:
            served[entry.camera] += 1
    assert set(served.values()) == {4}


def test_a_busy_camera_does_not_starve_a_quiet_one():
    intake = Intake(["busy", "quiet"], depth=100, most=1)
    for number in range(50):
        intake.put(patch("busy", number), live=False)
    intake.put(patch("quiet", 0), live=False)
    first = [intake.take()[0].camera for _ in range(3)]
    assert "quiet" in first


def test_a_cut_comes_after_what_waits_and_is_never_dropped():
    intake = Intake(["a"], depth=2)
    intake.put(patch("a", 0), live=True)
    intake.cut("a")
    intake.cut("a")  # twice is once
    for number in range(1, 6):
        intake.put(patch("a", number), live=True)
    taken = []
    for _ in range(3):
        taken += intake.take()
    assert [isinstance(item, Cut) for item in taken] == [True, False, False]
    assert [item.number for item in taken[1:]] == [4, 5]
    assert intake.dropped == {"a": 4}


def test_cameras_come_and_go():
    intake = Intake(["a"], depth=1)
    intake.put(patch("a", 0), live=False)
    feeder = threading.Thread(target=lambda: intake.put(patch("a", 1), live=False))
    feeder.start()
    intake.change(["a"], ["b"])
    feeder.join(5)
    assert not feeder.is_alive()
    intake.put(patch("a", 2), live=True)
    intake.cut("a")
    intake.put(patch("b", 0), live=True)
    assert numbers(intake.take()) == [("b", 0)]
    assert intake.dropped == {"b": 0}


def test_a_camera_that_is_replaced_by_itself_begins_anew():
    intake = Intake(["a"], depth=1)
    intake.put(patch("a", 0), live=True)
    intake.change(["a"], ["a"])
    intake.put(patch("a", 1), live=True)
    assert numbers(intake.take()) == [("a", 1)]
