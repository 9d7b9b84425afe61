"""Frame and pixel AUC of anomaly scores, as UBnormal's authors define them.

Micro-AUC is the ROC AUC over the frames of all videos together. Macro-AUC is the mean of each video's own
AUC, its labels and scores extended by one (0, 0) and one (1, 1) pair, which makes a video of one class
measurable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True)
class FrameScores:
    """The frames of one video: labels [F] of 0 or 1, and scores [F] in 0..1."""

    labels: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels).astype(np.int64)
        scores = np.asarray(self.scores, dtype=np.float64)
        if labels.shape != scores.shape or labels.ndim != 1 or not labels.size:
            raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be one value per frame")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "scores", scores)


def micro_auc(videos: Sequence[FrameScores]) -> float:
    """ROC AUC over all frames of all videos, 0..1; NaN when they hold one class only."""
    return pixel_auc(
        np.concatenate([video.labels for video in videos]), np.concatenate([video.scores for video in videos])
    )


def macro_auc(videos: Sequence[FrameScores]) -> float:
    """Mean over the videos of the AUC of each, extended by (0, 0) and (1, 1), 0..1."""
    return float(
        np.mean(
            [
                roc_auc_score(
                    np.concatenate([[0, 1], video.labels]), np.concatenate([[0.0, 1.0], video.scores])
                )
                for video in videos
            ]
        )
    )


def pixel_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """ROC AUC of cells or pixels of any shape, 0..1; NaN when the labels hold one class only."""
    labels = np.asarray(labels).reshape(-1)
    if labels.min() == labels.max():
        return float("nan")
    return float(roc_auc_score(labels, np.asarray(scores).reshape(-1)))


class PixelScores:
    """Gathers pixels of any number of frames for one AUC, in a histogram: memory does not grow with their number.

    Scores are put into bins of equal width on the logit scale, `BINS` of them between 0.000006 and 0.999994; two
    scores in one bin count as a tie.
    """

    BINS = 8192
    _END = 12.0  # of the logit scale

    def __init__(self) -> None:
        self._counts = np.zeros((2, self.BINS), dtype=np.int64)

    def add(self, labels: NDArray[np.bool_], scores: NDArray[np.float32]) -> None:
        """Add pixels of any shape: whether each is abnormal, and its score in 0..1."""
        if labels.shape != scores.shape:
            raise ValueError(f"labels {labels.shape} and scores {scores.shape} must be one value per pixel")
        edge = 1 / (1 + np.exp(self._END))
        share = np.clip(scores.ravel(), edge, 1 - edge)
        place = (np.log(share / (1 - share)) / self._END + 1) / 2 * (self.BINS - 1)
        bins = np.round(place).astype(np.int64)
        flat = np.bincount(labels.ravel() * self.BINS + bins, minlength=2 * self.BINS)
        self._counts += flat.reshape(2, self.BINS)

    def auc(self) -> float:
        """ROC AUC, 0..1; NaN when the pixels are of one class only."""
        normal, abnormal = self._counts
        if not normal.sum() or not abnormal.sum():
            return float("nan")
        below = np.cumsum(normal) - normal
        return float((abnormal * (below + normal / 2)).sum() / (normal.sum() * abnormal.sum()))
