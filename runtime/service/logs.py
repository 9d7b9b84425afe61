"""Logs that a person or a log store can use: a line of text or of JSON each, and none that repeats itself."""

import json
import logging
import threading
import time
from collections import OrderedDict
from datetime import datetime, timezone
from typing import TextIO

from rich.console import Console
from rich.logging import RichHandler

from tvau_edge.runtime.verdict import rfc3339

_QUIET_SECONDS = 300.0  # in which the same message is written once
_REMEMBERED = 256  # messages


def make_handler(stream: TextIO, *, as_json: bool) -> logging.Handler:
    """A handler that writes lines without repeating itself: for people at a terminal, else plain, or as JSON."""
    handler: logging.Handler = logging.StreamHandler(stream)
    if as_json:
        handler.setFormatter(JsonLines())
    elif stream.isatty():
        handler = RichHandler(console=Console(file=stream), show_path=False, rich_tracebacks=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(Unrepeated())
    return handler


class Unrepeated(logging.Filter):
    """Lets a message pass once in a while, and then says how often it was held back.

    The same message is one of the same logger and level with the same text, but for the numbers in its arguments: a
    camera that is tried again after 12.3 s and then after 59.2 s has said the same.

    Args:
        seconds: in which it passes once.
    """

    def __init__(self, seconds: float = _QUIET_SECONDS) -> None:
        super().__init__()
        self._seconds = seconds
        self._told: OrderedDict[tuple[object, ...], tuple[float, int]] = (
            OrderedDict()
        )  # when last, held since
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written."""
        if record.levelno < logging.WARNING:
            return True
        values = record.args if isinstance(record.args, tuple) else ()
        words = tuple(str(value) for value in values if not isinstance(value, (int, float)))
        key = (record.name, record.levelno, str(record.msg), words)
        now = time.monotonic()
        with self._lock:
            told, held = self._told.get(key, (-self._seconds, 0))
            if now - told < self._seconds:
                self._told[key] = told, held + 1
                return False
            self._told[key] = now, 0
            self._told.move_to_end(key)
            while len(self._told) > _REMEMBERED:
                self._told.popitem(last=False)
        if held:
            record.msg = f"{record.getMessage()} (and {held} times more in the last {now - told:.0f} s)"
            record.args = ()
        return True


class JsonLines(logging.Formatter):
    """One JSON object per record: `time`, `level`, `logger`, `message`, `thread`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line of JSON."""
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        entry = {
            "time": rfc3339(moment),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "thread": record.threadName,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)
