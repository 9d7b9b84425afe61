import itertools
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from tvau_edge.runtime.cameras import gstreamer as module
from tvau_edge.runtime.cameras.gstreamer import GstPipeline, GstStopped
from tvau_edge.runtime.cameras.latest import LatestFrames
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.errors import SourceError

pytestmark = pytest.mark.skipif(
    shutil.which("gst-launch-1.0") is None,
    reason="gst-launch-1.0 is absent (apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good gstreamer1.0-libav)",
)


def decode(path):
    """H.264 of a file by Debian's software decoder, as a hardware decoder would be named on a Jetson."""
    return f"gst: filesrc location={path} ! qtdemux ! h264parse ! avdec_h264"


def raises(match):
    return pytest.raises(SourceError, match=match)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, draw_clip):
    return draw_clip(tmp_path_factory.mktemp("gst") / "clip.mp4", 4, (1, 2), size=(160, 112))


def read(address, **options):
    """Every frame until the source ends, and how it ended."""
    frames = []
    with Source(address, "gate", **options) as source, raises("gate") as caught:
        for frame in source:
            frames.append(frame)
    return frames, str(caught.value)


def test_the_pictures_and_stamps_of_a_decoder(clip):
    frames, ending = read(decode(clip))
    assert len(frames) == 32
    assert [frame.pts for frame in frames] == pytest.approx([k / 8 for k in range(32)], abs=2e-3)
    with Source(str(clip), "gate") as source:
        direct = [frame.image for frame in source]
    for frame, image in zip(frames, direct, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 3
    assert "gate: gst: filesrc" in ending
    assert "ended" in ending


@pytest.mark.parametrize("size", [(84, 56), (102, 76), (1366, 768)])
@pytest.mark.parametrize("colours", ["bt601", "bt709"])
def test_sizes_and_colours(size, colours):
    caps = f"video/x-raw,format=NV12,width={size[0]},height={size[1]},colorimetry={colours}"
    frames, _ = read(f"gst: videotestsrc num-buffers=2 pattern=red ! {caps}")
    width, height = frames[0].size
    assert (abs(width - size[0]), width % 8) == (abs(width - size[0]) % 8, 0)
    assert abs(height - size[1]) < 2
    pixels = frames[0].image.reshape(-1, 3).astype(int)
    assert np.abs(pixels - (253, 0, 0)).max() <= 6


def test_it_is_live():
    assert Source.is_live("gst: v4l2src ! videoconvert")


def test_a_live_pipeline_is_read_newest_first():
    address = "gst: videotestsrc is-live=true ! video/x-raw,width=168,height=112,framerate=60/1"
    with Source(address, "gate", stall_seconds=20) as source, LatestFrames(source) as frames:
        seen = [frame for frame, _ in zip(frames, range(20), strict=False)]
    assert seen[0].size == (168, 112)
    assert all(a.pts < b.pts for a, b in itertools.pairwise(seen))


def test_silence_is_a_stall():
    address = "gst: videotestsrc is-live=true ! video/x-raw,width=80,height=56"
    with Source(address, "gate", stall_seconds=1.5) as source, raises(r"stalled: no picture for 1\.5 s"):
        for frame in source:
            if frame.index == 5:
                source._child._process.send_signal(signal.SIGSTOP)  # as a driver does that hangs


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ("nvv4l2nothing ! fakesrc", "nvv4l2nothing"),
        ("filesrc location=/absent.mp4 ! qtdemux ! h264parse ! avdec_h264", "filesrc"),
        ("videotestsrc num-buffers=0", "ended"),
        ("audiotestsrc num-buffers=5", "link"),
        ("", "syntax error|ended"),
        ("videotestsrc '", "is no pipeline"),
        ("videotestsrc ! ! !", "syntax error"),
        ("a\0b", "cannot be started"),
    ],
)
def test_a_wrong_pipeline_says_why_in_gstreamers_words(pipeline, expected):
    with raises(f"(?s)camera gate: gst:.*({expected})"):
        Source(f"gst: {pipeline}", "gate", stall_seconds=10)


def test_no_shell_sees_the_pipeline(tmp_path):
    with raises("gate"):
        Source(f"gst: videotestsrc num-buffers=1 ; touch {tmp_path}/made $(touch {tmp_path}/made)", "gate")
    assert list(tmp_path.iterdir()) == []


def test_a_password_in_a_pipeline_is_not_told():
    address = (
        "gst: rtspsrc location=rtsp://admin:hunter2@127.0.0.1:1/s user-id=admin user-pw=hunter2 ! fakesink"
    )
    with raises("gate") as caught:
        Source(address, "gate", stall_seconds=5)
    assert "hunter2" not in str(caught.value)


def test_gstreamer_is_absent(monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with raises("needs gst-launch-1.0, which is absent; apt-get install gstreamer1.0-tools"):
        Source("gst: videotestsrc", "gate")


def children():
    listed = subprocess.run(["ps", "-o", "comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [name for name in listed.stdout.split() if name.startswith("gst-launch")]


def test_closing_ends_the_child_and_gives_everything_back():
    def once():
        source = Source("gst: videotestsrc is-live=true ! video/x-raw,width=84,height=56", "gate")
        frames = LatestFrames(source)
        next(iter(frames))
        frames.close()
        source.close()

    once()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(3):
        once()
    assert children() == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert threading.active_count() <= threads


def test_a_child_that_is_killed_is_an_end():
    with Source("gst: videotestsrc is-live=true ! video/x-raw,width=84,height=56", "gate") as source:
        frames = iter(source)
        next(frames)
        source._child._process.kill()
        with raises("ended"):
            for _ in frames:
                pass


def test_closing_while_a_read_waits():
    pipeline = GstPipeline("appsrc is-live=true", stall_seconds=60)
    got = []
    reader = threading.Thread(target=lambda: got.append(pipeline.read(100)))
    reader.start()
    pipeline.close()
    reader.join(30)
    assert got == [b""]
    assert pipeline.read(100) == b""
    pipeline.close()


def test_a_pipeline_that_does_not_want_to_end_is_killed(monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 0.2)
    with GstPipeline(
        "videotestsrc is-live=true ! video/x-raw,width=84,height=56", stall_seconds=10
    ) as pipeline:
        assert pipeline.read(10)
        pipeline._process.send_signal(signal.SIGSTOP)
        # Stopped for certain: of two signals that wait for a busy CPU, the kernel hands over SIGTERM first.
        os.waitid(os.P_PID, pipeline._process.pid, os.WSTOPPED)
    assert pipeline._process.returncode == -9
    assert "gives no pictures" not in pipeline.reason()


def test_what_it_cannot_start_raises():
    with pytest.raises(GstStopped, match="is no pipeline"):
        GstPipeline('"', 1)
    assert Path("/proc/self/fd").exists()
