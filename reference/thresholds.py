"""The scores at which an event opens and closes, chosen on validation clips."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.reference.samples import Sample
from tvau_edge.runtime.config import TriggerConfig
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score
from tvau_edge.runtime.detection.smoothing import Smoothing

_LEAST, _MOST = 0.05, 0.95
_QUIET = 0.9  # share of normal patches under which the closing score lies at most


@torch.no_grad()
def score_patches(
    checkpoint: Checkpoint, clips: Iterable[Sample]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and scores (0..1) of all temporal patches of `clips`, smoothed, by the weights as they are stored."""
    module, features = checkpoint.vision_module(), checkpoint.class_features()
    labels, scores = [], []
    for clip in clips:
        h_c, _ = module(torch.from_numpy(clip.frames), features)
        labels.append(clip.labels)
        smoothing = Smoothing(TriggerConfig().smooth)
        scores.append([smoothing.add(patch_score(heat)) for heat in heatmap(h_c.numpy())])
    return np.concatenate(labels), np.concatenate(scores)


def choose_thresholds(labels: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float]:
    """Choose (open, close) from labelled scores.

    An event opens where sensitivity and specificity together are best (Youden), and closes where nine in ten
    normal patches would, at most at the opening score.

    Raises:
        ValueError: the labels are of one class only.
    """
    if labels.all() or not labels.any():
        raise ValueError("thresholds need normal and abnormal patches")
    false, true, at = roc_curve(labels, scores)
    opening = float(np.clip(at[np.argmax(true - false)], _LEAST, _MOST))
    closing = float(np.clip(np.quantile(scores[~labels], _QUIET), _LEAST / 2, opening))
    return round(opening, 3), min(round(closing, 3), round(opening, 3))
