"""Frames to measure with: a given video, or a drawn one."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import Sampler, TemporalPatch
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.manifest import Geometry

_SECONDS = 4
_RATE = 25


def draw_footage(path: Path, width: int, height: int, seconds: float = _SECONDS) -> None:
    """Write a drawn clip as H.264: boxes that move over noise, the same each time."""
    random = np.random.default_rng(0)
    ground = random.integers(90, 140, (height, width, 3)).astype(np.uint8)
    boxes = [(random.integers(0, (width, height)), random.integers(-9, 10, 2), color) for color in range(6)]
    with av.open(path, "w") as container:
        stream = container.add_stream("h264", Fraction(_RATE), options={"preset": "veryfast", "g": "50"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(int(seconds * _RATE)):
            image = ground.copy()
            for start, speed, color in boxes:
                x, y = (start + number * speed) % (width, height)
                image[y : y + height // 6, x : x + width // 10] = (40 * color, 255 - 40 * color, 128)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))


def describe(path: Path, drawn: bool) -> str:
    """What a video is, without its name: whose it is may be nobody's business."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = f"{float(stream.average_rate):g} frames/s" if stream.average_rate else "unknown rate"
        kind = f"{stream.codec_context.name} {stream.width}x{stream.height}, {rate}"
    return f"drawn, {kind}" if drawn else kind


def patches(path: Path, geometry: Geometry) -> Iterator[TemporalPatch]:
    """Temporal patches of a video, from its start again whenever it ends.

    Raises:
        SourceError: it cannot be read, or is smaller than the model's input.
        BenchError: it is too short for one patch.
    """
    while True:
        sampler = Sampler(geometry, upscale=True)
        with Source(str(path), "bench") as source:
            for frame in source:
                yield from sampler.push(frame)


def take_patches(bundle: Bundle, path: Path, count: int) -> list[TemporalPatch]:
    """The first `count` temporal patches of a video; see `patches`."""
    taken: list[TemporalPatch] = []
    for patch in patches(path, bundle.manifest.geometry):
        taken.append(patch)
        if len(taken) == count:
            return taken
    raise AssertionError("patches never end")
