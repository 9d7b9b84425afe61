"""A picture as JPEG, by FFmpeg."""

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encode [H, W, 3] uint8 RGB; an odd last line or column is left out."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height = width, height
    context.pix_fmt, context.time_base = "yuvj420p", Fraction(1, 25)
    context.options = {"qmin": "3", "qmax": "3"}
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
    picture = picture.reformat(format="yuvj420p")
    picture.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(picture), *context.encode(None)])
