from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest

from tvau_edge.reference.anomalies import ABNORMAL
from tvau_edge.reference.clip import HELD_OUT, Clip, cell_name
from tvau_edge.reference.narration import MIN_AREA
from tvau_edge.reference.scene import HEIGHT, WIDTH


def first(clip, count=3, every=8):
    return list(islice(clip.frames(every), count))


def test_a_seed_gives_the_same_clip_each_time():
    for a, b in zip(first(Clip.draw(3, ("run",))), first(Clip.draw(3, ("run",))), strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.objects == b.objects


def test_seeds_differ():
    a, b = first(Clip.draw(3, ("run",)), 1)[0], first(Clip.draw(4, ("run",)), 1)[0]
    assert (a.image != b.image).mean() > 0.5


def test_every_frame_is_the_same_whether_or_not_others_are_skipped():
    every = list(islice(Clip.draw(5).frames(), 9))
    skipped = list(islice(Clip.draw(5).frames(every=4), 3))
    for index, frame in enumerate(skipped):
        np.testing.assert_array_equal(frame.image, every[4 * index].image)


@pytest.mark.parametrize("seed", [0, 7, 12])
def test_boxes_and_areas_are_those_of_the_mask(seed):
    for frame in first(Clip.draw(seed, ("fight",))):
        assert frame.image.shape == (HEIGHT, WIDTH, 3)
        assert frame.image.dtype == frame.mask.dtype == np.uint8
        assert {thing.number for thing in frame.objects} == set(np.unique(frame.mask)) - {0}
        for thing in frame.objects:
            ys, xs = np.nonzero(frame.mask == thing.number)
            assert thing.area == len(ys)
            assert thing.box == (xs.min(), ys.min(), xs.max(), ys.max())


@pytest.mark.parametrize("seed", [0, 6])
def test_the_mask_is_where_pixels_differ_from_the_empty_street(seed):
    clip = Clip.draw(seed, ("run",))
    clip = replace(clip, layout=replace(clip.layout, light="day", weather="clear", noise=0.0))
    for frame, empty in zip(first(clip), first(replace(clip, actors=())), strict=True):
        different = np.abs(frame.image.astype(int) - empty.image).max(axis=2) > 12
        mask = frame.mask > 0
        assert not empty.mask.any()
        assert different[mask].mean() > 0.85
        # Beyond an object there is only its edge, smoothed, and its shadow, below it.
        around = cv2.dilate(mask.astype(np.uint8), np.ones((61, 121), np.uint8)) > 0
        assert not different[~around].any()


@pytest.mark.parametrize("anomaly", ABNORMAL)
def test_an_anomaly_is_to_be_seen(anomaly):
    seen = []
    for seed in (20, 21, 22):
        frames = first(Clip.draw(seed, (anomaly,)), count=12)
        seen += [
            any(thing.state.abnormal and thing.area >= MIN_AREA for thing in frame.objects)
            for frame in frames
        ]
    assert np.mean(seen) > 0.3


def test_a_normal_clip_shows_nothing_abnormal():
    for seed in (31, 33, 35):
        assert not any(thing.state.abnormal for f in first(Clip.draw(seed)) for thing in f.objects)


def test_streets_of_held_out_clips_are_never_trained_on():
    trained = {Clip.draw(seed).layout.seed for seed in range(50)}
    held = {Clip.draw(HELD_OUT + seed).layout.seed for seed in range(50)}
    assert max(trained) < 10_000 <= min(held)


def test_an_unknown_anomaly_is_refused():
    with pytest.raises(ValueError, match=r"unknown anomaly 'yodel'.*run"):
        Clip.draw(0, ("yodel",))


@pytest.mark.parametrize(
    ("box", "name"),
    [
        ((0, 0, 10, 10), "upper left"),
        ((300, 170, 340, 190), "center"),
        ((600, 330, 639, 359), "lower right"),
        ((0, 170, 20, 190), "middle left"),
    ],
)
def test_ninths_have_names(box, name):
    assert cell_name(box) == name
