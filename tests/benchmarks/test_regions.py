import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvau_edge.benchmarks.regions import VideoRegions, region_scores

CASES = json.loads((Path(__file__).parent / "data" / "rbdc_tbdc_cases.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_agrees_with_the_published_code(case):
    videos = [VideoRegions(v["frames"], v["tracks"], v["detections"]) for v in case["videos"]]
    scores = region_scores(videos)
    assert scores.rbdc == pytest.approx(case["expected"]["rbdc"], abs=1e-9)
    assert scores.tbdc == pytest.approx(case["expected"]["tbdc"], abs=1e-9)


def test_by_hand():
    # Two regions of one track in 4 frames. The best detection finds the first, the next is false, the third
    # finds the second: the rates are 1/2, 1/2, 1 at 0, 1/4, 1/4 false positives per frame.
    truth = [[0, 0, 0, 0, 9, 9], [0, 1, 0, 0, 9, 9]]
    detections = [[0, 0, 0, 9, 9, 0.9], [2, 0, 0, 9, 9, 0.8], [1, 0, 0, 9, 9, 0.7]]
    scores = region_scores([VideoRegions(4, truth, detections)])
    assert scores.rbdc == pytest.approx(0.5 * 0.25 + 1.0 * 0.75)
    assert scores.tbdc == pytest.approx(0.25 * 1.0 + 0.75 * 1.0)


def test_a_detection_of_found_regions_is_no_false_positive():
    truth = [[0, 0, 0, 0, 9, 9]]
    twice = [[0, 0, 0, 9, 9, 0.9], [0, 0, 0, 9, 9, 0.8]]
    assert region_scores([VideoRegions(1, truth, twice)]).rbdc == pytest.approx(1.0)


def test_boxes_are_inclusive():
    # One shared pixel of 10 in all: an IoU of exactly 0.1 with inclusive widths.
    truth, detection = [[0, 0, 0, 0, 4, 0]], [[0, 4, 0, 9, 0, 0.5]]
    assert region_scores([VideoRegions(1, truth, detection)]).rbdc == pytest.approx(1.0)


@pytest.mark.parametrize("detections", [[], [[0, 50, 50, 60, 60, 0.9]]], ids=["none", "only false"])
def test_nothing_found(detections):
    scores = region_scores([VideoRegions(3, [[0, 0, 0, 0, 9, 9]], detections)])
    assert (scores.rbdc, scores.tbdc) == (0, 0)


def test_no_region_to_find_is_not_a_number():
    scores = region_scores([VideoRegions(3, [], [[0, 0, 0, 9, 9, 0.9]])])
    assert np.isnan(scores.rbdc)
    assert np.isnan(scores.tbdc)


def test_frame_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"frame 7 is outside 0\.\.2"):
        VideoRegions(3, [[0, 7, 0, 0, 9, 9]], [])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_bounded_and_blind_to_the_order_of_videos(seed, count):
    rng = np.random.default_rng(seed)
    videos = [_random_video(rng, frames=int(rng.integers(1, 30)), boxes=20) for _ in range(count)]
    forward, backward = region_scores(videos), region_scores(videos[::-1])
    assert 0 <= forward.rbdc <= 1
    assert 0 <= forward.tbdc <= 1
    assert forward.rbdc == pytest.approx(backward.rbdc)
    assert forward.tbdc == pytest.approx(backward.tbdc)


def test_a_hundred_thousand_frames_are_no_trouble():
    rng = np.random.default_rng(0)
    videos = [_random_video(rng, frames=1000, boxes=4000) for _ in range(100)]
    started = time.perf_counter()
    scores = region_scores(videos)
    print(f"100,000 frames, 400,000 detections: {time.perf_counter() - started:.1f} s")
    assert 0 < scores.rbdc < 1


def _random_video(rng, frames, boxes):
    corner = rng.integers(0, 100, (boxes, 2))
    box = np.hstack([corner, corner + rng.integers(1, 40, (boxes, 2))])
    truth = np.hstack([rng.integers(0, 5, (boxes, 1)), rng.integers(0, frames, (boxes, 1)), box])
    moved = box + rng.integers(-20, 20, (boxes, 1))
    detections = np.hstack([rng.integers(0, frames, (boxes, 1)), moved, rng.random((boxes, 1))])
    return VideoRegions(frames, truth, detections)


def test_everything_abnormal_and_everything_found():
    truth = [[0, frame, 0, 0, 99, 49] for frame in range(5)]
    scores = region_scores([VideoRegions(5, truth, [[*row[1:], 0.5] for row in truth])])
    assert (scores.rbdc, scores.tbdc) == (1, 1)


def test_equal_scores_are_taken_in_their_order():
    truth, hit, miss = [[0, 0, 0, 0, 9, 9]], [0, 0, 0, 9, 9, 0.5], [1, 0, 0, 9, 9, 0.5]
    # With two frames, a false positive before the hit is half of what is allowed.
    assert region_scores([VideoRegions(2, truth, [hit, miss])]).rbdc == pytest.approx(1.0)
    assert region_scores([VideoRegions(2, truth, [miss, hit])]).rbdc == pytest.approx(0.5)


def test_a_track_needs_a_tenth_of_its_regions():
    truth = [[0, frame, 0, 0, 9, 9] for frame in range(20)]
    found = [[frame, 0, 0, 9, 9, 0.9] for frame in range(2)]
    assert region_scores([VideoRegions(20, truth, found[:1])]).tbdc == pytest.approx(0.0)
    assert region_scores([VideoRegions(20, truth, found)]).tbdc == pytest.approx(1.0)


def test_one_detection_may_find_several_regions():
    truth = [[0, 0, 0, 0, 9, 9], [1, 0, 10, 0, 19, 9]]
    assert region_scores([VideoRegions(1, truth, [[0, 0, 0, 19, 9, 0.9]])]).rbdc == pytest.approx(1.0)


def test_what_comes_after_one_false_positive_per_frame_does_not_count():
    truth = [[0, 0, 0, 0, 9, 9]]
    detections = [[0, 50, 50, 59, 59, 0.9], [0, 70, 70, 79, 79, 0.8], [0, 0, 0, 9, 9, 0.7]]
    assert region_scores([VideoRegions(1, truth, detections)]).rbdc == pytest.approx(0.0)
