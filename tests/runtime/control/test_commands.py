"""Commands: only what is enabled, valid and not too frequent reaches a handler, whatever comes."""

import json
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from tvau_edge.runtime.control import commands as module
from tvau_edge.runtime.control.commands import Commands, Nothing, Payload
from tvau_edge.runtime.control.device_commands import register
from tvau_edge.runtime.errors import ConfigError, SourceError


class Raise(Payload):
    level: float = Field(gt=0, lt=1)
    camera: str | None = None


class Answers:
    """Collects what is answered."""

    def __init__(self) -> None:
        self.given: list[dict] = []
        self._changed = threading.Condition()

    def __call__(self, payload: bytes) -> None:
        with self._changed:
            self.given.append(json.loads(payload))
            self._changed.notify_all()

    def wait(self, count: int = 1) -> list[dict]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.given) >= count, 30), self.given
        return self.given


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def make() -> Iterator:
    running: list[Commands] = []

    def start(handler=lambda payload: None, enabled=("raise",), model=Raise, **limits) -> Commands:
        commands = Commands(enabled, **limits)
        commands.register("raise", model, handler)
        commands.start()
        running.append(commands)
        return commands

    yield start
    for commands in running:
        commands.close()


def test_a_handler_gets_what_was_sent_and_its_result_is_answered(make, answers):
    commands = make(lambda payload: payload)
    commands.receive("raise", b'{"level": 0.5}', answers)
    assert answers.wait() == [
        {"schema": "tvau.answer/1", "command": "raise", "ok": True, "result": {"level": 0.5, "camera": None}}
    ]


def test_no_bytes_are_an_empty_payload(make, answers):
    make(model=Nothing).receive("raise", b"", answers)
    assert answers.wait()[0]["ok"]


@pytest.mark.parametrize(
    ("name", "payload", "expected"),
    [
        ("raise", b'{"level": 2}', "level = 2: Input should be less than 1"),
        ("raise", b'{"levl": 0.5}', "levl: unknown key; did you mean 'level'?"),
        ("raise", b"{}", "level: is missing"),
        ("raise", b"\xff\x00", "Invalid JSON"),
        ("raise", b"[" * 10_000, "Invalid JSON"),
        ("raise", b" " * 20_000, "larger than 16384"),
        ("lower", b"{}", "no command of this name is enabled (commands.enabled: raise)"),
        ("x" * 5000, b"{}", "no command of this name"),
        ("", b"{}", "no command of this name"),
    ],
)
def test_what_is_wrong_is_answered_and_reaches_nobody(make, answers, name, payload, expected):
    called: list[object] = []
    commands = make(called.append)
    commands.receive(name, payload, answers)
    (answer,) = answers.wait()
    assert not answer["ok"]
    assert expected in answer["error"]
    assert len(json.dumps(answer)) < 1500
    assert not called
    assert commands.refused == 1


def test_a_command_that_is_not_enabled_is_refused(make, answers):
    make(enabled=()).receive("raise", b'{"level": 0.5}', answers)
    assert "commands.enabled: none" in answers.wait()[0]["error"]


def test_enabling_what_nobody_knows_is_an_error():
    commands = Commands(["rise"])
    commands.register("raise", Raise, lambda payload: None)
    with pytest.raises(ConfigError, match=r"commands\.enabled = 'rise'.*known: raise"):
        commands.start()


def test_registering_twice_is_an_error(make):
    with pytest.raises(ValueError, match="already"):
        make().register("raise", Raise, lambda payload: None)


def test_a_handler_says_why_not(make, answers):
    def fail(payload: Raise) -> None:
        raise SourceError("camera door is not there")

    make(fail).receive("raise", b'{"level": 0.5}', answers)
    assert answers.wait()[0]["error"] == "camera door is not there"


def test_a_handler_that_breaks_tells_the_log_and_the_next_one_runs(make, answers, caplog):
    def fail(payload: Raise) -> None:
        if payload.camera is None:
            raise KeyError("secret detail")

    commands = make(fail)
    commands.receive("raise", b'{"level": 0.5}', answers)
    assert "the device's log" in answers.wait()[0]["error"]
    assert "secret detail" in caplog.text
    commands.receive("raise", b'{"level": 0.5, "camera": "door"}', answers)
    assert answers.wait(2)[1]["ok"]


