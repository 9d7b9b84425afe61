import numpy as np
import pytest

from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.looking import Looked, detect, look, windows
from tvau_edge.benchmarks.stages import Stages
from tvau_edge.runtime.detection.vision import Evidence


def looked(patches, frames):
    evidence = tuple(
        Evidence("c", k, 0.0, 0.0, np.zeros((2, 2, 4)), np.full((2, 4), k / 10), k / 10, np.zeros((1, 1)))
        for k in range(patches)
    )
    patch_of_frame = np.minimum(np.arange(frames) * patches // (frames - 1), patches - 1)
    return Looked(evidence, patch_of_frame, np.arange(patches))


def test_each_hot_place_is_detected_once_the_faint_ones_too():
    heat = np.zeros((6, 9), np.float32)
    heat[1, 1] = 0.9
    heat[1, 2] = 0.3  # the rim of what is hot is no detection of its own
    heat[4, 5:7] = 0.12
    heat[0, 8] = 0.05
    assert [(region.box, pytest.approx(region.score)) for region in detect(heat, 0.5)] == [
        ((1 / 9, 1 / 6, 2 / 9, 2 / 6), 0.9),
        ((5 / 9, 4 / 6, 7 / 9, 5 / 6), 0.12),
    ]


def test_a_box_is_what_the_runtime_reports_at_its_threshold():
    heat = np.full((1, 4), 0.02, np.float32)
    heat[0, 1:3] = 0.6, 0.4
    assert [region.box for region in detect(heat, 0.5)] == [(0.25, 0, 0.5, 1)]
    assert [region.box for region in detect(heat, 0.3)] == [(0.25, 0, 0.75, 1)]


def test_detections_are_inclusive_pixels_of_every_frame_of_a_patch():
    seen = looked(2, 5)
    seen.evidence[1].heatmap[:] = 0
    seen.evidence[1].heatmap[1, 2] = 0.75
    assert seen.patch_of_frame.tolist() == [0, 0, 1, 1, 1]
    assert seen.detections((40, 20), 0.3).tolist() == [[frame, 20, 10, 29, 19, 0.75] for frame in (2, 3, 4)]


@pytest.mark.parametrize(
    ("patches", "expected"),
    [
        (2, [[0, 0, 1]]),
        (3, [[0, 1, 2]]),
        (4, [[0, 1, 2], [1, 2, 3]]),
        (6, [[0, 1, 2], [3, 4, 5]]),
        (7, [[0, 1, 2], [3, 4, 5], [4, 5, 6]]),
    ],
)
def test_windows_lie_end_to_end_and_the_last_ends_with_the_clip(patches, expected):
    assert [[item.index for item in window] for window in windows(looked(patches, 20), 3)] == expected


def test_a_patch_stands_for_the_frames_from_its_first_one_on(squares, bright_bundle):
    with Stages(bright_bundle, dialogue=False) as stages:
        seen = look(read_dataset(squares)[0], stages.vision, bright_bundle.manifest.geometry)
    # Of 8 frames a second, 4 are sampled: patch 0 is of frames 0 and 2, patch 1 of frames 4 and 6.
    assert seen.patch_of_frame.tolist() == [frame // 4 for frame in range(32)]
    assert seen.sampled.tolist() == [4 * k + 2 for k in range(8)]
    assert (seen.scores[:16] < 0.1).all()
    assert seen.scores[16:20] == pytest.approx(0.5, abs=0.05)  # the mean of two patches, as in the runtime
    assert (seen.scores[20:] > 0.9).all()
    assert (seen.span(0, 2), seen.span(7, 7)) == ((0, 11), (28, 31))
