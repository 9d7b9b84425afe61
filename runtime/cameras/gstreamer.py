"""A GStreamer pipeline as a source of pictures: how the hardware decoders of Jetsons and other boards are reached.

The pipeline runs in a child process, `gst-launch-1.0`, so that a driver which crashes or hangs takes nothing of ours
with it. Its raw pictures come through a pipe as Matroska, which keeps their time stamps.
"""

import os
import select
import shlex
import shutil
import subprocess
import threading
from collections import deque
from types import TracebackType

PREFIX = "gst:"
# Matroska holds lines as GStreamer lays them, FFmpeg expects them tight: both agree on multiples of 8. The matrix of
# the colours is not passed on, so it is made the one that FFmpeg takes where nothing is said. What is so already, costs
# nothing here.
_TAIL = (
    "videoconvert ! videoscale add-borders=false ! "
    "video/x-raw,format=I420,colorimetry=bt601,width=[8,32768,8],height=[2,32768,2] ! "
    "matroskamux streamable=true ! fdsink sync=false fd="
)
_LINES = 20  # of its complaints that we keep
_GRACE = 2.0  # seconds that it has to end by itself
_LONGEST = 300  # characters of a complaint that we repeat


class GstStopped(Exception):
    """The pipeline gives nothing more: it has stalled, failed or ended. The text says which, and its own reason."""


class GstPipeline:
    """A running `gst-launch-1.0`, read like a file.

    Args:
        pipeline: elements from the source to raw video in system memory, as one writes them for `gst-launch-1.0`:
            "rtspsrc location=rtsp://… ! rtph264depay ! h264parse ! nvv4l2decoder ! nvvidconv". No shell sees it.
        stall_seconds: how long a read waits for data.

    Raises:
        GstStopped: it cannot be started.
    """

    def __init__(self, pipeline: str, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self.stalled = False
        self._complaints: deque[str] = deque(maxlen=_LINES)
        launch = shutil.which("gst-launch-1.0")
        if launch is None:
            raise GstStopped("needs gst-launch-1.0, which is absent; apt-get install gstreamer1.0-tools")
        try:
            elements = shlex.split(pipeline)
        except ValueError as error:
            raise GstStopped(f"is no pipeline: {error}") from error
        self._out, child = os.pipe()
        try:
            self._process = subprocess.Popen(
                [launch, "-q", *elements, "!", *shlex.split(f"{_TAIL}{child}")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(child,),
                text=True,
                errors="replace",
            )
        except (OSError, ValueError) as error:
            os.close(self._out)
            raise GstStopped(f"cannot be started: {error}") from error
        finally:
            os.close(child)
        self._reading, self._closing = threading.Lock(), threading.Lock()
        self._closed = False
        self._listener = threading.Thread(target=self._listen, name="gstreamer's complaints", daemon=True)
        self._listener.start()

    def __enter__(self) -> "GstPipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None  # we asked for it
        for line in self._process.stderr:
            self._complaints.append(line.strip())

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of Matroska; nothing at its end, or when nothing came for `stall_seconds`."""
        with self._reading:
            if self._closed:
                return b""
            ready, _, _ = select.select([self._out], [], [], self._stall_seconds)
            if not ready:
                self.stalled = True
                return b""
            return os.read(self._out, size)

    def reason(self) -> str:
        """Why it ended, in its own words, as far as it has any."""
        try:
            status = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "it still runs, but gives no pictures"
        self._listener.join(_GRACE)
        errors = [
            line for line in self._complaints if "error" in line.lower() and "debug" not in line.lower()
        ]
        words = " ".join((errors or list(self._complaints))[:2])
        return words[:_LONGEST] or f"gst-launch-1.0 ended with status {status}"

    def close(self) -> None:
        """End the pipeline, by force where it must be; may be called from any thread and more than once."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._process.terminate()
            try:
                self._process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._listener.join(_GRACE)
            if self._process.stderr is not None:
                self._process.stderr.close()
            with self._reading:  # whoever read has met the end by now
                os.close(self._out)
