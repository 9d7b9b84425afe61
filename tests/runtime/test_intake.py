import threading
from types import SimpleNamespace

import pytest

from tvau_edge.runtime.intake import Intake


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
