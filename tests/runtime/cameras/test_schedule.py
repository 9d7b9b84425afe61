from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvau_edge.runtime.cameras.schedule import Schedule, parse_span

MONDAY = datetime(2026, 11, 23)


def at(day, clock):
    hours, minutes = map(int, clock.split(":"))
    return MONDAY + timedelta(days=day, hours=hours, minutes=minutes)


@pytest.mark.parametrize(
    ("span", "inside", "outside"),
    [
        ("07:00-19:00", [(0, "07:00"), (6, "18:59")], [(0, "06:59"), (0, "19:00")]),
        ("mon-fri 07:00-19:00", [(0, "12:00"), (4, "12:00")], [(5, "12:00"), (6, "12:00")]),
        (
            "sat,sun 22:00-02:00",
            [(5, "23:00"), (6, "01:59"), (0, "01:00")],
            [(5, "01:00"), (0, "02:00"), (0, "22:30")],
        ),
        ("fri-mon 00:00-24:00", [(4, "00:00"), (0, "23:59")], [(1, "00:00"), (3, "23:59")]),
        ("sun 23:00-01:00", [(6, "23:30"), (0, "00:59")], [(0, "01:00"), (6, "00:30")]),
        ("wed 9:05 - 9:06", [(2, "09:05")], [(2, "09:06")]),
        ("MON 00:00-00:01", [(0, "00:00")], [(0, "00:01")]),
    ],
)
def test_spans(span, inside, outside):
    schedule = Schedule([span])
    for day, clock in inside:
        assert schedule.holds(at(day, clock)), (day, clock)
    for day, clock in outside:
        assert not schedule.holds(at(day, clock)), (day, clock)


def test_without_spans_every_moment_holds():
    assert Schedule([]).holds(MONDAY)


def test_spans_add_up():
    schedule = Schedule(["mon 08:00-09:00", "mon 10:00-11:00"])
    assert [schedule.holds(at(0, f"{hour:02}:30")) for hour in (7, 8, 9, 10, 11)] == [
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is no span of time"),
        ("always", "is no span of time"),
        ("07:00", "is no span of time"),
        ("mon-fri", "is no span of time"),
        ("xyz 07:00-08:00", "'xyz' is no day"),
        ("mon-xyz 07:00-08:00", "is no day"),
        ("mon, tue 07:00-08:00", "is no span of time"),
        ("07:60-08:00", "07:60 is no time of day"),
        ("25:00-26:00", "25:00 is no time of day"),
        ("24:30-01:00", "24:30 is no time of day"),
        ("07:00-07:00", "is empty; for a whole day write 00:00-24:00"),
        ("24:00-07:00", "is empty"),
    ],
)
def test_what_is_no_span_says_how_it_is_written(text, expected):
    with pytest.raises(ValueError, match=expected):
        parse_span(text)


@given(st.text(max_size=30))
def test_any_text_is_a_span_or_a_value_error(text):
    try:
        span = parse_span(text)
    except ValueError:
        return
    assert 0 <= span.start < span.end <= 2880


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1439), st.integers(1, 1440), st.integers(0, 6))
def test_a_span_holds_for_as_long_as_it_says(start, length, day):
    end = (start + length) % 1440 or 1440
    if start == end:
        return
    text = f"{('mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun')[day]} {start // 60:02}:{start % 60:02}"
    schedule = Schedule([f"{text}-{end // 60:02}:{end % 60:02}"])
    held = sum(schedule.holds(MONDAY + timedelta(minutes=minute)) for minute in range(7 * 1440))
    assert held == length
