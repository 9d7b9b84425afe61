"""From similarity maps to what a person reads: the heatmap, a score, and the heatmap over the frame."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ABNORMAL = 1
# Of the cells: what a small person fills. Of 180 cells, three do better than one or two on the drawn validation clips,
# and more do not.
_SHARE = 1 / 60


def heatmap(h_c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the class axis, abnormal channel: h_c [..., 2, H', W'] -> [..., H', W'] in 0..1 (paper, AHD)."""
    # Of two classes, the softmax is the logistic function of their difference.
    difference = np.clip(h_c[..., ABNORMAL, :, :] - h_c[..., 1 - ABNORMAL, :, :], -80, 80)
    return np.asarray(1 / (1 + np.exp(-difference)), dtype=np.float32)


def patch_score(
    heat: NDArray[np.float32], share: float = _SHARE, counts: NDArray[np.bool_] | None = None
) -> float:
    """Score of a temporal patch, 0..1: the mean of the hottest `share` of the cells of heat [H', W'], at least one.

    One hot cell alone is often noise; the mean over the whole map would lose a small actor. With `counts` [H', W'],
    only these cells are looked at, and as many of them as there would be of all.
    """
    flat = heat.ravel() if counts is None else heat[counts]
    top = min(max(1, round(share * heat.size)), flat.size)
    return float(np.partition(flat, flat.size - top)[-top:].mean())


def over_frame(heat: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Bring a heatmap [H', W'] to frame coordinates [height, width], bilinear between the centres of cells."""
    rows, columns = heat.shape
    return np.asarray(_spread(height, rows) @ heat @ _spread(width, columns).T, dtype=np.float32)


@lru_cache(maxsize=8)
def _spread(pixels: int, cells: int) -> NDArray[np.float32]:
    """Share of each cell in each pixel of one axis, [pixels, cells]; outside the outer centres a cell stays itself."""
    place = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    share = np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells)))
    return np.asarray(share, dtype=np.float32)
