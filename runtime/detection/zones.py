"""Zones: where on the picture an anomaly counts."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.polygons import Point, covered
from tvau_edge.runtime.detection.heatmap import patch_score
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.errors import ConfigError

_FINE = 8  # points per cell and axis


class Zones:
    """The cells of the heatmap that count: at least half inside a polygon of `include`, and not half in `exclude`.

    Elsewhere the heatmap is set to zero, so nothing there opens an event or becomes a region. The language model is
    still asked about the whole picture; what nobody may see belongs under a privacy mask.

    Args:
        include: polygons; none: the whole picture.
        exclude: polygons.
        grid: (H', W') of the heatmap.
        camera: for messages.

    Raises:
        ConfigError: no cell is left.
    """

    def __init__(
        self, include: list[list[Point]], exclude: list[list[Point]], grid: tuple[int, int], camera: str
    ) -> None:
        counts = _cells(include, grid) if include else np.ones(grid, bool)
        self.counts: NDArray[np.bool_] = counts & ~_cells(exclude, grid)
        if not self.counts.any():
            raise ConfigError(
                f"camera {camera}: its zones leave no cell of the {grid[1]}x{grid[0]} heatmap; make include larger or "
                "exclude smaller (a cell counts when half of it does)"
            )

    def apply(self, evidence: Evidence) -> Evidence:
        """The evidence with its heatmap and score confined to the zones."""
        if self.counts.all():
            return evidence
        heat = np.where(self.counts, evidence.heatmap, np.float32(0))
        return replace(evidence, heatmap=heat, score=patch_score(heat, counts=self.counts))


def _cells(polygons: list[list[Point]], grid: tuple[int, int]) -> NDArray[np.bool_]:
    rows, columns = grid
    fine = covered(polygons, columns * _FINE, rows * _FINE)
    return np.asarray(fine.reshape(rows, _FINE, columns, _FINE).mean(axis=(1, 3)) >= 0.5)
