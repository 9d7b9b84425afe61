import io
import json
import logging

import pytest

from tvau_edge.runtime.service import logs as module
from tvau_edge.runtime.service.logs import JsonLines, Unrepeated, make_handler


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock, which a test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log():
    """A logger and the lines that it writes."""
    stream = io.StringIO()
    logger = logging.Logger("tvau_edge.test")
    handler = make_handler(stream, as_json=False)
    logger.addHandler(handler)
    logger.lines = lambda: stream.getvalue().splitlines()
    return logger


def test_what_repeats_is_written_once_and_then_counted(log, clock):
    for _ in range(50):
        log.warning("camera %s: it is away; trying again in %.1f s", "door", clock[0] / 100)
        clock[0] += 10
    assert log.lines() == [
        "WARNING: camera door: it is away; trying again in 10.0 s",
        "WARNING: camera door: it is away; trying again in 13.0 s (and 29 times more in the last 300 s)",
    ]


def test_what_differs_is_written(log, clock):
    log.warning("camera %s is away", "door")
    log.warning("camera %s is away", "yard")
    log.error("camera %s is away", "door")
    log.warning("camera %s is back", "door")
    assert len(log.lines()) == 4


def test_steps_are_not_held_back(log, clock):
    for _ in range(3):
        log.info("a step")
    assert len(log.lines()) == 3


def test_memory_is_bounded(log, clock):
    for number in range(1000):
        log.warning("message %s", str(number))
    assert len(log.handlers[0].filters[0]._told) <= 256


def test_odd_arguments(log, clock):
    log.warning("%(camera)s is away", {"camera": "door"})
    log.warning("100%")
    log.warning("a %s", None)
    assert log.lines() == ["WARNING: door is away", "WARNING: 100%", "WARNING: a None"]


def test_json_is_a_line_each(clock):
    stream = io.StringIO()
    logger = logging.Logger("tvau_edge.test")
    logger.addHandler(make_handler(stream, as_json=True))
    logger.warning("camera %s: \n two lines, \x00 and ü", "door")
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("a fault")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "camera door: \n two lines, \x00 and ü"
    assert (first["level"], first["logger"], first["thread"]) == ("warning", "tvau_edge.test", "MainThread")
    assert first["time"].endswith("Z")
    assert "exception" not in first
    assert "ValueError: why" in second["exception"]


def test_a_terminal_gets_no_json():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    handler = make_handler(Terminal(), as_json=False)
    assert not isinstance(handler.formatter, JsonLines)
    assert any(isinstance(one, Unrepeated) for one in handler.filters)
