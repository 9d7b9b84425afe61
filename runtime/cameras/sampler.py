"""Picks frames at the checkpoint's rate by their time stamps, scales them, and pairs them to temporal patches."""

import logging
from collections import deque
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry

log = logging.getLogger(__name__)

_SLACK = 2e-3  # seconds by which a stamp counts as reached early: stamps of 1/90000 s are rounded
_USUAL = 3.0  # times the source's usual interval: what is longer is a gap
_LONGEST = 5.0  # seconds: a source whose frames are farther apart cannot be watched
_REMEMBERED = 15  # intervals from which the usual one is taken
_COMPLAINT = 3  # gaps in a row without a patch, after which we say so


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
    `repeated` counts the copies. After a gap the grid starts anew at the next frame, so that no patch spans it; a
    gap is longer than a temporal patch and than three of the source's usual intervals, or than five seconds. Stamps
    that fall, as those of a source that was opened again, start the grid anew as well.

    Args:
        geometry: the bundle's.
        upscale: allow frames smaller than the model's input.

    Raises:
        SourceError: from `push`: a frame is smaller than the model's input.
    """

    def __init__(self, geometry: Geometry, *, upscale: bool = False) -> None:
        self._geometry = geometry
        self._upscale = upscale
        self._period = 1 / geometry.frames_per_second
        self._start = self._last = 0.0
        self._taken = 0  # instants of the grid that have their frame
        self._intervals: deque[float] = deque(maxlen=_REMEMBERED)
        self._size: tuple[int, int] | None = None
        self._first: tuple[Frame, NDArray[np.uint8]] | None = None
        self._patches = 0
        self._barren = 0  # gaps since the last patch
        self.repeated = 0
        self.gaps = 0

    def push(self, frame: Frame) -> list[TemporalPatch]:
        """Take a frame and return the temporal patches that it completes: mostly none, sometimes one."""
        self._check_size(frame)
        if not self._taken or self._is_gap(frame):
            self._start, self._taken, self._first = frame.pts, 0, None
        self._last = frame.pts
        due = int((frame.pts + _SLACK - self._start) / self._period) + 1 - self._taken
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
            self._barren = 0
            self._first = None
        return patches

    def _is_gap(self, frame: Frame) -> bool:
        interval = frame.pts - self._last
        usual = median(self._intervals) if self._intervals else interval
        if interval > 0:
            self._intervals.append(interval)
        limit = max(self._geometry.seconds_per_patch, min(_USUAL * usual, _LONGEST))
        if 0 <= interval <= limit + _SLACK:
            return False
        self.gaps += 1
        if interval < 0:  # opened again: no sign of a slow source
            return True
        self._barren += 1
        if self._barren == _COMPLAINT:
            log.warning(
                "camera %s: its frames come %.1f s apart, too rarely to be watched, or this device is too busy to take "
                "more; the model looks %g times a second, and at least one frame in %g s is needed",
                frame.camera,
                interval,
                self._geometry.frames_per_second,
                _LONGEST,
            )
        return True

    def _check_size(self, frame: Frame) -> None:
        if frame.size == self._size:
            return
        width, height = self._size = frame.size
        if not self._upscale and (width < self._geometry.width or height < self._geometry.height):
            raise SourceError(
                f"camera {frame.camera}: its video is {width}x{height}, smaller than the model's input of "
                f"{self._geometry.width}x{self._geometry.height}; export a bundle with a smaller --size, or allow "
                "it with upscale = true, at a loss of accuracy"
            )