def test_haste_is_refused_and_answered_once(make, answers, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    commands = make(per_minute=3)
    for _ in range(10):
        commands.receive("raise", b'{"level": 0.5}', answers)
    given = answers.wait(4)
    assert [answer["ok"] for answer in given].count(True) == 3
    assert "more than 3" in next(answer["error"] for answer in given if not answer["ok"])
    assert commands.refused == 7
    now[0] += 61
    commands.receive("raise", b'{"level": 0.5}', answers)
    assert [answer["ok"] for answer in answers.wait(5)].count(True) == 4


def test_a_handler_that_hangs_holds_up_no_other_and_its_queue_is_bounded(make, answers):
    release, entered = threading.Event(), threading.Event()

    def hang(payload: Raise) -> None:
        entered.set()
        release.wait(30)

    commands = Commands(["raise", "other"], per_minute=1000)
    commands.register("raise", Raise, hang)
    commands.register("other", Nothing, lambda payload: None)
    commands.start()
    commands.receive("raise", b'{"level": 0.5}', answers)
    assert entered.wait(30)
    for _ in range(9):
        commands.receive("raise", b'{"level": 0.5}', answers)
    assert "wait already" in answers.wait()[0]["error"]
    commands.receive("other", b"", answers)
    assert answers.wait(2)[1]["command"] == "other"
    release.set()
    assert len(answers.wait(11)) == 11
    commands.close()


def test_after_closing_nothing_is_taken(make, answers):
    called: list[object] = []
    commands = make(called.append)
    commands.close()
    commands.receive("raise", b'{"level": 0.5}', answers)
    assert not answers.wait()[0]["ok"]
    assert not called


@settings(max_examples=300, deadline=None)
@given(name=st.text(max_size=80) | st.just("raise"), payload=st.binary(max_size=200))
def test_whatever_comes_is_answered_and_nothing_is_raised(name, payload):
    commands = Commands(["raise"])
    commands.register("raise", Raise, lambda value: None)  # not started: nobody serves
    answers = Answers()
    commands.receive(name, payload, answers)
    assert all(answer["error"] for answer in answers.given)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
payloads = st.binary(max_size=300) | st.one_of(
    json_values, st.fixed_dictionaries({}, optional=dict.fromkeys(("open", "close", "camera"), json_values))
).map(lambda value: json.dumps(value).encode())


class Device:
    """A pipeline's and a publisher's double, which holds what it is told to its promises."""

    root = "tvau/box"

    def set_thresholds(self, thresholds, camera=None):
        assert 0 < thresholds.close <= thresholds.open < 1

    def restart_camera(self, camera):
        assert isinstance(camera, str)

    def snapshot(self, camera):
        return b""

    def publish_heatmap(self, camera, jpeg):
        pass


REAL = ("threshold", "restart-camera", "snapshot")


@pytest.fixture(scope="module")
def real_commands() -> Commands:
    """The commands of a device, not started."""
    commands = Commands(REAL, per_minute=10**9)
    register(commands, Device(), Device())
    return commands


def obey(commands: Commands, name: str, payload: bytes) -> None:
    answers = Answers()
    commands.receive(name, payload, answers)
    for command in commands._commands.values():  # we serve here, on this thread
        command.waiting.put_nowait(None)
        commands._serve(command)
    assert len(answers.given) == 1
    assert answers.given[0]["ok"] or "log" not in answers.given[0]["error"]


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from([*REAL, "x"]), payload=payloads)
def test_payloads_of_all_kinds_bring_no_traceback(real_commands, name, payload):
    """Each is obeyed or answered with an error, and nothing breaks."""
    obey(real_commands, name, payload)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000, deadline=None)
@given(name=st.sampled_from([*REAL, "x"]), payload=payloads)
def test_ten_thousand_payloads_bring_no_traceback(real_commands, name, payload):
    obey(real_commands, name, payload)
