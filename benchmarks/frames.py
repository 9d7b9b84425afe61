"""Frame and pixel AUC of anomaly scores, as UBnormal's authors define them.

Micro-AUC is the ROC AUC over the frames of all videos together. Macro-AUC is the mean of each video's own
AUC, its labels and scores extended by one (0, 0) and one (1, 1) pair, which makes a video of one class
measurable.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
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
