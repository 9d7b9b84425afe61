import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.manifest import Thresholds

THRESHOLDS = Thresholds(open=0.6, close=0.4)
NOTHING = np.zeros((2, 1, 1), np.float32)


def evidence(index, score, time=None):
    time = index * 0.5 if time is None else time
    return Evidence("door", index, time, time, NOTHING, NOTHING[0], score, NOTHING[0])


def run(scores, window=4, **options):
    """What was told, as (index of the patch, update); the flush has the index None."""
    trigger = Trigger(THRESHOLDS, window, **options)
    told = [(index, trigger.push(evidence(index, score))) for index, score in enumerate(scores)]
    return [(index, update) for index, update in [*told, (None, trigger.flush())] if update is not None]


def phases(told):
    return [(index, update.phase) for index, update in told]


def test_opens_and_closes():
    told = run([0.1, 0.7, 0.9, 0.3, 0.1], close_after=2)
    assert phases(told) == [(1, "start"), (4, "end")]
    start, end = (update for _, update in told)
    assert start.event == end.event
    assert (start.started, start.ended, start.peak, start.patches) == (0.5, None, 0.7, 1)
    assert (end.started, end.ended, end.peak, end.patches) == (0.5, 2.0, 0.9, 4)
    assert end.camera == "door"


def test_the_thresholds_themselves():
    assert phases(run([0.6, 0.4, 0.4, 0.39], close_after=1)) == [(0, "start"), (3, "end")]
    assert run([0.5999]) == []


def test_between_the_thresholds_nothing_changes():
    assert run([0.5] * 20) == []
    assert phases(run([0.7] + [0.5] * 8, close_after=1, update_seconds=100)) == [(0, "start"), (None, "end")]


def test_opens_after_patches_in_a_row_and_counts_them():
    told = run([0.9, 0.1, 0.8, 0.7, 0.65], open_after=3)
    assert phases(told) == [(4, "start"), (None, "end")]
    start = told[0][1]
    assert (start.started, start.peak, start.patches) == (1.0, 0.8, 3)


def test_closes_only_after_patches_in_a_row():
    scores = [0.7, 0.1, 0.1, 0.5, 0.1, 0.1, 0.1]
    assert phases(run(scores, close_after=3, update_seconds=100)) == [(0, "start"), (6, "end")]


def test_a_second_event_is_another():
    told = run([0.9, 0.1, 0.7, 0.1], close_after=1)
    assert phases(told) == [(0, "start"), (1, "end"), (2, "start"), (3, "end")]
    first, _, second, _ = (update for _, update in told)
    assert first.event != second.event
    assert second.peak == 0.7


def test_updates_keep_their_distance():
    told = run([0.9] * 20, update_seconds=2)
    assert phases(told) == [
        (0, "start"),
        (4, "update"),
        (8, "update"),
        (12, "update"),
        (16, "update"),
        (None, "end"),
    ]


def test_the_window_holds_the_newest_and_repeats_the_first():
    told = run([0.9] + [0.1] * 5, window=4, close_after=5)
    start, end = (update for _, update in told)
    assert [item.index for item in start.window.evidence] == [0, 0, 0, 0]
    assert [item.index for item in end.window.evidence] == [2, 3, 4, 5]
    assert end.newest.index == 5


def test_what_shows_of_an_event_ends_before_it_is_quiet():
    told = run([0.9] * 6 + [0.1, 0.5, 0.1, 0.1], window=4, close_after=2)
    end = told[-1][1]
    assert ([item.index for item in end.window.evidence], end.quiet) == ([6, 7, 8, 9], 2)
    assert [item.index for item in end.shown.evidence] == [4, 5, 6, 7]
    # Where fewer are known, the first is repeated; an event that is cut off has no quiet end.
    start, end = (update for _, update in run([0.9, 0.1, 0.1], window=4, close_after=2))
    assert ([item.index for item in end.shown.evidence], end.quiet) == ([0, 0, 0, 0], 2)
    assert (start.shown, start.quiet) == (start.window, 0)
    assert run([0.9, 0.9], window=4, close_after=2)[-1][1].quiet == 0


def test_a_quiet_end_that_is_longer_than_a_window_is_cut_by_a_window():
    end = run([0.9] * 6 + [0.1] * 30, window=4, close_after=30)[-1][1]
    assert [item.index for item in end.shown.evidence] == [28, 29, 30, 31]
    assert (end.quiet, end.patches) == (4, 36)


def test_the_end_of_a_source_closes_and_forgets():
    trigger = Trigger(THRESHOLDS, 3)
    assert trigger.flush() is None
    trigger.push(evidence(0, 0.9))
    end = trigger.flush()
    assert end is not None
    assert (end.phase, end.ended) == ("end", 0.0)
    assert trigger.flush() is None
    again = trigger.push(evidence(7, 0.9))
    assert again is not None
    assert [item.index for item in again.window.evidence] == [7, 7, 7]


def test_current():
    trigger = Trigger(THRESHOLDS, 3)
    assert trigger.current is None
    start = trigger.push(evidence(0, 0.9))
    trigger.push(evidence(1, 0.95))
    current = trigger.current
    assert start is not None
    assert current is not None
    assert (current.event, current.phase, current.peak, current.patches) == (start.event, "update", 0.95, 2)
    trigger.flush()
    assert trigger.current is None


def test_a_clock_that_is_set_back():
    trigger = Trigger(THRESHOLDS, 3, update_seconds=5)
    trigger.push(evidence(0, 0.9, time=1000))
    update = trigger.push(evidence(1, 0.9, time=10))
    assert update is not None
    assert update.phase == "update"
    assert trigger.push(evidence(2, 0.9, time=12)) is None
    end = trigger.flush()
    assert end is not None
    assert end.ended == end.started == 1000


def test_a_score_that_is_no_number_does_not_hold_an_event_open():
    assert phases(run([0.9, float("nan"), float("nan")], close_after=2)) == [(0, "start"), (2, "end")]
    assert run([float("nan")] * 3) == []


@given(
    st.lists(st.floats(0, 1), max_size=60),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0.1, 10),
    st.integers(2, 8),
)
def test_every_event_has_one_start_one_end_and_a_true_peak(
    scores, open_after, close_after, update_seconds, window
):
    told = run(scores, window, open_after=open_after, close_after=close_after, update_seconds=update_seconds)
    assert len({update.event for _, update in told}) == sum(update.phase == "start" for _, update in told)
    open_event = None
    for index, update in told:
        assert len(update.window.evidence) == window
        last = update.newest.index
        assert index in (last, None)
        first = round(update.started / 0.5)
        assert update.patches == last - first + 1
        assert update.peak == max(scores[first : last + 1])
        if update.phase == "start":
            assert open_event is None
            assert min(scores[first : last + 1]) >= 0.6
            open_event = update.event
        assert update.event == open_event
        if update.phase == "end":
            assert index is None or max(scores[last - close_after + 1 : last + 1]) < 0.4
            open_event = None
    assert open_event is None


def test_thresholds_must_be_in_order():
    with pytest.raises(ValueError, match="above open"):
        Thresholds(open=0.4, close=0.6)
