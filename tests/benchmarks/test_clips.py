import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.benchmarks.clips import LabelledClip, Stretch, component_boxes, spans


def clip(labels, *stretches):
    return LabelledClip("c", "test", None, (8, 4), 10.0, np.array(labels, dtype=bool), stretches=stretches)


def test_spans_hold_both_ends():
    assert spans([0, 1, 1, 0, 1]) == [(1, 2), (4, 4)]
    assert spans([]) == []


@given(st.lists(st.booleans(), max_size=30))
def test_spans_say_all_there_is(flags):
    again = np.zeros(len(flags), dtype=bool)
    for first, last in spans(flags):
        assert again[first : last + 1].sum() == 0
        again[first : last + 1] = True
    assert again.tolist() == flags


def test_parts_of_a_mask_the_largest_box_first():
    mask = np.zeros((6, 9), dtype=bool)
    mask[0, 0] = True
    mask[2:5, 3:5] = mask[5, 5] = True  # a corner joins
    assert component_boxes(mask) == [(3, 2, 5, 5), (0, 0, 0, 0)]
    assert component_boxes(np.zeros((2, 2), dtype=bool)) == []


@pytest.mark.parametrize(
    ("abnormal", "expected"),
    [(0, False), (1, None), (2, True), (8, True)],
    ids=["none", "12 %", "25 %", "all"],
)
def test_a_stretch_without_description_is_judged_by_its_labels(abnormal, expected):
    assert clip([True] * abnormal + [False] * (8 - abnormal)).stretch(0, 7).abnormal is expected


def test_a_description_fits_one_frame_beside():
    described = Stretch(10, 19, None, {"anomaly": ("Yes.",)})
    long = clip([True] * 40, described)
    assert long.stretch(11, 20) is described
    assert long.stretch(12, 21).answers == {}
    assert long.stretch(12, 21).abnormal is True


def test_a_clip_without_masks_is_nowhere_abnormal():
    assert not clip([False]).abnormal(0).any()
    assert clip([False]).abnormal(0).shape == (4, 8)
    assert clip([False]).regions().shape == (0, 6)
