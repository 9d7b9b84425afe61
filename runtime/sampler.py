"""Picks frames at the checkpoint's rate by their time stamps, scales them, and pairs them to temporal patches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry
from tvau_edge.runtime.source import Frame


@dataclass(frozen=True, slots=True)
class TemporalPatch:
    """Two frames that the vision tower takes in one piece.

    Attributes:
        camera: name of the camera.
        index: number of the patch, from 0; without gaps.
        frames: [2, H, W, 3] uint8 RGB at the model's size.
        pts: seconds of the two frames since the first of the source.
        time: seconds since the epoch of the newer frame.
    """

    camera: str
    index: int
    frames: NDArray[np.uint8]
    pts: tuple[float, float]
    time: float


class Sampler:
    """Cuts one camera's frames into temporal patches.

    The instants t0 + k / rate are sampled, t0 being the first frame's stamp. Each takes the first frame that is
    not before it. A source slower than the rate has several instants in one frame: it stands for all of them, and
    `repeated` counts the copies. After a gap of more than a temporal patch the grid starts anew at the next frame,
    so that no patch spans the gap.

    Args:
        geometry: the bundle's.
        upscale: allow frames smaller than the model's input.

    Raises:
        SourceError: from `push`: a frame is smaller than the model's input.
    """

    # A stamp counts as reached this much early: stamps of 1/90000 s are rounded.
    _SLACK = 2e-3

    def __init__(self, geometry: Geometry, *, upscale: bool = False) -> None:
        self._geometry = geometry
        self._upscale = upscale
        self._period = 1 / geometry.frames_per_second
        self._start: float | None = None
        self._taken = 0
        self._last = 0.0
        self._first: tuple[Frame, NDArray[np.uint8]] | None = None
        self._patches = 0
        self.repeated = 0
        self.gaps = 0

    def push(self, frame: Frame) -> list[TemporalPatch]:
        """Take a frame and return the temporal patches that it completes: mostly none, sometimes one."""
        if self._start is None:
            self._check_size(frame)
            self._start = frame.pts
        elif frame.pts - self._last > self._geometry.seconds_per_patch + self._SLACK:
            self.gaps += 1
            self._start, self._taken, self._first = frame.pts, 0, None
        self._last = frame.pts
        due = int((frame.pts + self._SLACK - self._start) / self._period) + 1 - self._taken
        if due <= 0:
            return []
        self._taken += due
        self.repeated += due - 1
        image = frame.scaled(self._geometry.width, self._geometry.height)
        patches = []
        for _ in range(due):
            if self._first is None:
                self._first = frame, image
                continue
            older, first = self._first
            patches.append(
                TemporalPatch(
                    frame.camera, self._patches, np.stack([first, image]), (older.pts, frame.pts), frame.time
                )
            )
            self._patches += 1
            self._first = None
        return patches

    def _check_size(self, frame: Frame) -> None:
        width, height = frame.size
        if not self._upscale and (width < self._geometry.width or height < self._geometry.height):
            raise SourceError(
                f"camera {frame.camera}: its video is {width}x{height}, smaller than the model's input of "
                f"{self._geometry.width}x{self._geometry.height}; export a bundle with a smaller --size, or allow "
                "it with upscale = true, at a loss of accuracy"
            )
