"""Privacy masks: what they cover is black before anything else sees the picture."""

import av
import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.cameras.polygons import Point, covered

# Formats of 8 bits whose planes we blacken where they lie: for each plane the values of one of its samples.
_BLACK: dict[str, tuple[tuple[int, ...], ...]] = {
    **dict.fromkeys(("yuv420p", "yuv422p", "yuv444p"), ((16,), (128,), (128,))),
    **dict.fromkeys(("yuvj420p", "yuvj422p", "yuvj444p"), ((0,), (128,), (128,))),
    "nv12": ((16,), (128, 128)),
    "nv21": ((16,), (128, 128)),
    "gray": ((0,),),
    "rgb24": ((0, 0, 0),),
    "bgr24": ((0, 0, 0),),
}


class PrivacyMask:
    """Blackens polygons of every picture; one pixel more than they cover, and whole chroma samples.

    Args:
        polygons: corners in 0..1 of the upright picture.
    """

    def __init__(self, polygons: list[list[Point]]) -> None:
        self._polygons = polygons
        self._shape: tuple[int, int, int, str] | None = None  # of the pictures that `_hidden` fits
        self._hidden: list[NDArray[np.bool_]] = []  # per plane

    def hide(self, picture: av.VideoFrame, camera: str) -> av.VideoFrame:
        """The picture with its masks black: itself where its format allows it, else a copy in RGB, upright.

        The decoder's own picture, which the next may refer to, is not touched.

        Raises:
            SourceError: FFmpeg cannot convert pictures of this kind.
        """
        frame = Frame(camera, 0, 0.0, 0.0, picture)
        values = _BLACK.get(picture.format.name)
        if values is None:  # rare: more than 8 bits, or packed
            image = frame.image
            image[self._cover(*frame.size)] = 0
            return av.VideoFrame.from_ndarray(image, format="rgb24")
        picture.make_writable()
        self._fit(picture, frame)
        for plane, value, hidden in zip(picture.planes, values, self._hidden, strict=True):
            samples = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            height, width = hidden.shape
            shaped = samples[:height, : width * len(value)].reshape(height, width, len(value))
            shaped[hidden] = value
        return picture

    def _fit(self, picture: av.VideoFrame, frame: Frame) -> None:
        """Have `_hidden` fit the planes of pictures like this one."""
        turns = frame.turns
        shape = (picture.width, picture.height, turns, picture.format.name)
        if shape == self._shape:
            return
        upright = self._cover(*frame.size)
        lying = np.rot90(upright, -turns)
        self._hidden = [_shrunk(lying, plane.width, plane.height) for plane in picture.planes]
        self._shape = shape

    def _cover(self, width: int, height: int) -> NDArray[np.bool_]:
        inner = covered(self._polygons, width, height)
        padded = np.pad(inner, 1)
        shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return np.asarray(np.logical_or.reduce(shifted))


def _shrunk(mask: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    """Bring a mask to the size of a plane; a sample is hidden where any of its pixels is."""
    down, across = -(-mask.shape[0] // height), -(-mask.shape[1] // width)
    padded = np.zeros((height * down, width * across), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    return np.asarray(padded.reshape(height, down, width, across).any(axis=(1, 3)))
