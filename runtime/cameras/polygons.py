"""Polygons on a picture, in 0..1 of its width and height from the upper left."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

_LEAST = 1e-6  # area, of the picture

Point = tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]


def _has_area(points: list[Point]) -> list[Point]:
    following = points[1:] + points[:1]
    twice = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True))
    if abs(twice) / 2 < _LEAST:
        raise ValueError("the corners lie on a line or cross each other: the polygon has no area")
    return points


Polygon = Annotated[list[Point], Field(min_length=3, max_length=64), AfterValidator(_has_area)]


def covered(polygons: list[list[Point]], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels [height, width] whose middle lies in one of the polygons, by the even-odd rule."""
    x, y = (np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height
    found = np.zeros((height, width), bool)
    for points in polygons:
        inside = np.zeros_like(found)
        for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
            rows = np.flatnonzero((y1 > y) != (y2 > y))  # whose line to the right may cross this edge
            if rows.size:
                crossing = x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1)
                inside[rows] ^= x < crossing[:, None]
        found |= inside
    return found
