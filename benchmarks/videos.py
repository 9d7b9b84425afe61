"""What a video says of itself, without decoding it: size, frame rate, number of frames."""

from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, UnidentifiedImageError

from tvau_edge.benchmarks.errors import DataError
from tvau_edge.runtime.cameras.source import IMAGES


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video says of itself.

    Attributes:
        size: width and height in pixels.
        frames: how many.
        frames_per_second: on average.
    """

    size: tuple[int, int]
    frames: int
    frames_per_second: float


def probe(path: Path) -> VideoFacts:
    """Look into a video file; its packets are counted, so that a file that was cut off shows.

    Raises:
        DataError: it is absent, empty or no video.
    """
    try:
        if not path.stat().st_size:
            raise DataError(f"{path}: is empty (0 bytes)")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video stream")
            stream = container.streams.video[0]
            frames = sum(1 for packet in container.demux(stream) if packet.size)
            size = stream.codec_context.width, stream.codec_context.height
            rate = float(stream.average_rate or stream.guessed_rate or 0)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is absent") from error
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a video: {error.strerror or error}") from error
    if not frames or rate <= 0:
        raise DataError(f"{path}: holds {frames} frames at {rate:g} frames per second")
    return VideoFacts(size, frames, rate)


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, as the runtime's source takes them, unsorted."""
    return [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Raises:
        DataError: it is absent or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError as error:
        raise DataError(f"{path}: is absent") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"{path}: is no image that can be read") from error
