"""Cameras over RTSP, from GStreamer's server on the loopback interface."""

import signal
import threading
from itertools import pairwise

import pytest

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.latest import LatestFrames
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.service.pipeline import Pipeline


@pytest.fixture(scope="module")
def clip(tmp_path_factory, draw_clip):
    """Twelve seconds with something red from 2 to 5."""
    return draw_clip(tmp_path_factory.mktemp("rtsp") / "clip.mp4", 12, (2, 5))


def test_frames_come_with_their_stamps(serve_rtsp, clip):
    _, address, _ = serve_rtsp(clip)
    with Source(address, "gate", stall_seconds=20) as source, LatestFrames(source, depth=1000) as frames:
        assert source.live
        seen = [frame for frame, _ in zip(frames, range(24), strict=False)]
    assert {frame.size for frame in seen} == {(84, 56)}
    steps = [after.pts - before.pts for before, after in pairwise(seen)]
    # The first picture's stamp is not yet tied to the others': that takes the server's first report.
    assert steps[1:] == pytest.approx([1 / 8] * 22, abs=0.02)
    assert steps[0] > 0


def test_gstreamer_reads_it_as_well(serve_rtsp, clip):
    _, address, _ = serve_rtsp(clip)
    pipeline = (
        f"gst: rtspsrc location={address} latency=0 protocols=tcp ! rtph264depay ! h264parse ! avdec_h264"
    )
    with Source(pipeline, "gate", stall_seconds=20) as source, LatestFrames(source) as frames:
        assert next(iter(frames)).size[1] == 56


def test_a_path_that_the_server_does_not_have(serve_rtsp, clip):
    _, address, _ = serve_rtsp(clip)
    with pytest.raises(SourceError, match=r"404|[Nn]ot [Ff]ound"):
        Source(address.replace("/clip", "/other"), "gate", stall_seconds=20)


def test_a_server_that_freezes_is_a_stall(serve_rtsp, clip):
    process, address, _ = serve_rtsp(clip)
    with Source(address, "gate", stall_seconds=1.5) as source:
        frames = iter(source)
        for _ in range(3):
            next(frames)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(SourceError, match="stalled"):
            list(frames)


class Sink:
    def __init__(self):
        self.verdicts, self.states = [], []

    def publish_verdict(self, verdict):
        self.verdicts.append(verdict)

    def publish_state(self, camera, state):
        self.states.append(state)

    def publish_heatmap(self, camera, jpeg):
        pass


def test_events_come_through_a_server_that_is_killed_and_comes_back(serve_rtsp, clip, red_bundle, eventually):
    process, address, port = serve_rtsp(clip)
    bundle, sink = Bundle.open(red_bundle), Sink()
    vision = Vision.open(bundle, threads=1)
    site = parse_config(
        {
            "bundle": red_bundle,
            "camera": [{"name": "gate", "source": address, "stall_seconds": 3, "reconnect_seconds": 1}],
        },
        "test",
    )
    pipeline = Pipeline(site, bundle, vision, sink)
    thread = threading.Thread(target=pipeline.run, daemon=True)
    thread.start()
    eventually(lambda: [v.phase for v in sink.verdicts] == ["start"], "an event")
    process.kill()
    process.wait()
    eventually(lambda: [v.phase for v in sink.verdicts] == ["start", "end"], "its end")
    serve_rtsp(clip, port)
    eventually(lambda: [v.phase for v in sink.verdicts][:3] == ["start", "end", "start"], "the next event")
    assert pipeline.cameras["gate"].feed.facts.reconnects >= 1
    pipeline.stop()
    thread.join(30)
    assert not thread.is_alive()
    vision.close()
