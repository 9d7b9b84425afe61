import gc
import logging
import os
import re
import socket
import struct
import threading
import time
import wave
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import av
import numpy as np
import pytest

from tvau_edge.runtime.cameras.latest import LatestFrames
from tvau_edge.runtime.cameras.source import Source, redact
from tvau_edge.runtime.errors import SourceError

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 200, 30), (30, 30, 220), (120, 120, 120)


def quarters(width, height):
    """Red, green / blue, grey: shows which way up a picture is."""
    image = np.empty((height, width, 3), np.uint8)
    image[: height // 2, : width // 2], image[: height // 2, width // 2 :] = RED, GREEN
    image[height // 2 :, : width // 2], image[height // 2 :, width // 2 :] = BLUE, GREY
    return image


def write_video(
    path, count=20, rate=10, size=(64, 48), stamps=None, codec="libx264", pix="yuv420p", **options
):
    """A real video of `count` frames; `stamps` are their times in milliseconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pix
        stream.codec_context.time_base = Fraction(1, 1000)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast", "g": "10", "bf": "2"}
        for number in range(count):
            image = quarters(*size)
            image[:8, :8] = number * 10 % 250  # so that frames differ
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = stamps[number] if stamps else round(number * 1000 / rate)
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def read(path, **options):
    with Source(str(path), "door", **options) as source:
        return list(source), source


def near(pixel, colour, tolerance=30):
    return np.abs(pixel.astype(int) - colour).max() <= tolerance


def raises(match):
    return pytest.raises(SourceError, match=match)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4")


# ---------------------------------------------------------------- files


def test_delivers_every_frame_in_order(video):
    before = time.time()
    frames, source = read(video)
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.pts for frame in frames] == pytest.approx([k / 10 for k in range(20)], abs=1e-6)
    assert {frame.camera for frame in frames} == {"door"}
    assert frames[0].time == pytest.approx(before, abs=60)
    assert frames[-1].time - frames[0].time == pytest.approx(1.9)
    assert (source.broken, source.truncated, source.live) == (0, False, False)


def test_pixels_are_rgb_the_right_way_up(video):
    frame = read(video)[0][5]
    assert frame.size == (64, 48)
    for image in (frame.image, frame.scaled(128, 96), frame.scaled(28, 56)):
        height, width = image.shape[:2]
        assert image.dtype == np.uint8
        assert near(image[height // 3, width // 3], RED)
        assert near(image[height // 3, -3], GREEN)
        assert near(image[-3, 3], BLUE)
        assert near(image[-3, -3], GREY)
    assert frame.scaled(28, 56).shape == (56, 28, 3)


@pytest.mark.parametrize("size", [(35, 21), (101, 57), (3, 2), (642, 362)])
def test_widths_that_do_not_fill_a_line_of_memory(tmp_path, size):
    write_image(tmp_path / "odd.png", size)
    (frame,), _ = read(tmp_path)
    assert np.array_equal(frame.image, quarters(*size))
    assert np.array_equal(frame.scaled(*size), quarters(*size))


def test_video_of_odd_size(tmp_path):
    frame = read(write_video(tmp_path / "odd.mkv", 2, size=(101, 57), pix="yuv444p"))[0][0]
    assert frame.image.shape == (57, 101, 3)
    assert near(frame.image[-3, -3], GREY)
    assert near(frame.image[-3, 3], BLUE)


def test_variable_rate_keeps_its_stamps(tmp_path):
    stamps = [0, 40, 400, 401, 1500]
    frames, _ = read(write_video(tmp_path / "v.mp4", 5, stamps=stamps))
    assert [round(frame.pts * 1000) for frame in frames] == stamps


def test_a_stream_without_stamps_still_rises(tmp_path):
    with av.open(str(write_video(tmp_path / "a.mp4"))) as container:
        stream = container.streams.video[0]
        units = b"".join(bytes(packet) for packet in _annex_b(container, stream))
    (tmp_path / "raw.h264").write_bytes(units)
    frames, _ = read(tmp_path / "raw.h264")
    assert len(frames) == 20
    assert all(a.pts < b.pts for a, b in pairwise(frames))


def _annex_b(container, stream):
    filters = av.bitstream.BitStreamFilterContext("h264_mp4toannexb", stream)
    for packet in container.demux(stream):
        yield from filters.filter(packet if packet.size else None)


@pytest.mark.parametrize(
    ("turn", "corner"),
    [(0, RED), (90, BLUE), (180, GREY), (270, GREEN)],
)
def test_rotation_of_the_file_is_honoured(tmp_path, turn, corner):
    """`turn` is clockwise, as a phone notes it; `corner` is what comes to the upper left."""
    path = write_video(tmp_path / "turned.mp4", 3)
    data = path.read_bytes()
    one, cos, sin = 1 << 16, *{0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    track = data.index(b"tkhd")
    place = data.index(upright, track)
    path.write_bytes(data[:place] + turned + data[place + 36 :])
    frame = read(path)[0][2]
    size = (48, 64) if turn % 180 else (64, 48)
    assert frame.size == size
    for image in (frame.image, frame.scaled(*size)):
        assert image.shape == (size[1], size[0], 3)
        assert near(image[size[1] // 3, size[0] // 3], corner)


def test_real_clips(real_videos):
    counts = {name: len(read(path)[0]) for name, path in real_videos.items() if "car" in name}
    assert counts == {"car-detection": 377}  # it has sound as well


def test_another_camera_resolution_in_the_middle(tmp_path):
    for name, size in (("1.png", (64, 48)), ("2.png", (32, 24))):
        write_image(tmp_path / name, size)
    assert [frame.scaled(28, 28).shape for frame in read(tmp_path)[0]] == [(28, 28, 3)] * 2


# ---------------------------------------------------------------- what is wrong with a file


def test_absent(tmp_path):
    with raises("no such file"):
        Source(str(tmp_path / "absent.mp4"), "door")


def test_absent_device():
    with raises("no such device"):
        Source("/dev/video97", "door")


def test_a_device_that_is_no_camera():
    with raises("cannot be opened"):
        Source("/dev/null", "door")


def test_empty_file(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with raises(r"empty \(0 bytes\)"):
        Source(str(tmp_path / "empty.mp4"), "door")


@pytest.mark.parametrize("name", ["noise.mp4", "noise.avi", "noise.xyz", "noise.h264"])
def test_garbage(tmp_path, name):
    noise = np.random.default_rng(1).integers(0, 256, 20_000, dtype=np.uint8).tobytes()
    (tmp_path / name).write_bytes(noise)
    with raises("cannot be opened|not one picture|no video stream"):
        read(tmp_path / name)


def test_sound_only(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    with raises("no video stream"):
        Source(str(tmp_path / "sound.wav"), "door")


def test_forbidden(tmp_path, monkeypatch, video):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run the tests, is refused nothing
    with raises("Permission denied; check its permissions"):
        Source(str(video), "door")


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with raises("neither a file, a folder nor a camera"):
        Source(str(tmp_path / "pipe"), "door")


@pytest.mark.parametrize("address", ["a\0b.mp4", "x" * 5000, "nothing://at.all/x", ""])
def test_odd_addresses(address):
    with raises("camera door: "):
        read(address)


def test_a_name_that_looks_like_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "12:30 %d.mp4", 3)
    assert len(read("12:30 %d.mp4")[0]) == 3


def test_cut_off_delivers_what_is_there_and_says_so(tmp_path, caplog):
    path = write_video(tmp_path / "cut.mp4", 100, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        frames, source = read(path)
    assert 20 < len(frames) < 90
    assert source.truncated
    assert re.search(r"ends after \d.* of 10.0 s; the file is cut off", caplog.text)


def test_cut_off_before_its_index(tmp_path):
    path = write_video(tmp_path / "cut.mp4", 30)  # the index of this one is at its end
    path.write_bytes(path.read_bytes()[:-200])
    with raises("cannot be opened: .*damaged"):
        Source(str(path), "door")


@pytest.mark.parametrize("seed", range(5))
def test_damage_in_the_middle_is_survived(tmp_path, seed):
    path = write_video(tmp_path / "bad.mp4", 60, movflags="faststart")
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    media = bytes(data).index(b"mdat") + 800
    places = rng.integers(media, len(data), 30)
    data[places] = rng.integers(0, 256, 30)
    path.write_bytes(data.tobytes())
    frames, source = read(path)
    assert len(frames) >= 10
    assert len(frames) + source.broken <= 62


# ---------------------------------------------------------------- folders of images


def write_image(path, size=(64, 48)):
    codec, pix = {".png": ("png", "rgb24"), ".jpg": ("mjpeg", "yuvj420p"), ".bmp": ("bmp", "bgr24")}[
        path.suffix
    ]
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt, context.time_base = *size, pix, Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(quarters(*size), format="rgb24").reformat(format=pix)
    picture.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(picture), *context.encode(None)]))
    return path


def test_images_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write_image(tmp_path / f"image{number}.png", (20 + 2 * number, 48))
    (tmp_path / "notes.txt").write_text("not an image")
    frames, source = read(tmp_path, image_rate=4)
    assert [frame.size[0] for frame in frames] == [22, 38, 40]
    assert [frame.pts for frame in frames] == pytest.approx([0, 0.25, 0.5])
    assert not source.live


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_kinds_of_images(tmp_path, suffix):
    write_image(tmp_path / f"100% at 3:40.{suffix}")
    image = read(tmp_path)[0][0].image
    assert near(image[20, 20], RED)
    assert near(image[-3, -3], GREY)


def test_an_image_that_cannot_be_decoded_is_skipped(tmp_path):
    for number in range(3):
        write_image(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "9.png").touch()
    frames, source = read(tmp_path, image_rate=10)
    assert [frame.pts for frame in frames] == pytest.approx([0, 0.2])
    assert source.broken == 2


def test_only_broken_images(tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    with raises(r"not one picture could be decoded \(1 were broken\)"):
        read(tmp_path)


def test_a_folder_without_images(tmp_path):
    with raises("holds no images"):
        Source(str(tmp_path), "door")


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:hunter2@10.0.0.5:554/s1", "rtsp://***@10.0.0.5:554/s1"),
        ("rtsp://admin:hun@ter/2@10.0.0.5/s1", "rtsp://***@10.0.0.5/s1"),
        ("rtsp://hunter2@cam/s1", "rtsp://***@cam/s1"),
        (
            "rtsp://cam/s1?user=hunter2&password=hunter2&channel=1",
            "rtsp://cam/s1?user=***&password=***&channel=1",
        ),
        ("http://cam/s1?Token=hunter2", "http://cam/s1?Token=***"),
        ("rtsp://cam/s1", "rtsp://cam/s1"),
        ("/data//me@home/clip.mp4", "/data//me@home/clip.mp4"),
    ],
)
def test_redact(address, shown):
    assert redact(address) == shown


def test_a_refused_connection_tells_no_password(free_port):
    with raises("door: .*Connection refused") as caught:
        Source(f"rtsp://admin:hunter2@127.0.0.1:{free_port}/s?password=hunter2", "door", stall_seconds=5)
    assert "hunter2" not in str(caught.value)
    assert "admin" not in str(caught.value)


# ---------------------------------------------------------------- live sources


def test_what_is_live():
    live = [
        "rtsp://c/1",
        "RTSP://c/1",
        "rtsps://c/1",
        "http://c/1",
        "udp://0:1",
        "srt://c",
        "/dev/video0",
        "/dev/v4l/x",
    ]
    assert all(Source.is_live(address) for address in live)
    assert not any(Source.is_live(a) for a in ["a.mp4", "/data/dev/a.mp4", "file:///a.mp4", "/dev/shm/a.mp4"])


class Camera(ThreadingTCPServer):
    """Sends `parts` of a stream, one after each release of `more`, then ends, or stays silent."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, parts, silent):
        super().__init__(("127.0.0.1", 0), Feed)
        self.parts, self.silent = parts, silent
        self.gone = threading.Event()
        self.more = threading.Semaphore(1)
        self.url = f"tcp://user:hunter2@127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.gone.set()
        self.more.release(len(self.parts))
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass  # the reader hung up


class Feed(BaseRequestHandler):
    def handle(self):
        for part in self.server.parts:
            self.server.more.acquire()
            self.request.sendall(part)
        if self.server.silent:
            self.server.gone.wait()


@pytest.fixture
def camera(tmp_path):
    cameras = []

    def start(*counts, silent=True):
        parts = [
            write_video(tmp_path / f"part{number}.ts", count, rate=25, pat_period="0.1").read_bytes()
            for number, count in enumerate(counts)
        ]
        cameras.append(Camera(parts, silent))
        return cameras[-1]

    yield start
    for one in cameras:
        one.stop()


def alive(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_silence_is_a_stall(camera):
    seen = 0
    stalls = raises("camera gate: .*stalled: no picture for 1.5 s")
    with Source(camera(250).url, "gate", stall_seconds=1.5) as source, stalls as caught:
        for _ in source:
            seen += 1
    assert "hunter2" not in str(caught.value)
    assert seen > 200


def test_an_end_is_told(camera):
    seen = 0
    with Source(camera(100, silent=False).url, "gate", stall_seconds=20) as source, raises("gate: .*ended"):
        for _ in source:
            seen += 1
    assert seen == 100


def test_a_server_that_never_answers():
    with socket.create_server(("127.0.0.1", 0)) as server, raises("did not answer within 0.5 s"):
        Source(f"rtsp://127.0.0.1:{server.getsockname()[1]}/s", "gate", stall_seconds=0.5)


def test_latest_frames_keeps_the_newest(video):
    with LatestFrames(Source(str(video), "gate"), depth=3) as frames:
        frames._thread.join(30)  # all have come before the first is taken
        assert [frame.index for frame in frames] == [17, 18, 19]
        assert frames.dropped == 17


def test_latest_frames_loses_nothing_when_they_are_taken_in_time(camera):
    server = camera(100, 50, silent=False)
    with LatestFrames(Source(server.url, "gate", stall_seconds=20), depth=1000) as frames:
        server.more.release()
        seen = []
        with raises("ended"):
            for frame in frames:
                seen.append(frame)
        assert [frame.index for frame in seen] == list(range(150))
        assert all(a.pts < b.pts for a, b in pairwise(seen))  # the second part starts its stamps again
        assert frames.dropped == 0


def test_latest_frames_tells_of_a_stall(camera):
    with LatestFrames(Source(camera(250).url, "gate", stall_seconds=1.0)) as frames, raises("stalled"):
        for _ in frames:
            pass


class Stuck:
    """A source whose driver never returns from a read."""

    camera, stall_seconds = "stuck", 0.1

    def __init__(self):
        self.free = threading.Event()

    def __iter__(self):
        self.free.wait()
        return iter(())

    def _stalled(self):
        return SourceError("stalled")

    def close(self):
        pass


def test_a_driver_that_never_returns_is_a_stall_and_does_not_hold_up_closing():
    source = Stuck()
    frames = LatestFrames(source)
    with raises("stalled"):
        next(iter(frames))
    started = time.monotonic()
    frames.close()
    assert time.monotonic() - started < 10
    source.free.set()
    frames._thread.join(30)
    assert not frames._thread.is_alive()


def test_an_error_in_the_reader_reaches_the_taker():
    class Bad(Stuck):
        def __iter__(self):
            raise RuntimeError("a fault of ours")

    with LatestFrames(Bad()) as frames, pytest.raises(RuntimeError, match="a fault of ours"):
        next(iter(frames))


def test_closing_while_the_source_reads_ends_the_thread(camera):
    source = Source(camera(250).url, "yard", stall_seconds=1.5)
    frames = LatestFrames(source)
    next(iter(frames))
    source.close()  # as a pipeline does that fails; FFmpeg is waiting for data in the other thread
    frames.close()
    frames._thread.join(30)
    assert not alive("camera yard")
    assert list(frames) == []


def test_closing_gives_everything_back(video):
    def once():
        with Source(str(video), "leak") as source:
            next(iter(source))
        with LatestFrames(Source(str(video), "leak")) as frames:
            next(iter(frames))

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not alive("camera leak")


def test_a_closed_source_gives_no_more(video):
    source = Source(str(video), "door")
    frames = iter(source)
    next(frames)
    source.close()
    assert list(frames) == []
    source.close()
