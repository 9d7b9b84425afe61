import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvau_edge.quantize.variety import Candidate, Pool, choose, describe


def candidate(index, frames):
    return Candidate("video", float(index), index, frames, describe(frames))


def flat(level, second=None):
    frames = np.full((2, 28, 56, 3), level, np.uint8)
    if second is not None:
        frames[1] = second
    return frames


def test_brightness_and_motion_are_those_of_the_frames():
    still, moving = candidate(0, flat(51)), candidate(1, flat(51, 102))
    assert still.brightness == pytest.approx(0.2)
    assert still.motion == 0
    assert not still.moves
    assert moving.brightness == pytest.approx(0.3)
    assert moving.motion == pytest.approx(0.2)
    assert moving.moves


def test_motion_in_one_corner_is_found_and_noise_is_none():
    generator = np.random.default_rng(0)
    frames = generator.integers(90, 110, (2, 140, 252, 3)).astype(np.uint8)
    assert not candidate(0, frames).moves
    frames[1, :23, :31] += 60
    assert candidate(0, frames).moves


def test_a_description_has_one_value_per_cell_and_channel_whatever_the_size():
    for height, width in ((28, 28), (140, 252), (252, 448)):
        assert describe(np.zeros((2, height, width, 3), np.uint8)).shape == (6 * 8 * 4,)


def test_a_pool_keeps_the_rare_ones_of_a_long_monotonous_stream():
    pool = Pool(6)
    rare = {40: 250, 300: 5, 777: 180}
    for index in range(1000):
        pool.offer(candidate(index, flat(rare.get(index, 100 + index % 3))))
    assert set(rare) <= {held.index for held in pool.held}
    assert len(pool.held) == 6


def test_chosen_are_not_the_first():
    candidates = [candidate(k, flat(level)) for k, level in enumerate([100] * 20 + [10, 240])]
    assert {c.index for c in choose(candidates, 3)} >= {20, 21}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40), st.integers(1, 8), st.integers(0, 10))
def test_never_more_than_asked_for_and_never_one_twice(levels, size, count):
    pool = Pool(size)
    for index, level in enumerate(levels):
        pool.offer(candidate(index, flat(level)))
    assert len(pool.held) == min(size, len(levels))
    chosen = [c.index for c in choose(pool.held, count)]
    assert len(chosen) == len(set(chosen)) == min(count, len(pool.held))
