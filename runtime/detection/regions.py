"""Boxes of what is hot in a heatmap, with the name of the place where each lies."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NAMES = (
    ("upper left", "upper center", "upper right"),
    ("middle left", "center", "middle right"),
    ("lower left", "lower center", "lower right"),
)


@dataclass(frozen=True, slots=True)
class Region:
    """A hot region.

    Attributes:
        box: x1, y1, x2, y2 in 0..1 of the frame.
        score: its hottest cell, 0..1.
        name: the ninth of the frame in which its middle lies, such as "upper left".
    """

    box: tuple[float, float, float, float]
    score: float
    name: str


def find_regions(heat: NDArray[np.float32], threshold: float, most: int = 8) -> list[Region]:
    """Connected cells (8 neighbours) of heat [H', W'] at or above `threshold`, the hottest first, `most` at most."""
    rows, columns = heat.shape
    waiting = {(int(y), int(x)) for y, x in np.argwhere(heat >= threshold)}
    found = []
    while waiting:
        cells = [waiting.pop()]
        for y, x in cells:  # grows while it is walked
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & waiting
            waiting -= near
            cells += near
        ys, xs = zip(*cells, strict=True)
        box = (min(xs) / columns, min(ys) / rows, (max(xs) + 1) / columns, (max(ys) + 1) / rows)
        found.append(Region(box, float(max(heat[cell] for cell in cells)), place(box)))
    return sorted(found, key=lambda region: (-region.score, region.box))[:most]


def place(box: tuple[float, float, float, float]) -> str:
    """Name the ninth of the frame in which the middle of a box (0..1) lies."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return _NAMES[min(2, int(3 * y))][min(2, int(3 * x))]
