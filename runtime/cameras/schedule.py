"""When a camera is watched: spans of the week in the device's time, such as "mon-fri 07:00-19:00"."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"(?:(?P<days>[a-z,-]+)\s+)?(?P<from>\d\d?:\d\d)\s*-\s*(?P<to>\d\d?:\d\d)")
_DAY = 24 * 60  # minutes
_FORM = 'write it like "mon-fri 07:00-19:00", "sat,sun 22:00-02:00" or "00:00-06:00"'


@dataclass(frozen=True, slots=True)
class Span:
    """The same span of several days.

    Attributes:
        days: on which it begins, 0 for Monday.
        start: minutes after midnight.
        end: minutes after midnight; past 1440 where it ends on the next day.
    """

    days: frozenset[int]
    start: int
    end: int


class Schedule:
    """Tells whether a moment lies in one of several spans; without any, every moment does.

    Args:
        spans: as they are written in a configuration.

    Raises:
        ValueError: one of them cannot be read; says which and how it is written.
    """

    def __init__(self, spans: Iterable[str]) -> None:
        self._spans = [parse_span(text) for text in spans]

    def holds(self, moment: datetime) -> bool:
        """Whether the camera is watched at a moment of the device's own time zone."""
        minute = moment.hour * 60 + moment.minute
        day = moment.weekday()
        return not self._spans or any(
            (day in span.days and span.start <= minute < span.end)
            or ((day - 1) % 7 in span.days and minute < span.end - _DAY)
            for span in self._spans
        )


def local_now() -> datetime:
    """The moment in the device's time zone."""
    return datetime.now().astimezone()


def parse_span(text: str) -> Span:
    """Read "mon-fri 07:00-19:00"; without days it holds on each.

    Raises:
        ValueError: it is written otherwise.
    """
    match = _SPAN.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r} is no span of time; {_FORM}")
    start, end = _minutes(match["from"], text), _minutes(match["to"], text)
    if start in (_DAY, end):
        raise ValueError(f"{text!r} is empty; for a whole day write 00:00-24:00")
    return Span(_days(match["days"], text), start, end if end > start else end + _DAY)


def _minutes(clock: str, text: str) -> int:
    hours, minutes = map(int, clock.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY:
        raise ValueError(f"{text!r}: {clock} is no time of day")
    return hours * 60 + minutes


def _days(names: str | None, text: str) -> frozenset[int]:
    if names is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in names.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{text!r}: {part!r} is no day; days are {', '.join(DAYS)}, or mon-fri")
        begin = DAYS.index(first)
        count = (DAYS.index(last) - begin) % 7 + 1 if dash else 1
        found |= {(begin + k) % 7 for k in range(count)}
    return frozenset(found)
