"""From similarity maps to what a person reads: the heatmap, a score, and the heatmap over the frame."""

import numpy as np
from numpy.typing import NDArray

ABNORMAL = 1
_TOP = 4  # cells: about what a person fills at middle distance


def heatmap(h_c: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the class axis, abnormal channel: h_c [..., 2, H', W'] -> [..., H', W'] in 0..1 (paper, AHD)."""
    # Of two classes, the softmax is the logistic function of their difference.
    difference = np.clip(h_c[..., ABNORMAL, :, :] - h_c[..., 1 - ABNORMAL, :, :], -80, 80)
    return np.asarray(1 / (1 + np.exp(-difference)), dtype=np.float32)


def patch_score(heat: NDArray[np.float32], top: int = _TOP) -> float:
    """Score of a temporal patch, 0..1: the mean of its `top` hottest cells of heat [H', W'].

    One hot cell alone is often noise; the mean over the whole map would lose a small actor.
    """
    flat = heat.ravel()
    top = min(top, flat.size)
    return float(np.partition(flat, flat.size - top)[-top:].mean())


def over_frame(heat: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Bring a heatmap [H', W'] to frame coordinates [height, width], bilinear between the centres of cells."""
    rows, columns = heat.shape
    ys, xs = _centres(height, rows), _centres(width, columns)
    top, left = np.floor(ys).astype(int), np.floor(xs).astype(int)
    below, right = np.minimum(top + 1, rows - 1), np.minimum(left + 1, columns - 1)
    fy, fx = (ys - top)[:, None].astype(np.float32), (xs - left)[None].astype(np.float32)
    upper = heat[top][:, left] * (1 - fx) + heat[top][:, right] * fx
    lower = heat[below][:, left] * (1 - fx) + heat[below][:, right] * fx
    return np.asarray(upper * (1 - fy) + lower * fy, dtype=np.float32)


def _centres(pixels: int, cells: int) -> NDArray[np.float64]:
    """For the middle of each pixel, its place on the axis of cell centres, held inside the map."""
    return np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
