import math

import numpy as np
import pytest

from tvau_edge.runtime.detection.smoothing import Smoothing
from tvau_edge.runtime.detection.vision import Evidence


def smoothed(patches, scores):
    smoothing = Smoothing(patches)
    found = []
    for index, score in enumerate(scores):
        empty = np.zeros((2, 1, 1), np.float32)
        given = Evidence("door", index, 0.0, 0.0, empty, empty[0], score, empty[0])
        taken = smoothing.apply(given)
        assert taken.heatmap is given.heatmap
        assert taken.index == index
        found.append(taken.score)
    return found


def test_it_is_the_mean_of_the_last_patches():
    assert smoothed(2, [0.0, 1.0, 1.0, 0.0]) == [0.0, 0.5, 1.0, 0.5]
    assert smoothed(3, [0.9, 0.0, 0.0, 0.0]) == pytest.approx([0.9, 0.45, 0.3, 0.0])


def test_one_patch_leaves_scores_alone():
    assert smoothed(1, [0.2, 0.8]) == [0.2, 0.8]


def test_no_number_passes_through_and_out_again():
    first, second, third = smoothed(2, [math.nan, 0.4, 0.6])
    assert math.isnan(first)
    assert math.isnan(second)
    assert third == pytest.approx(0.5)


def test_after_a_gap_it_begins_anew():
    smoothing = Smoothing(2)
    empty = np.zeros((2, 1, 1), np.float32)
    for score in (1.0, 0.2):
        smoothing.forget()
        assert smoothing.apply(Evidence("c", 0, 0, 0, empty, empty[0], score, empty[0])).score == score
