import logging

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.cameras.sampler import Sampler
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry

GEOMETRY = Geometry(width=28, height=28, frames_per_second=4, temporal_patches=4)
SLACK = 2e-3


def picture(level=100, size=(32, 32)):
    return av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")


PLAIN = picture()


def frame(pts, shown=PLAIN, index=0):
    return Frame("door", index, pts, 1000 + pts, shown)


def sample(stamps, geometry=GEOMETRY):
    sampler = Sampler(geometry)
    return [patch for pts in stamps for patch in sampler.push(frame(pts))], sampler


def instants(patches):
    return [pts for patch in patches for pts in patch.pts]


@pytest.mark.parametrize("rate", [10, 12.5, 15, 25, 29.97, 30, 60])
def test_each_instant_takes_the_first_frame_not_before_it(rate):
    stamps = [number / rate for number in range(int(20 * rate))]
    patches, sampler = sample(stamps)
    grid = [number / 4 for number in range(80)]
    expected = [next((pts for pts in stamps if pts >= instant - SLACK), None) for instant in grid]
    expected = [pts for pts in expected if pts is not None]
    assert instants(patches) == expected[: len(expected) // 2 * 2]
    assert (sampler.repeated, sampler.gaps) == (0, 0)


def test_rounded_stamps_are_not_missed():
    stamps = [round(number / 29.97 * 90000) / 90000 for number in range(300)]
    patches, _ = sample(stamps, Geometry(width=28, height=28, frames_per_second=29.97, temporal_patches=4))
    assert instants(patches) == stamps


def test_a_patch_holds_two_frames_in_their_order():
    sampler = Sampler(GEOMETRY)
    assert sampler.push(frame(0, picture(50))) == []
    (patch,) = sampler.push(frame(0.25, picture(200)))
    assert patch.frames.shape == (2, 28, 28, 3)
    assert patch.frames.dtype == np.uint8
    assert patch.frames.mean(axis=(1, 2, 3)) == pytest.approx([50, 200], abs=2)
    assert (patch.camera, patch.index, patch.pts, patch.time) == ("door", 0, (0, 0.25), 1000.25)


def test_frames_that_are_not_sampled_are_not_converted(monkeypatch):
    asked = []
    monkeypatch.setattr(
        Frame, "scaled", lambda self, *_: asked.append(self.pts) or np.zeros((28, 28, 3), "u1")
    )
    sample([number / 20 for number in range(20)])
    assert asked == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("rate", [3, 2, 1, 0.5, 0.25])
def test_a_slow_source_stands_for_several_instants_and_they_are_counted(rate):
    stamps = [number / rate for number in range(20)]
    patches, sampler = sample(stamps)
    taken = int(stamps[-1] * 4 + 1e-6) + 1
    assert len(patches) == taken // 2
    assert sampler.repeated == taken - 20
    assert sampler.gaps == 0


def test_a_slow_source_that_is_not_quite_regular_is_not_all_gaps():
    rng = np.random.default_rng(2)
    stamps = np.cumsum(0.5 + rng.uniform(-0.15, 0.15, 200)).tolist()
    patches, sampler = sample(stamps)
    assert sampler.gaps == 0
    assert len(patches) == pytest.approx((stamps[-1] - stamps[0]) * 2, abs=2)


def test_no_patch_spans_a_gap():
    stamps = [number / 10 for number in range(13)] + [9 + number / 10 for number in range(20)]
    patches, sampler = sample(stamps)
    assert sampler.gaps == 1
    assert instants(patches) == pytest.approx([0, 0.3, 0.5, 0.8, 9.0, 9.3, 9.5, 9.8, 10, 10.3, 10.5, 10.8])
    assert [patch.index for patch in patches] == list(range(6))
    assert sampler.repeated == 0


def test_stamps_that_fall_start_the_grid_anew():
    patches, sampler = sample([100, 100.25, 100.5, 0, 0.25, 0.5, 0.75])
    assert [patch.pts for patch in patches] == [(100, 100.25), (0, 0.25), (0.5, 0.75)]
    assert sampler.gaps == 1


def test_a_source_that_is_too_slow_is_told_of_once(caplog):
    with caplog.at_level(logging.WARNING):
        patches, _ = sample([number * 60.0 for number in range(20)])
    assert patches == []
    assert len(caplog.records) == 1
    assert "60.0 s apart, too rarely to be watched" in caplog.text


@settings(deadline=None)
@given(
    st.floats(5, 120),
    st.floats(0, 0.49),
    st.sampled_from([1.0, 2.0, 4.0, 5.0]),
    st.integers(0, 2**32 - 1),
    st.floats(-5, 1e6),
)
def test_patches_lie_on_the_grid(rate, jitter, target, seed, begin):
    """Whatever the rate and the jitter: each instant of the grid has one frame, at most one interval late."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(int(6 * rate))
    stamps = begin + np.maximum(0, numbers + jitter * rng.uniform(-1, 1, len(numbers))) / rate
    stamps = np.maximum.accumulate(stamps)
    geometry = Geometry(width=28, height=28, frames_per_second=target, temporal_patches=4)
    patches, sampler = sample(stamps.tolist(), geometry)
    assert sampler.gaps == 0
    late = np.array(instants(patches)) - (stamps[0] + np.arange(2 * len(patches)) / target)
    longest = np.diff(stamps).max(initial=0)
    assert (late >= -SLACK - 1e-6).all()
    assert (late <= longest + 1e-6).all()
    due = int((stamps[-1] - stamps[0] + SLACK) * target) + 1
    assert abs(len(patches) - due // 2) <= 1  # one, where rounding decides


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 30), min_size=1, max_size=60))
def test_any_rising_stamps_are_survived(steps):
    stamps = np.cumsum(steps).tolist()
    patches, _ = sample(stamps)
    times = instants(patches)
    assert times == sorted(times)
    assert all(second - first <= 5.26 for first, second in (patch.pts for patch in patches))
    assert len(patches) <= 2 * (stamps[-1] - stamps[0]) + 1


def test_smaller_than_the_model():
    sampler = Sampler(GEOMETRY)
    with pytest.raises(SourceError, match=r"door: .*27x40, smaller than .* 28x28; .*--size.*upscale = true"):
        sampler.push(frame(0, picture(size=(27, 40))))


def test_becomes_smaller_on_the_way():
    sampler = Sampler(GEOMETRY)
    sampler.push(frame(0))
    with pytest.raises(SourceError, match="20x20, smaller"):
        sampler.push(frame(0.1, picture(size=(20, 20))))


def test_upscale_allows_it():
    sampler = Sampler(GEOMETRY, upscale=True)
    sampler.push(frame(0, picture(80, (14, 10))))
    (patch,) = sampler.push(frame(0.25, picture(80, (14, 10))))
    assert patch.frames.shape == (2, 28, 28, 3)
    assert patch.frames.mean() == pytest.approx(80, abs=2)


def test_real_clip(real_videos):
    geometry = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=8)
    sampler = Sampler(geometry)
    with Source(str(real_videos["car-detection"]), "yard") as source:  # 12.5 frames a second, 30.16 s
        patches = [patch for one in source for patch in sampler.push(one)]
    assert len(patches) == 60
    assert (sampler.repeated, sampler.gaps) == (0, 0)
    assert [patch.pts[0] for patch in patches] == pytest.approx([k / 2 for k in range(60)], abs=0.08)
