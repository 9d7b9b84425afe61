"""Frames with time stamps, from a file, an RTSP camera, a V4L2 device, GStreamer or a folder of images."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.cameras.gstreamer import PREFIX, GstPipeline, GstStopped
from tvau_edge.runtime.cameras.masks import PrivacyMask
from tvau_edge.runtime.cameras.stamps import Stamps
from tvau_edge.runtime.errors import SourceError

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".bmp")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOGIN = re.compile(r"://.*@")  # greedy: a password may itself hold '@' or '/'
_SECRET = re.compile(r"\b(user|usr|login|pass|pwd|token|key|secret|auth)([\w-]*)=[^&\s]*", re.IGNORECASE)


def redact(text: str) -> str:
    """Hide the user and password of an address, before the host or in the query."""
    return _SECRET.sub(r"\1\2=***", _LOGIN.sub("://***@", text))


def _is_rtsp(address: str) -> bool:
    return address.lower().startswith(("rtsp://", "rtsps://"))


class Source:
    """An open source; iterate it once for its frames, close it when done, from any thread.

    A picture that cannot be decoded is skipped and counted in `broken`. The end of a file ends the iteration, and
    `truncated` tells whether it came before the length that the file announces. A live source that ends or falls
    silent raises.

    Args:
        address: path of a video or of a folder of images, /dev/video0, rtsp://…, or "gst:" and a GStreamer pipeline.
        camera: name for frames and messages.
        stall_seconds: a live source that shows no picture for longer has stalled.
        image_rate: frames per second of a folder of images.
        mask: blackens parts of each picture as soon as it is decoded.

    Raises:
        SourceError: it cannot be opened; says why and what to do. While iterating: a live source stalled or
            ended, or not one picture could be decoded.
    """

    def __init__(
        self,
        address: str,
        camera: str,
        *,
        stall_seconds: float = 10.0,
        image_rate: float = 10.0,
        mask: PrivacyMask | None = None,
    ) -> None:
        self.camera = camera
        self.name = redact(address)
        self.live = self.is_live(address)
        self.stall_seconds = stall_seconds
        self.broken = 0
        self.truncated = False
        self._image_rate, self._mask = image_rate, mask
        self._images: list[Path] = []
        self._container: Any = None
        self._child: GstPipeline | None = None
        self._closed = False
        self._seen = 0.0  # when the newest picture came, by the monotonic clock
        self._reading = threading.Lock()
        if not _SCHEME.match(address) and not address.startswith(PREFIX):
            address = address if self.live else str(Path(address).absolute())
            if self._check_path(Path(address)):
                self._images = self._list_images(Path(address))
                return
        if address.startswith(PREFIX):
            self._container = self._launch(address.removeprefix(PREFIX))
        else:
            self._container = self._open(address)
        if not self._container.streams.video:
            self._container.close()
            raise self._wrong("has no video stream; it may be a sound file")
        # What has a length is a file, although it comes over the network; RTSP comes at its own pace all the same.
        if self.live and self._container.duration and not _is_rtsp(address):
            self.live = False

    @staticmethod
    def is_live(address: str) -> bool:
        """Whether an address is a camera or a stream, which cannot be read a second time."""
        if address.startswith(PREFIX):
            return True
        if _SCHEME.match(address):
            return not address.lower().startswith("file://")
        return address.startswith("/dev/") and not address.startswith("/dev/shm/")  # noqa: S108 (no temporary file)

    def __enter__(self) -> "Source":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the camera or file; a thread that is reading does so as soon as FFmpeg returns to it."""
        self._closed = True
        if self._child is not None:
            self._child.close()  # which ends a read that waits for it
        if self._container is not None and self._reading.acquire(blocking=False):
            try:
                self._container.close()
            finally:
                self._reading.release()

    def _wrong(self, what: str) -> SourceError:
        return SourceError(f"camera {self.camera}: {self.name} {what}")

    def _check_path(self, path: Path) -> bool:
        """Say what is wrong with a path before FFmpeg does, in words that help; tell whether it is a folder."""
        try:
            if path.is_dir():
                return True
            if not path.exists():
                raise self._wrong(
                    "is absent: no such device; is the camera plugged in? `ls /dev/video*` shows those that are"
                    if self.live
                    else "is absent: no such file, folder or device"
                )
            if not (path.is_file() or path.is_char_device()):
                raise self._wrong("is neither a file, a folder nor a camera")
            if path.is_file():
                with path.open("rb") as file:
                    if not file.read(1):
                        raise self._wrong("is empty (0 bytes)")
        except OSError as error:
            raise self._wrong(f"cannot be read: {error.strerror}; check its permissions") from error
        return False

    def _list_images(self, folder: Path) -> list[Path]:
        try:
            images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGES]
        except OSError as error:
            raise self._wrong(f"cannot be read: {error.strerror}; check its permissions") from error
        if not images:
            raise self._wrong(f"holds no images ({', '.join(IMAGES)})")
        return sorted(images, key=lambda path: _natural(path.name))

    def _open(self, address: str) -> Any:
        options: dict[str, str] = {}
        form = timeout = None
        if _is_rtsp(address):
            options = {"rtsp_transport": "tcp", "allowed_media_types": "video"}
        elif address.startswith("/dev/") and self.live:
            form = "v4l2"
        if self.live:
            timeout = (self.stall_seconds, self.stall_seconds)
        began = time.monotonic()
        try:
            return av.open(address, format=form, options=options, timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            # By the clock: FFmpeg's protocols report its time limit each in another way.
            if timeout and time.monotonic() - began >= self.stall_seconds:
                raise self._wrong(
                    f"did not answer within {self.stall_seconds:g} s; is the camera on, the address right?"
                ) from error
            reason = redact(str(getattr(error, "strerror", None) or error))
            advice = (
                "is the camera on, the address right, the network there?"
                if self.live
                else "it is no video that FFmpeg can read, or it is damaged; try to play or re-encode it"
            )
            raise self._wrong(f"cannot be opened: {reason}; {advice}") from error

    def _launch(self, pipeline: str) -> Any:
        try:
            self._child = GstPipeline(pipeline, self.stall_seconds)
        except GstStopped as error:
            raise self._wrong(redact(str(error))) from error
        try:
            return av.open(self._child, format="matroska", buffer_size=1 << 20)
        except (av.FFmpegError, OSError, ValueError) as error:
            stopped = self._ended()
            self._child.close()
            raise stopped from error

    def _ended(self) -> SourceError:
        """Why a live source gives nothing more."""
        if self._child is None:
            return self._wrong("ended: the camera or its server closed the stream")
        if self._child.stalled:
            return self._stalled()
        return self._wrong(f"ended: {redact(self._child.reason())}")

    def __iter__(self) -> Iterator[Frame]:
        started = time.time()
        stream = None if self._container is None else self._container.streams.video[0]
        stamps = Stamps(self._image_rate if stream is None else float(stream.average_rate or 0), self.live)
        index, pts = 0, 0.0
        for picture, stamp in self._image_pictures() if stream is None else self._stream_pictures(stream):
            pts = stamps.next(stamp)
            if self._mask is not None:
                picture = self._mask.hide(picture, self.camera)
            yield Frame(self.camera, index, pts, time.time() if self.live else started + pts, picture)
            index += 1
        if self._closed:
            return
        if self.broken:
            log.warning("camera %s: %d broken pictures were skipped", self.camera, self.broken)
        if index == 0 and self._child is None:
            raise self._wrong(f"shows nothing: not one picture could be decoded ({self.broken} were broken)")
        if self.live:
            raise self._ended()
        if stream is not None:
            self._judge_end(stream, pts + stamps.period)

    def _stream_pictures(self, stream: Any) -> Iterator[tuple[av.VideoFrame, float | None]]:
        """Pictures with their time stamps in seconds, as the stream has them."""
        # Frame threads would hold frames back, and no thread count made 768x432 faster.
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        # Of all streams, so that sound which goes on does not hide that the pictures stalled.
        packets = self._container.demux()
        self._seen = time.monotonic()
        try:
            while not self._closed:
                with self._reading:
                    pictures, ended = ([], True) if self._closed else self._next_pictures(packets, stream)
                for picture in pictures:
                    if picture.is_corrupt:
                        self.broken += 1
                        continue
                    # Not `picture.time`: pictures that are flushed have no time base of their own.
                    yield picture, None if picture.pts is None else float(picture.pts * stream.time_base)
                    self._seen = time.monotonic()  # what the caller took is not the camera's silence
                if ended:
                    return
                if self.live and self._silent():
                    raise self._stalled()
        finally:
            if self._closed:
                self.close()  # was asked for while the lock was ours

    def _next_pictures(self, packets: Iterator[Any], stream: Any) -> tuple[list[Any], bool]:
        """Read one packet; returns the pictures that it completes, and whether it was the last."""
        try:
            packet = next(packets, None)
            if packet is None:
                return [], True
        except av.FFmpegError as error:
            # FFmpeg's own word for its time limit, though not every protocol passes it on.
            if isinstance(error, av.error.ExitError) or (self.live and self._silent()):
                raise self._stalled() from error
            if self._child is not None:
                raise self._ended() from error
            if self.live:
                raise self._wrong(f"was cut: {redact(str(error.strerror))}") from error
            log.warning("camera %s: %s is damaged: %s", self.camera, self.name, error.strerror)
            self.truncated = True
            packet = None  # what the decoder still holds is delivered
        try:
            if packet is None:
                return stream.codec_context.decode(None), True
            return (packet.decode() if packet.stream is stream else []), False
        except av.FFmpegError:
            self.broken += 1
            return [], packet is None

    def _silent(self) -> bool:
        return time.monotonic() - self._seen >= self.stall_seconds

    def _stalled(self) -> SourceError:
        return self._wrong(
            f"stalled: no picture for {self.stall_seconds:g} s; is the camera on, the network there?"
        )

    def _judge_end(self, stream: Any, seconds: float) -> None:
        """Warn about a file that ends well before the length that it announces."""
        announced = 0.0
        if stream.duration:
            announced = float(stream.duration * stream.time_base)
        elif self._container.duration and len(self._container.streams) == 1:
            announced = self._container.duration / 1e6
        if announced - seconds > max(1.0, 0.05 * announced):
            self.truncated = True
            log.warning(
                "camera %s: %s ends after %.1f of %.1f s; the file is cut off or damaged",
                self.camera,
                self.name,
                seconds,
                announced,
            )

    def _image_pictures(self) -> Iterator[tuple[av.VideoFrame, float]]:
        for number, path in enumerate(self._images):
            if self._closed:
                return
            try:
                # By content, not by name: to FFmpeg a % in a name means a numbered series.
                with path.open("rb") as file, av.open(file, "r") as container:
                    picture = next(container.decode(video=0))
            except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
                self.broken += 1
                log.log(
                    logging.WARNING if self.broken == 1 else logging.DEBUG,
                    "camera %s: %s cannot be decoded and is skipped: %s",
                    self.camera,
                    path,
                    getattr(error, "strerror", None) or type(error).__name__,
                )
                continue
            yield picture, number / self._image_rate


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers by value: frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
