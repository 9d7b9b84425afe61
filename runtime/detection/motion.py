"""The motion gate: a scene that stands still keeps the evidence it has, and the vision graph rests."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.manifest import Geometry

_EVERY = 2  # pixels looked at, per axis


class MotionGate:
    """Watches one camera for change.

    A temporal patch is still when in no cell of the patch grid its pixels differ from those of the last patch that
    was looked at by more than the threshold, on average, and that patch had no motion in itself. What creeps is seen
    as well: the comparison is with what was looked at, not with the patch before. Cells that do not count, outside of
    the camera's zones, may move.

    Args:
        threshold: mean absolute difference of a cell's pixels, in levels of 0..255; above the noise of the camera.
        geometry: of the patches.
        refresh_seconds: after which a still scene is looked at again all the same.
        counts: cells [H', W'] that count.
    """

    def __init__(
        self,
        threshold: float,
        geometry: Geometry,
        refresh_seconds: float,
        counts: NDArray[np.bool_] | None = None,
    ) -> None:
        self._threshold, self._refresh = threshold, refresh_seconds
        self._cell = geometry.patch_size // _EVERY
        self._counts = counts
        self._seen: NDArray[np.uint8] | None = (
            None  # newer frame of the patch that was looked at, if it was still
        )
        self._evidence: Evidence | None = None
        self._looked = 0.0  # its time
        self.still = 0

    def hold(self, patch: TemporalPatch) -> Evidence | None:
        """The evidence of a patch that is still, which is that of the patch last looked at; None to look at it."""
        if self._evidence is None or self._seen is None:
            return None
        if not 0 <= patch.time - self._looked < self._refresh:
            return None
        if any(self._moved(frame[::_EVERY, ::_EVERY], self._seen) for frame in patch.frames):
            return None
        self.still += 1
        return replace(self._evidence, index=patch.index, pts=patch.pts[1], time=patch.time)

    def looked(self, patch: TemporalPatch, evidence: Evidence) -> None:
        """Note what the vision graph made of a patch."""
        older, newer = (frame[::_EVERY, ::_EVERY] for frame in patch.frames)
        self._seen = None if self._moved(older, newer) else newer.copy()
        self._evidence, self._looked = evidence, patch.time

    def forget(self) -> None:
        """Look at the next patch, whatever it shows: the camera was away."""
        self._seen = self._evidence = None

    def _moved(self, one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
        difference = np.maximum(one, other) - np.minimum(one, other)  # [H/2, W/2, 3], without leaving uint8
        rows, columns = difference.shape[0] // self._cell, difference.shape[1] // self._cell
        cells = difference.reshape(rows, self._cell, columns, self._cell * 3)
        # Sums of at most 7 x 21 pixels at 255 fit into 16 bits.
        means = cells.sum(axis=(1, 3), dtype=np.uint16) / np.float32(self._cell * self._cell * 3)
        return bool((means if self._counts is None else means[self._counts]).max(initial=0) > self._threshold)
