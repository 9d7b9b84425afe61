import logging
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer

import pytest

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.pipeline import Pipeline
from tvau_edge.runtime.vision import Vision

PATCH = 0.5  # seconds


class Sink:
    """Keeps what a pipeline publishes."""

    def __init__(self):
        self.verdicts, self.states, self.heatmaps = [], [], []
        self.started = threading.Event()

    def publish_verdict(self, verdict):
        self.verdicts.append(verdict)
        self.started.set()

    def publish_state(self, camera, state):
        self.states.append((camera, state))

    def publish_heatmap(self, camera, jpeg):
        self.heatmaps.append((camera, jpeg))

    def phases(self, camera):
        return [verdict.phase for verdict in self.verdicts if verdict.camera == camera]


@pytest.fixture(scope="module")
def bundle(red_bundle):
    return Bundle.open(red_bundle)


@pytest.fixture(scope="module")
def vision(bundle):
    opened = Vision.open(bundle, threads=1)
    yield opened
    opened.close()


@pytest.fixture
def make(bundle, vision, red_bundle):
    """Makes a pipeline and its sink, given sources by camera name."""

    def build(sources, camera=None, on_patch=None, **tables):
        cameras = [
            {"name": name, "source": str(source), **(camera or {})} for name, source in sources.items()
        ]
        site = parse_config({"bundle": red_bundle, "camera": cameras, **tables}, "test")
        sink = Sink()
        return Pipeline(site, bundle, vision, sink, on_patch=on_patch), sink

    return build


def test_an_event_from_its_start_to_its_end(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 10, (3, 6), corner=(56, 28))
    pipeline, sink = make({"door": clip}, trigger={"update_seconds": 1, "close_after": 2})
    summary = pipeline.run()
    phases = sink.phases("door")
    assert (phases[0], phases[-1]) == ("start", "end")
    assert set(phases[1:-1]) == {"update"}
    start, end = sink.verdicts[0], sink.verdicts[-1]
    assert {verdict.event for verdict in sink.verdicts} == {start.event}
    assert [verdict.sequence for verdict in sink.verdicts] == list(range(len(phases)))
    # The clip is cut into patches of half a second: what happens is known to the patch in which it falls.
    assert (end.ended - end.started).total_seconds() == pytest.approx(3 + 2 * PATCH, abs=PATCH)
    assert start.score > 0.9
    assert [region.name for region in start.regions] == ["lower right"]
    assert start.anomaly == "unsure"  # nobody was asked
    assert start.latency_ms["vision"] > 0
    (camera,) = summary.cameras
    assert (camera.patches, camera.dropped, camera.events) == (20, 0, 1)
    assert summary.verdicts == len(phases)
    assert summary.vision_ms > 0


def test_the_state_follows_the_event(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 6, (2, 3))
    pipeline, sink = make({"door": clip}, trigger={"close_after": 1})
    pipeline.run()
    told = [(state.anomaly, state.event) for _, state in sink.states]
    event = sink.verdicts[0].event
    assert ("ON", event) in told
    assert told[0] == ("OFF", None)
    assert told[-1] == ("OFF", None)
    on = [state for _, state in sink.states if state.anomaly == "ON"]
    assert on[0].score > 0.9


def test_nothing_happens(make, draw_clip, tmp_path):
    pipeline, sink = make({"door": draw_clip(tmp_path / "grey.mp4", 4)})
    summary = pipeline.run()
    assert sink.verdicts == []
    assert {state.anomaly for _, state in sink.states} == {"OFF"}
    assert summary.cameras[0].events == summary.verdicts == summary.explained == 0


def test_an_event_that_is_open_at_the_end_is_closed(make, draw_clip, tmp_path):
    pipeline, sink = make({"door": draw_clip(tmp_path / "clip.mp4", 4, (2, 9))})
    pipeline.run()
    assert sink.phases("door") == ["start", "end"]
    assert sink.states[-1][1].anomaly == "OFF"


def test_events_have_ids_of_their_own(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 10, (2, 3), (6, 7))
    pipeline, sink = make({"door": clip}, trigger={"close_after": 1})
    pipeline.run()
    assert sink.phases("door") == ["start", "end", "start", "end"]
    assert len({verdict.event for verdict in sink.verdicts}) == 2
    assert len({verdict.id for verdict in sink.verdicts}) == 4


