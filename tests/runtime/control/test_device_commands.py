"""The commands of a running pipeline, given a pipeline's double; its own tests show what they bring about."""

import json
import threading

import pytest

from tvau_edge.runtime.control.commands import Commands
from tvau_edge.runtime.control.device_commands import register
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Thresholds


class Double:
    """Notes what it is told to do."""

    root = "tvau/box"

    def __init__(self) -> None:
        self.done: list[tuple] = []

    def set_thresholds(self, thresholds, camera=None):
        self.done.append(("thresholds", thresholds, camera))

    def restart_camera(self, camera):
        if camera != "door":
            raise SourceError(f"there is no camera {camera!r}; known: door")
        self.done.append(("restart", camera))

    def snapshot(self, camera):
        return b"\xff\xd8 picture"

    def publish_heatmap(self, camera, jpeg):
        self.done.append(("published", camera, jpeg))


@pytest.fixture
def double() -> Double:
    return Double()


@pytest.fixture
def ask(double):
    commands = Commands(["threshold", "restart-camera", "snapshot"])
    register(commands, double, double)
    commands.start()

    def send(name: str, **payload: object) -> dict:
        answered, answer = threading.Event(), {}
        commands.receive(
            name,
            json.dumps(payload).encode(),
            lambda given: (answer.update(json.loads(given)), answered.set()),
        )
        assert answered.wait(30)
        return answer

    yield send
    commands.close()


def test_threshold(ask, double):
    assert ask("threshold", open=0.7, close=0.5)["result"] == {"open": 0.7, "close": 0.5, "camera": None}
    assert ask("threshold", open=0.6, camera="door")["result"]["close"] == 0.6
    assert double.done == [
        ("thresholds", Thresholds(open=0.7, close=0.5), None),
        ("thresholds", Thresholds(open=0.6, close=0.6), "door"),
    ]


@pytest.mark.parametrize(
    "payload", [{"open": 0}, {"open": 1}, {"open": 0.5, "close": 0.6}, {"open": "high"}, {}, {"open": None}]
)
def test_thresholds_that_make_no_sense(ask, double, payload):
    answer = ask("threshold", **payload)
    assert not answer["ok"]
    assert "open" in answer["error"]
    assert not double.done


def test_restart_camera(ask, double):
    assert ask("restart-camera", camera="door")["ok"]
    assert ask("restart-camera", camera="attic")["error"] == "there is no camera 'attic'; known: door"
    assert double.done == [("restart", "door")]


def test_snapshot(ask, double):
    assert ask("snapshot", camera="door")["result"] == {"topic": "tvau/box/door/heatmap", "bytes": 10}
    assert double.done == [("published", "door", b"\xff\xd8 picture")]
