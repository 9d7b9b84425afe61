from uuid import uuid4

import numpy as np
import pytest

from tvau_edge.runtime.errors import EvidenceError
from tvau_edge.runtime.language.recent_events import RecentEvent, RecentEvents


def event(size=100):
    return RecentEvent(uuid4(), "door", {"p_v": np.zeros(size, np.uint8)})


@pytest.mark.parametrize(("most", "max_bytes"), [(3, 10_000), (100, 350)], ids=["events", "bytes"])
def test_the_oldest_are_forgotten(most, max_bytes):
    recent = RecentEvents(most, max_bytes)
    events = [event() for _ in range(5)]
    for one in events:
        recent.keep(one)
    assert (len(recent), recent.bytes) == (3, 300)
    assert recent.get(events[-1].event) is events[-1]
    with pytest.raises(EvidenceError, match=f"newest first: {events[4].event}, {events[3].event}, "):
        recent.get(events[0].event)


def test_one_that_is_too_large_is_not_kept():
    recent = RecentEvents(10, 50)
    recent.keep(event())
    assert (len(recent), recent.bytes) == (0, 0)


def test_an_event_takes_its_own_place():
    recent, one = RecentEvents(10, 1000), event()
    recent.keep(one)
    again = RecentEvent(one.event, "door", {"p_v": np.zeros(10, np.uint8)})
    recent.keep(again)
    assert recent.bytes == 10
    assert recent.get(one.event) is again