def test_cameras_do_not_touch_each_other(make, draw_clip, tmp_path):
    red = draw_clip(tmp_path / "red.mp4", 6, (2, 4))
    grey = draw_clip(tmp_path / "grey.mp4", 12)
    pipeline, sink = make({"red": red, "grey": grey, "again": red})
    summary = pipeline.run()
    assert sink.phases("grey") == []
    assert sink.phases("red") == sink.phases("again") == ["start", "end"]
    assert [(c.camera, c.patches, c.events) for c in summary.cameras] == [
        ("red", 12, 1),
        ("grey", 24, 0),
        ("again", 12, 1),
    ]
    assert {name: len(line.moments) for name, line in pipeline.timelines.items()} == {
        "red": 12,
        "grey": 24,
        "again": 12,
    }


def test_each_patch_is_told(make, draw_clip, tmp_path):
    seen = []
    clip = draw_clip(tmp_path / "clip.mp4", 3)
    pipeline, _ = make({"door": clip}, on_patch=lambda camera, pts: seen.append((camera, pts)))
    pipeline.run()
    assert seen == [("door", pytest.approx(0.25 + PATCH * k, abs=0.01)) for k in range(6)]


def test_the_configuration_moves_the_thresholds(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 4, (1, 2))
    pipeline, sink = make({"door": clip}, trigger={"open": 0.9999})
    pipeline.run()
    assert sink.verdicts == []  # the red of this clip gives 0.99…
    # An opening threshold below the bundle's closing one takes that one with it.
    pipeline, _ = make({"door": clip}, trigger={"open": 0.3})
    assert (pipeline.thresholds.open, pipeline.thresholds.close) == (0.3, 0.3)


def test_a_source_that_fails_does_not_stop_the_others(make, draw_clip, tmp_path, caplog):
    clip = draw_clip(tmp_path / "clip.mp4", 4, (1, 2))
    pipeline, sink = make({"absent": tmp_path / "absent.mp4", "door": clip})
    with caplog.at_level(logging.ERROR), pytest.raises(SourceError, match=r"camera absent: .*no such file"):
        pipeline.run()
    assert sink.phases("door") == ["start", "end"]
    assert "camera absent" in caplog.text


def test_a_video_that_is_too_small(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "small.mp4", 2, size=(56, 28))
    pipeline, _ = make({"door": clip})
    with pytest.raises(SourceError, match="56x28, smaller than the model's input of 84x56"):
        pipeline.run()
    pipeline, _ = make({"door": clip}, camera={"upscale": True})
    assert pipeline.run().cameras[0].patches == 4


class Feed(BaseRequestHandler):
    """Sends a stream to whoever connects, then stays silent until the server ends."""

    def handle(self):
        self.request.sendall(self.server.stream)
        self.server.gone.wait()


@pytest.fixture
def live(tmp_path, draw_clip):
    """Starts cameras that send a drawn clip over TCP as fast as it is taken and then fall silent."""
    servers = []

    def start(seconds, *spans):
        server = ThreadingTCPServer(("127.0.0.1", 0), Feed)
        server.daemon_threads = True
        server.stream = draw_clip(tmp_path / f"{len(servers)}.ts", seconds, *spans).read_bytes()
        server.gone = threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"tcp://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.gone.set()
        server.shutdown()
        server.server_close()


def test_stopping_closes_what_is_open(make, live):
    address = live(30, (0, 30))  # FFmpeg looks at the first seconds before it opens a stream
    pipeline, sink = make({"gate": address}, camera={"stall_seconds": 60})
    done = []
    thread = threading.Thread(target=lambda: done.append(pipeline.run()))
    thread.start()
    assert sink.started.wait(30)
    pipeline.stop()
    thread.join(30)
    assert not thread.is_alive()
    phases = sink.phases("gate")
    assert (phases[0], phases[-1]) == ("start", "end")
    assert sink.states[-1][1].anomaly == "OFF"
    assert done[0].cameras[0].events == 1


def test_stopping_before_anything_came(make, draw_clip, tmp_path):
    pipeline, sink = make({"door": draw_clip(tmp_path / "clip.mp4", 4)})
    pipeline.stop()
    assert pipeline.run().cameras[0].patches == 0
    assert sink.verdicts == []


def test_threads_end_with_the_run(make, draw_clip, tmp_path):
    pipeline, _ = make({"door": draw_clip(tmp_path / "clip.mp4", 4)})
    before = threading.active_count()
    pipeline.run()
    assert threading.active_count() <= before
