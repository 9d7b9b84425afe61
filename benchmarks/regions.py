"""Region-based and track-based detection criteria: RBDC and TBDC.

From Ramachandra and Jones, Street Scene, WACV 2020; computed as the authors of UBnormal compute them:
all detections of all videos go by falling score; a detection matches every ground-truth region of its
frame with an IoU of at least 0.1; one that matches none is a false positive; one that matches only
regions already found is neither. Both rates stand against false positives per frame, and the area under
each is taken up to one false positive per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IOU_THRESHOLD = 0.1
TRACK_THRESHOLD = 0.1


@dataclass(frozen=True)
class VideoRegions:
    """The regions of one video. Boxes are inclusive pixels: the width of a box is x2 - x1 + 1.

    Attributes:
        frames: frames of the video; every one counts, with regions or without.
        truth: [G, 6] track, frame, x1, y1, x2, y2; track numbers are the video's own.
        detections: [N, 6] frame, x1, y1, x2, y2, score.
    """

    frames: int
    truth: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 6)))
    detections: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 6)))

    def __post_init__(self) -> None:
        for name in ("truth", "detections"):
            value = np.asarray(getattr(self, name), dtype=np.float64).reshape(-1, 6)
            object.__setattr__(self, name, value)
        if self.frames <= 0:
            raise ValueError(f"a video of {self.frames} frames has no false positives per frame")
        for name, column in (("truth", 1), ("detections", 0)):
            frames = getattr(self, name)[:, column]
            if frames.size and (frames.min() < 0 or frames.max() >= self.frames):
                raise ValueError(f"{name}: frame {frames.max():.0f} is outside 0..{self.frames - 1}")


@dataclass(frozen=True)
class RegionScores:
    """RBDC and TBDC, each 0..1, or NaN where no video has a ground-truth region."""

    rbdc: float
    tbdc: float


def region_scores(videos: Sequence[VideoRegions]) -> RegionScores:
    """Compute RBDC and TBDC over all videos together."""
    total_frames = sum(video.frames for video in videos)
    regions = 0
    track_sizes: list[NDArray[np.int64]] = []
    region_track: list[NDArray[np.int64]] = []
    scores: list[NDArray[np.float64]] = []
    pair_detection: list[NDArray[np.int64]] = []
    pair_region: list[NDArray[np.int64]] = []
    tracks = detections = 0
    for video in videos:
        detection, region = _matches(video)
        pair_detection.append(detection + detections)
        pair_region.append(region + regions)
        _, track, sizes = np.unique(video.truth[:, 0], return_inverse=True, return_counts=True)
        region_track.append(track + tracks)
        track_sizes.append(sizes)
        scores.append(video.detections[:, 5])
        regions += len(video.truth)
        tracks += len(sizes)
        detections += len(video.detections)
    if regions == 0:
        return RegionScores(rbdc=float("nan"), tbdc=float("nan"))
    if detections == 0:
        return RegionScores(rbdc=0.0, tbdc=0.0)

    # The rank of each detection, best score first; equal scores keep the order in which they came.
    order = np.argsort(-np.concatenate(scores), kind="stable")
    rank = np.empty(detections, dtype=np.int64)
    rank[order] = np.arange(detections)
    matched_detection = np.concatenate(pair_detection)
    matched_region = np.concatenate(pair_region)

    # A region is found at the rank of the best detection that matches it.
    found_at = np.full(regions, detections, dtype=np.int64)
    np.minimum.at(found_at, matched_region, rank[matched_detection])
    false_positive = np.ones(detections, dtype=bool)
    false_positive[rank[matched_detection]] = False

    sizes = np.concatenate(track_sizes)
    track_found_at = _track_ranks(found_at, np.concatenate(region_track), sizes, detections)
    false_positives = np.cumsum(false_positive) / total_frames
    return RegionScores(
        rbdc=_area(false_positives, _rate(found_at, detections) / regions),
        tbdc=_area(false_positives, _rate(track_found_at, detections) / len(sizes)),
    )


def _matches(video: VideoRegions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs (detection, region) of one video with an IoU of at least 0.1, as two index arrays."""
    truth, detections = video.truth, video.detections
    by_frame = np.argsort(truth[:, 1], kind="stable")
    frames = truth[by_frame, 1]
    first = np.searchsorted(frames, detections[:, 0], side="left")
    count = np.searchsorted(frames, detections[:, 0], side="right") - first
    detection = np.repeat(np.arange(len(detections)), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    region = by_frame[np.repeat(first, count) + within]

    a, b = detections[detection, 1:5], truth[region, 2:6]
    overlap = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + 1
    intersection = np.clip(overlap, 0, None).prod(axis=1)
    union = (a[:, 2:] - a[:, :2] + 1).prod(axis=1) + (b[:, 2:] - b[:, :2] + 1).prod(axis=1) - intersection
    hit = intersection >= IOU_THRESHOLD * union
    return detection[hit], region[hit]


def _track_ranks(
    found_at: NDArray[np.int64], track: NDArray[np.int64], sizes: NDArray[np.int64], never: int
) -> NDArray[np.int64]:
    """The rank at which each track has a tenth of its regions: the k-th smallest rank of its regions."""
    order = np.lexsort((found_at, track))
    start = np.cumsum(sizes) - sizes
    needed = np.array([next(k for k in range(1, n + 1) if k / n >= TRACK_THRESHOLD) for n in sizes])
    return np.minimum(found_at[order][start + needed - 1], never)


def _rate(found_at: NDArray[np.int64], detections: int) -> NDArray[np.float64]:
    """How many are found once the detection of each rank is taken in, [N]."""
    return np.cumsum(np.bincount(found_at, minlength=detections + 1)[:detections]).astype(np.float64)


def _area(false_positives: NDArray[np.float64], rate: NDArray[np.float64]) -> float:
    """Area under the rate up to one false positive per frame; the last value is carried there."""
    inside = false_positives <= 1
    x = np.concatenate([[0.0], false_positives[inside], [1.0]])
    y = np.concatenate([[0.0], rate[inside]])
    return float(np.trapezoid(np.append(y, y[-1]), x))
