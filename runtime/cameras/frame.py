"""One decoded picture of a camera or file, converted when it is asked for."""

import threading
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from tvau_edge.runtime.errors import SourceError

_scalers = threading.local()


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; its pixels are converted when they are asked for, so that a frame nobody uses costs little.

    Attributes:
        camera: name of the camera.
        index: number of the frame, from 0, as decoded.
        pts: seconds since the first frame of the source; always rises.
        time: seconds since the epoch at which a live frame came; for a file, its start of playing plus `pts`.
        picture: the decoded picture, before the rotation that the file asks for.
    """

    camera: str
    index: int
    pts: float
    time: float
    picture: av.VideoFrame

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        width, height = self.picture.width, self.picture.height
        return (height, width) if self.turns % 2 else (width, height)

    @property
    def image(self) -> NDArray[np.uint8]:
        """The frame as [H, W, 3] uint8 RGB, upright."""
        return self._convert("full", *self.size)

    def scaled(self, width: int, height: int) -> NDArray[np.uint8]:
        """The frame scaled to [height, width, 3] uint8 RGB, upright, bicubic as in Qwen2.5-VL's processor.

        Raises:
            SourceError: FFmpeg cannot convert pictures of this kind.
        """
        return self._convert("scaled", width, height)

    @property
    def turns(self) -> int:
        """Quarter turns, counter-clockwise, that bring the picture upright."""
        return round(self.picture.rotation / 90) % 4

    def _convert(self, purpose: str, width: int, height: int) -> NDArray[np.uint8]:
        turns = self.turns
        if turns % 2:
            width, height = height, width
        try:
            # One scaler per thread and purpose: FFmpeg sets one up in three times the time of using it.
            scaler = _scalers.__dict__.setdefault(purpose, VideoReformatter())
            rgb = scaler.reformat(self.picture, width, height, "rgb24", interpolation="BICUBIC", threads=1)
            image = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError) as error:
            kind = f"{self.picture.width}x{self.picture.height} {self.picture.format.name}"
            raise SourceError(
                f"camera {self.camera}: its pictures ({kind}) cannot be converted to RGB: {error}; set the camera "
                "to H.264 or MJPEG, or re-encode the file"
            ) from error
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image
