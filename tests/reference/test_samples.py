from dataclasses import fields

import cv2
import numpy as np
import pytest

from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.behaviours import ABNORMAL
from tvau_edge.reference.samples import (
    ATTRIBUTES,
    GEOMETRY,
    KINDS,
    anomaly_of,
    first_seed,
    make_sample,
    samples,
)


def test_a_clip_is_cut_into_temporal_patches(drawn):
    abnormal, normal = drawn
    rows, columns = GEOMETRY.grid
    count = len(abnormal.frames)
    assert abnormal.frames.shape == (16, 2, GEOMETRY.height, GEOMETRY.width, 3)
    assert abnormal.attributes.shape == (count, len(ATTRIBUTES), rows, columns)
    assert abnormal.abnormal.shape == (count, rows, columns)
    assert abnormal.anomaly == anomaly_of(0)
    assert normal.anomaly is None
    assert abnormal.labels.any()
    assert not normal.labels.any()
    assert not normal.abnormal.any()


def test_classes_stay_within_their_attribute(drawn):
    for sample in drawn:
        for index, classes in enumerate(ATTRIBUTES.values()):
            assert sample.attributes[:, index].max() < classes


def test_where_something_is_abnormal_something_stands(drawn):
    sample = drawn[0]
    mostly = sample.abnormal > 0.1  # far away, a person fills little of a cell
    assert mostly.any()
    # Attributes are those of the second frame; in the first, who runs was a cell away.
    people = (sample.attributes[:, 0] == KINDS.index("person")).astype(np.uint8)
    near = np.stack([cv2.dilate(patch, np.ones((3, 3), np.uint8)) for patch in people])
    assert near[mostly].mean() > 0.9  # who leaves the picture between the two is gone


def test_windows_hold_the_labels_of_their_patches(drawn):
    for sample in drawn:
        for window in sample.windows:
            assert window.start + GEOMETRY.temporal_patches <= len(sample.frames)
            labels = sample.labels[window.start : window.start + GEOMETRY.temporal_patches]
            if window.abnormal is False:
                assert not labels.any()
            assert window.answers["anomaly"] == ("No." if window.abnormal is False else "Yes.")


def test_a_cached_clip_is_the_drawn_one(drawn, cache):
    fresh, cached = make_sample(1, anomaly_of(1)), next(samples([1], cache, workers=1))
    for field in fields(fresh):
        a, b = getattr(fresh, field.name), getattr(cached, field.name)
        np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else pytest.approx(a == b)


def test_half_the_clips_are_normal_and_anomalies_take_turns():
    names = [anomaly_of(seed) for seed in range(2 * len(ABNORMAL))]
    assert names[1::2] == [None] * len(ABNORMAL)
    assert names[::2] == list(ABNORMAL)


def test_splits_start_apart():
    assert first_seed("train") < first_seed("validation") < first_seed("test")
    with pytest.raises(TvauError, match=r"--split dev: unknown; known: train, validation, test"):
        first_seed("dev")
