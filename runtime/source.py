"""Frames with time stamps, from a file, an RTSP camera, a V4L2 device or a folder of images."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import SourceError

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
_LIVE = ("rtsp://", "rtsps://", "rtmp://", "udp://", "http://", "https://")
_PASSWORD = re.compile(r"//[^/@]*@")
# PyAV's interpolation for scaling to the model's size; Qwen2.5-VL's processor is bicubic as well.
_BICUBIC = "BICUBIC"


def redact(text: str) -> str:
    """Hide the user and password of every address in a text."""
    return _PASSWORD.sub("//***@", text)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; its pixels are converted when they are asked for, so that a frame nobody uses costs little.

    Attributes:
        camera: name of the camera.
        index: number of the frame, from 0, as decoded.
        pts: seconds since the first frame of the source; never falls.
        time: seconds since the epoch at which a live frame came; for a file, its start of playing plus `pts`.
        picture: the decoded picture.
    """

    camera: str
    index: int
    pts: float
    time: float
    picture: av.VideoFrame

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.width, self.picture.height

    @property
    def image(self) -> NDArray[np.uint8]:
        """The frame as [H, W, 3] uint8 RGB."""
        return np.asarray(self.picture.to_ndarray(format="rgb24"), dtype=np.uint8)

    def scaled(self, width: int, height: int) -> NDArray[np.uint8]:
        """The frame scaled to [height, width, 3] uint8 RGB, bicubic."""
        scaled = self.picture.reformat(width, height, "rgb24", interpolation=_BICUBIC)
        return np.asarray(scaled.to_ndarray(), dtype=np.uint8)


class Source:
    """An open source; iterate it for its frames, close it when done.

    A picture that cannot be decoded is skipped and counted in `broken`. The end of a file ends the iteration;
    a live source that falls silent raises.

    Args:
        address: path of a video or of a folder of images, /dev/video0, or rtsp://….
        camera: name for frames and messages.
        stall_seconds: a live source that is silent for longer has stalled.
        image_rate: frames per second of a folder of images.

    Raises:
        SourceError: it cannot be opened; says why and what to do. While iterating: it stalled, or not one
            picture of it could be decoded.
    """

    def __init__(
        self, address: str, camera: str, *, stall_seconds: float = 10.0, image_rate: float = 10.0
    ) -> None:
        self.camera = camera
        self.name = redact(address)
        self.live = self.is_live(address)
        self.broken = 0
        self._image_rate = image_rate
        self._stall_seconds = stall_seconds
        self._images: list[Path] = []
        self._container: Any = None
        if Path(address).is_dir():
            self._images = sorted(p for p in Path(address).iterdir() if p.suffix.lower() in IMAGES)
            if not self._images:
                raise SourceError(f"camera {camera}: {address} holds no images ({', '.join(IMAGES)})")
            return
        if not self.live:
            _check_file(address, camera)
        self._container = self._open(address)
        if not self._container.streams.video:
            self._container.close()
            raise SourceError(f"camera {camera}: {self.name} has no video stream")

    @staticmethod
    def is_live(address: str) -> bool:
        """Whether an address is a camera or a stream, which cannot be read a second time."""
        return address.startswith((*_LIVE, "/dev/"))

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the camera or file."""
        if self._container is not None:
            self._container.close()

    def _open(self, address: str) -> Any:
        options, form = {}, None
        if address.startswith("rtsp"):
            options = {"rtsp_transport": "tcp"}
        if address.startswith("/dev/"):
            form = "v4l2"
        try:
            timeout = (self._stall_seconds, self._stall_seconds) if self.live else None
            return av.open(address, format=form, options=options, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = redact(str(getattr(error, "strerror", None) or error))
            advice = (
                "is the camera on, the address right, the network there?"
                if self.live
                else "it is no video that FFmpeg can read, or it is damaged"
            )
            raise SourceError(f"camera {self.camera}: cannot open {self.name}: {reason}; {advice}") from error

    def __iter__(self) -> Iterator[Frame]:
        started = time.time()
        first: float | None = None
        last = -1.0
        index = 0
        for picture, stamp in self._pictures():
            first = stamp if first is None else first
            pts = stamp - first
            if pts <= last:
                # A stamp that is missing, repeated or jumps back: the frame still came after the one before.
                first -= last + 1e-3 - pts
                pts = last + 1e-3
            last = pts
            now = time.time() if self.live else started + pts
            yield Frame(self.camera, index, pts, now, picture)
            index += 1
        if index == 0:
            raise SourceError(
                f"camera {self.camera}: not one picture of {self.name} could be decoded ({self.broken} were broken)"
            )
        if self.broken:
            log.warning("camera %s: %d broken pictures were skipped", self.camera, self.broken)

    def _pictures(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """Pictures with their time stamps in seconds, as the source has them."""
        if self._images:
            for number, path in enumerate(self._images):
                yield from ((picture, number / self._image_rate) for picture in self._read_image(path))
            return
        stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # frame threads would hold several frames back
        rate = float(stream.average_rate or 25)
        stamp = 0.0
        packets = self._container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                if self.live:
                    raise SourceError(
                        f"camera {self.camera}: {self.name} stalled or was cut: {redact(str(error))}"
                    ) from error
                # A file that ends in the middle: what was decoded is delivered.
                log.warning("camera %s: %s ends early: %s", self.camera, self.name, redact(str(error)))
                self.broken += 1
                return
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                self.broken += 1
                continue
            for picture in pictures:
                stamp = picture.time if picture.time is not None else stamp + 1 / rate
                yield picture, stamp

    def _read_image(self, path: Path) -> Iterator[av.VideoFrame]:
        try:
            with av.open(str(path)) as container:
                yield next(container.decode(video=0))
        except (av.FFmpegError, OSError, StopIteration) as error:
            self.broken += 1
            log.warning("camera %s: %s cannot be decoded and is skipped: %s", self.camera, path, error)


def _check_file(address: str, camera: str) -> None:
    """Say what is wrong with a path before FFmpeg does, in words that help."""
    path = Path(address)
    if not path.exists():
        raise SourceError(f"camera {camera}: {address}: no such file, folder or device")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SourceError(f"camera {camera}: {address} cannot be read: {error.strerror}") from error
    if empty:
        raise SourceError(f"camera {camera}: {address} is empty (0 bytes)")


class LatestFrames:
    """Reads a live source on a thread of its own and keeps only its newest frames.

    Args:
        source: an open live source; closed with this.
        depth: frames that may wait; when another comes, the oldest is dropped and counted in `dropped`.
    """

    def __init__(self, source: Source, depth: int = 2) -> None:
        self._source = source
        self._depth = depth
        self._frames: list[Frame] = []
        self._error: SourceError | None = None
        self._done = False
        self._changed = threading.Condition()
        self.dropped = 0
        self._thread = threading.Thread(target=self._read, name=f"camera {source.camera}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for frame in self._source:
                with self._changed:
                    if self._done:
                        return
                    self._frames.append(frame)
                    if len(self._frames) > self._depth:
                        self._frames.pop(0)
                        self.dropped += 1
                    self._changed.notify()
        except SourceError as error:
            self._error = error
        finally:
            with self._changed:
                self._done = True
                self._changed.notify()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frames or self._done)
                if not self._frames:
                    break
                frame = self._frames.pop(0)
            yield frame
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop reading and let go of the source."""
        with self._changed:
            self._done = True
            self._frames.clear()
            self._changed.notify()
        self._thread.join(timeout=self._source._stall_seconds)
        self._source.close()
