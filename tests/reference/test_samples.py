from dataclasses import fields

import cv2
import numpy as np
import pytest

from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.anomalies import ABNORMAL
from tvau_edge.reference.samples import (
    ATTRIBUTES,
    GEOMETRY,
    KINDS,
    SHOWN,
    SPLITS,
    anomalies_of,
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
    assert abnormal.anomalies == anomalies_of(abnormal.seed) != ()
    assert normal.anomalies == ()
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
            assert window.answers["anomaly"] == ["No." if window.abnormal is False else "Yes."]


def test_a_cached_clip_is_the_drawn_one(drawn, cache):
    fresh, cached = make_sample(1, anomalies_of(1)), next(samples([1], cache, workers=1))
    for field in fields(fresh):
        a, b = getattr(fresh, field.name), getattr(cached, field.name)
        np.testing.assert_array_equal(a, b) if isinstance(a, np.ndarray) else pytest.approx(a == b)


def test_cells_that_show_something_abnormal_tell_which_behaviour(drawn):
    abnormal, normal = drawn
    names = {list(ABNORMAL)[number - 1] for number in np.unique(abnormal.behaviour) if number}
    assert names
    assert names <= set(abnormal.anomalies)
    np.testing.assert_array_equal(abnormal.behaviour > 0, abnormal.abnormal > 0)
    assert not normal.behaviour.any()


@pytest.mark.parametrize("split", SPLITS)
def test_half_the_clips_are_normal_and_the_splits_anomalies_take_turns(split):
    kinds = SHOWN[split]
    found = [anomalies_of(first_seed(split) + index) for index in range(2 * len(kinds) * 20)]
    assert set(found[1::2]) == {()}
    firsts = [anomalies[0] for anomalies in found[::2]]
    assert {firsts.count(kind) for kind in kinds} == {20}
    several = [anomalies for anomalies in found[::2] if len(anomalies) == 2]
    assert 0.15 < len(several) / len(firsts) < 0.45
    assert all(len(set(anomalies)) == len(anomalies) for anomalies in found)
    assert {anomaly for anomalies in found for anomaly in anomalies} == set(kinds)


def test_no_split_shows_the_anomalies_of_another():
    train, validation, test = (set(SHOWN[split]) for split in ("train", "validation", "test"))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert train | validation | test == set(ABNORMAL)
    assert len(ABNORMAL) >= 16


def test_splits_start_apart():
    assert first_seed("train") < first_seed("validation") < first_seed("test")
    with pytest.raises(TvauError, match=r"--split dev: unknown; known: pretrain, train, validation, test"):
        first_seed("dev")
