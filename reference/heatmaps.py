"""Stage 1: the anomaly heatmap decoder alone learns from masks; everything else is frozen (paper, training)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tvau_edge.export.model.ahd import ABNORMAL, AnomalyHeatmapDecoder
from tvau_edge.export.model.vision import VisionTower
from tvau_edge.reference.progress import Course
from tvau_edge.reference.samples import Sample

_SEEN = 0.10  # share of a cell from which it counts as abnormal; from a tenth of that it is left open
_WEIGHT = 3.0  # of an abnormal cell: few are


def train_heatmaps(
    decoder: AnomalyHeatmapDecoder,
    tower: VisionTower,
    class_features: Tensor,
    samples: Sequence[Sample],
    course: Course,
    batch: int = 32,
) -> None:
    """Train AHD on single temporal patches; `class_features` [2, D] come from the frozen language model."""
    rng = np.random.default_rng(course.seed + 2)
    optimizer = course.optimizer(list(decoder.parameters()), rate=3e-3)
    for _ in course.steps("ahd"):
        frames, shares = [], []
        for _ in range(batch):
            sample = samples[rng.integers(len(samples))]
            patch = rng.integers(len(sample.frames))
            frames.append(sample.frames[patch])
            shares.append(sample.abnormal[patch])
        with torch.no_grad():
            taps, _ = tower(torch.from_numpy(np.stack(frames)).to(course.device))
        share = torch.from_numpy(np.stack(shares)).float().to(course.device)  # [B, H', W']
        with course.precision():
            h_c = decoder(taps, class_features)
        course.update(heatmap_loss(h_c, share), optimizer)


def heatmap_loss(h_c: Tensor, share: Tensor) -> Tensor:
    """Cross-entropy of the class of each cell: h_c [B, 2, H', W'], share of each cell that is abnormal [B, H', W']."""
    target = (share >= _SEEN).long()
    weight = torch.where(target == ABNORMAL, _WEIGHT, 1.0)
    weight = weight * ((share >= _SEEN) | (share < _SEEN / 10))
    loss = F.cross_entropy(h_c.float(), target, reduction="none")
    return (loss * weight).sum() / weight.sum()


@torch.no_grad()
def maps(
    decoder: AnomalyHeatmapDecoder,
    tower: VisionTower,
    class_features: Tensor,
    sample: Sample,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """h_c [K, 2, H', W'] and P_V [K, N, D] of every temporal patch of a clip."""
    taps, p_v = tower(torch.from_numpy(sample.frames).to(device))
    return decoder(taps, class_features), p_v
