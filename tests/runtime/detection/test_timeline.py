import threading
from uuid import uuid4

import numpy as np
import pytest

from tvau_edge.runtime.detection.timeline import Timeline
from tvau_edge.runtime.detection.vision import Evidence


def evidence(pts, score=0.5):
    h_c, heat, p_v = np.zeros((2, 1, 1)), np.full((1, 1), score, np.float32), np.zeros((1, 4))
    return Evidence("door", 0, pts, 1000 + pts, h_c, heat, score, p_v)


@pytest.fixture
def timeline():
    line = Timeline("door")
    for pts in (0.5, 1.0, 1.5):
        line.add(evidence(pts, pts / 2), None)
    return line


@pytest.mark.parametrize(
    ("pts", "expected"),
    [(0.0, 0.5), (0.5, 0.5), (0.51, 1.0), (1.0, 1.0), (1.4, 1.5), (1.5, 1.5), (99.0, 1.5)],
)
def test_a_frame_belongs_to_the_patch_that_ends_at_or_after_it(timeline, pts, expected):
    assert timeline.at(pts).pts == expected


def test_nothing_seen():
    assert Timeline("door").at(1.0) is None


def test_moments_keep_what_is_drawn_and_leave_out_what_is_big(timeline):
    event = uuid4()
    timeline.add(evidence(2.0, 0.75), event)
    moment = timeline.moments[-1]
    assert (moment.pts, moment.score, moment.event) == (2.0, 0.75, event)
    assert moment.heatmap[0, 0] == np.float32(0.75)
    assert not hasattr(moment, "p_v")


def test_answers_by_event(timeline):
    first, second = uuid4(), uuid4()
    timeline.explain(first, {"target": "a person"})
    timeline.explain(second, {"target": "a dog"})
    timeline.explain(first, {"target": "two persons"})
    assert timeline.answers == {first: {"target": "two persons"}, second: {"target": "a dog"}}


def test_it_is_read_while_it_grows(timeline):
    def grow():
        for number in range(2000):
            timeline.add(evidence(2 + number / 10), None)

    writer = threading.Thread(target=grow)
    writer.start()
    found = [timeline.at(50.0).pts for _ in range(2000)]
    writer.join()
    assert found == sorted(found)  # the answer only comes closer
    assert timeline.at(50.0).pts == pytest.approx(50.0)


def test_a_bounded_one_keeps_the_newest():
    line = Timeline("door", most=3)
    events = [uuid4() for _ in range(5)]
    for number, event in enumerate(events):
        line.add(evidence(float(number)), event)
        line.explain(event, {"target": str(number)})
    assert [moment.pts for moment in line.moments] == [2.0, 3.0, 4.0]
    assert list(line.answers) == events[2:]
    assert line.at(0.0).pts == 2.0
