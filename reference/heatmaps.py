"""Stage 1: the anomaly heatmap decoder alone learns from masks; everything else is frozen (paper, training)."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tvau_edge.export.model.ahd import ABNORMAL, AnomalyHeatmapDecoder
from tvau_edge.reference.named_features import ClassFeatures, draw_named, numbers
from tvau_edge.reference.progress import Course
from tvau_edge.reference.samples import Sample

_SEEN = 0.04  # share of a cell from which it counts as abnormal; a smaller share is left open
_WEIGHT = 6.0  # of a patch's abnormal cells together: a bag in one cell counts as much as a car in twenty
_NOISE, _DROPPED = 0.3, 0.2  # of each tap, while it is learned from: without, AHD learns its clips by heart
_NAMED = 0.4  # share of the steps in which only some behaviours are named, and the others count as normal
_BACKGROUND = 16  # cells of empty street learned from each patch, beside those in which something stands


def train_heatmaps(
    decoder: AnomalyHeatmapDecoder,
    features: ClassFeatures,
    samples: Sequence[Sample],
    seen: NDArray[np.float16],
    course: Course,
    batch: int = 32,
) -> None:
    """Train AHD on single cells of single temporal patches.

    Most cells show empty street, which is soon learned: of those a few are drawn, of the others all. In some steps
    only a few behaviours are named by the class features, as somebody does who sets prompts on a device; then the
    others count as normal.

    Args:
        decoder: trained in place.
        features: from the frozen language model.
        samples: the clips.
        seen: their taps, [clips, K, taps, H', W', width].
        course: how long.
        batch: temporal patches in a step.
    """
    rng = np.random.default_rng(course.seed + 2)
    optimizer = course.optimizer([*decoder.mlps.parameters()], rate=2e-3)
    # The scale of the similarities bounds how sharp the softmax can be: it must move faster than the rest.
    optimizer.add_param_group({"params": [decoder.weights], "weight_decay": 0.0, "peak": 5e-2, "lr": 0.0})
    occupied = [np.stack([_near(patch[0] > 0) for patch in sample.attributes]) for sample in samples]
    showing = {
        number: [index for index, sample in enumerate(samples) if (sample.behaviour == number).any()]
        for number in numbers(range(len(features.behaviours)))
    }
    for _ in course.steps("ahd"):
        chosen = draw_named(rng) if rng.random() < _NAMED else None
        named = numbers(range(len(features.behaviours)) if chosen is None else chosen)
        wanted = [clip for number in named for clip in showing[number]] if chosen is not None else []
        cells, target, weight = [], [], []
        for row in range(batch):
            # Of the named ones enough is to be seen: half of the clips show one of them.
            clip = wanted[rng.integers(len(wanted))] if wanted and row % 2 else rng.integers(len(samples))
            patch = rng.integers(len(occupied[clip]))
            share = samples[clip].abnormal[patch].ravel().astype(np.float32)  # [H' W']
            behaviour = samples[clip].behaviour[patch].ravel()
            taken = occupied[clip][patch].ravel() | (share > 0)
            taken[rng.integers(taken.size, size=_BACKGROUND)] = True
            taken &= (share == 0) | (share >= _SEEN)
            abnormal = (share[taken] >= _SEEN) & np.isin(behaviour[taken], named)
            taps = seen[clip, patch].reshape(seen.shape[2], share.size, -1)  # [taps, H' W', width]
            cells.append(taps[:, taken])
            target.append(abnormal)
            weight.append(np.where(abnormal, _WEIGHT / max(2, abnormal.sum()), 1.0))
        stack = torch.from_numpy(np.concatenate(cells, axis=1)).to(course.device).float()  # [taps, n, width]
        classes = features.all() if chosen is None else features.of(chosen)
        with course.precision():
            # A decoder does not look beside a cell: any number of them makes a map of one row.
            h_c = decoder(list(blurred(stack[:, None, None])), classes)  # [1, 2, 1, n]
        loss = cell_loss(h_c[0, :, 0], np.concatenate(target), np.concatenate(weight))
        course.update(loss, optimizer)


def blurred(taps: Tensor) -> Tensor:
    """Taps [taps, ..., width] with noise and dropout, as different from themselves as those of other streets are."""
    spread = taps.flatten(1).std(1).view(-1, *[1] * (taps.ndim - 1))
    return F.dropout(taps + _NOISE * spread * torch.randn_like(taps), _DROPPED)


def _near(things: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells [H', W'] in which something stands, and those around them."""
    return cv2.dilate(things.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def cell_loss(h_c: Tensor, abnormal: NDArray[np.bool_], weight: NDArray[np.float64]) -> Tensor:
    """Weighted cross-entropy of the class of each cell: h_c [2, n], whether it is abnormal [n], weight [n]."""
    target = torch.from_numpy(abnormal.astype(np.int64)).to(h_c.device) * ABNORMAL
    weights = torch.from_numpy(weight).float().to(h_c.device)
    loss = F.cross_entropy(h_c.float().t(), target, reduction="none")
    return (loss * weights).sum() / weights.sum()


@torch.no_grad()
def maps(decoder: AnomalyHeatmapDecoder, class_features: Tensor, taps: Tensor) -> Tensor:
    """Similarity maps h_c [K, 2, H', W'] of a clip whose taps [taps, K, H', W', width] are `blurred`.

    AHD does better on the clips that it learned from than on any other; what comes after it must not rely on that.
    """
    return decoder(list(blurred(taps)), class_features)
