import logging
import threading
import time

import av
import pytest

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import BackendError, ConfigError, SourceError
from tvau_edge.runtime.manifest import Thresholds
from tvau_edge.runtime.service.pipeline import Pipeline

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
def red_camera(faulty_camera, send_act, red_stream):
    """Starts cameras that show something red for ever, at three times the speed of life."""
    return lambda: faulty_camera(send_act(red_stream, rate=len(red_stream) / 3, then="again"))


@pytest.fixture(scope="module")
def red_stream(tmp_path_factory, draw_clip):
    """Ten seconds of MPEG-TS in which something is red all the time."""
    return draw_clip(tmp_path_factory.mktemp("stream") / "red.ts", 10, (0, 10)).read_bytes()


@pytest.fixture
def make(bundle, vision, red_bundle):
    """Makes a pipeline and its sink, given sources by camera name."""

    def build(sources, camera=None, on_patch=None, look=None, reopen=None, **tables):
        cameras = [
            {"name": name, "source": str(source), **(camera or {})} for name, source in sources.items()
        ]
        site = parse_config({"bundle": red_bundle, "camera": cameras, **tables}, "test")
        sink = Sink()
        return Pipeline(site, bundle, look or vision, sink, on_patch=on_patch, reopen_vision=reopen), sink

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


def in_background(pipeline):
    """Runs a pipeline on a thread; its summary comes into the list."""
    done = []
    thread = threading.Thread(target=lambda: done.append(pipeline.run()), daemon=True)
    thread.start()
    return thread, done


def test_stopping_closes_what_is_open(make, red_camera):
    camera = red_camera()
    pipeline, sink = make({"gate": camera.url}, camera={"stall_seconds": 60})
    thread, done = in_background(pipeline)
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


# ---------------------------------------------------------------- zones, masks, the motion gate

UPPER_LEFT = [[0, 0], [0.5, 0], [0.5, 0.6], [0, 0.6]]


@pytest.mark.parametrize(
    ("camera", "phases"),
    [
        ({}, ["start", "end"]),
        ({"exclude": [UPPER_LEFT]}, []),
        ({"include": [UPPER_LEFT]}, ["start", "end"]),
        ({"include": [[[0.5, 0.5], [1, 0.5], [1, 1], [0.5, 1]]]}, []),
        ({"mask": [UPPER_LEFT]}, []),
    ],
)
def test_zones_and_masks_decide_what_counts(make, draw_clip, tmp_path, camera, phases):
    clip = draw_clip(tmp_path / "clip.mp4", 6, (2, 4))  # red in the upper left
    pipeline, sink = make({"door": clip}, camera=camera)
    pipeline.run()
    assert sink.phases("door") == phases


def test_masks_hide_from_pictures_as_well(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 4, (1, 3), (3, 4), corner=(56, 28))
    pipeline, sink = make({"door": clip}, camera={"mask": [UPPER_LEFT], "heatmap": True})
    pipeline.run()
    assert [camera for camera, _ in sink.heatmaps] == ["door"]
    image = decoded(sink.heatmaps[0][1])
    assert image.shape == (56, 84, 3)
    assert image[2:28, 2:36].max() < 40
    assert image[40, 70, 0] > 120  # what is red has the heat over it


def decoded(jpeg):
    context = av.CodecContext.create("mjpeg", "r")
    (picture,) = context.decode(av.Packet(jpeg))
    return picture.to_ndarray(format="rgb24")


def test_the_motion_gate_saves_the_graph_and_changes_no_verdict(make, draw_clip, tmp_path):
    clip = draw_clip(tmp_path / "clip.mp4", 20, (8, 12))
    plain, seen = make({"door": clip})
    gated, seen_gated = make({"door": clip}, camera={"motion_gate": 8})
    plain.run()
    summary = gated.run()
    assert gated.vision.patches <= 10 < 40 == plain.vision.patches
    assert (summary.cameras[0].patches, summary.cameras[0].still) == (40, 40 - gated.vision.patches)
    first, second = [
        [(v.phase, (v.time - sink.verdicts[0].started).total_seconds()) for v in sink.verdicts]
        for sink in (seen, seen_gated)
    ]
    assert [phase for phase, _ in first] == [phase for phase, _ in second] == ["start", "update", "end"]
    assert [seconds for _, seconds in first] == pytest.approx([seconds for _, seconds in second], abs=1e-3)


# ---------------------------------------------------------------- live cameras


def test_an_event_ends_when_its_camera_goes(make, faulty_camera, send_act, red_stream, eventually):
    camera = faulty_camera(send_act(red_stream, rate=len(red_stream) / 3), send_act(b"", then="silent"))
    pipeline, sink = make({"gate": camera.url}, camera={"stall_seconds": 30})
    thread, _ = in_background(pipeline)
    eventually(lambda: sink.phases("gate")[-1:] == ["end"], "the end of the event")
    assert sink.states[-1][1].anomaly == "OFF"
    pipeline.stop()
    camera.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_a_live_camera_leaves_little_behind(make, red_camera, eventually, monkeypatch):
    monkeypatch.setattr("tvau_edge.runtime.service.watched._KEPT", 5)
    camera = red_camera()
    pipeline, _ = make({"gate": camera.url}, camera={"stall_seconds": 30})
    thread, _ = in_background(pipeline)
    eventually(lambda: pipeline.cameras["gate"].patches >= 10, "ten patches")
    pipeline.stop()
    camera.stop()
    thread.join(30)
    assert len(pipeline.timelines["gate"].moments) <= 5


# ---------------------------------------------------------------- another configuration


def site_of(red_bundle, *cameras, **tables):
    return parse_config({"bundle": red_bundle, "camera": list(cameras), **tables}, "test")


def test_cameras_change_while_it_runs(make, red_camera, eventually, red_bundle):
    servers = {name: red_camera() for name in ("stays", "goes", "comes")}
    tables = {
        name: {"name": name, "source": server.url, "stall_seconds": 60} for name, server in servers.items()
    }
    pipeline, sink = make(
        {name: servers[name].url for name in ("stays", "goes")}, camera={"stall_seconds": 60}
    )
    thread, done = in_background(pipeline)
    eventually(lambda: sink.phases("stays") and sink.phases("goes"), "events of both")
    pipeline.apply(site_of(red_bundle, tables["stays"], tables["comes"]))
    assert sink.phases("goes")[-1] == "end"
    eventually(lambda: sink.phases("comes") == ["start"], "an event of the new camera")
    assert "end" not in sink.phases("stays")
    assert servers["stays"].connections == 1  # it noticed nothing
    assert sorted(pipeline.cameras) == ["comes", "stays"]
    pipeline.stop()
    for server in servers.values():
        server.stop()
    thread.join(30)
    assert {camera.camera for camera in done[0].cameras} == {"comes", "stays"}


def test_another_trigger_holds_for_all(make, red_camera, eventually, red_bundle):
    server = red_camera()
    pipeline, sink = make({"gate": server.url}, camera={"stall_seconds": 60})
    thread, _ = in_background(pipeline)
    eventually(lambda: sink.phases("gate") == ["start"], "an event")
    camera = {"name": "gate", "source": server.url, "stall_seconds": 60}
    pipeline.apply(site_of(red_bundle, camera, trigger={"open": 0.99999}))
    eventually(lambda: pipeline.cameras["gate"].patches >= 5, "patches after the change")
    assert sink.phases("gate") == ["start", "end"]
    assert pipeline.thresholds.open == 0.99999
    pipeline.stop()
    server.stop()
    thread.join(30)


def test_a_change_that_is_wrong_changes_nothing(make, draw_clip, tmp_path, red_bundle):
    clip = str(draw_clip(tmp_path / "clip.mp4", 2))
    pipeline, _ = make({"door": clip})
    before = pipeline.cameras
    bad = {"name": "yard", "source": clip, "exclude": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}
    with pytest.raises(ConfigError, match="camera yard: its zones leave no cell"):
        pipeline.apply(site_of(red_bundle, bad, trigger={"open": 0.9}))
    assert pipeline.cameras == before
    assert pipeline.thresholds.open == 0.6
    assert pipeline.run().cameras[0].patches == 4


def test_thresholds_snapshots_and_restarts_by_name(make, red_camera, eventually):
    server = red_camera()
    pipeline, sink = make({"gate": server.url}, camera={"stall_seconds": 60})
    with pytest.raises(SourceError, match="gate has shown nothing yet"):
        pipeline.snapshot("gate")
    for refuse in (pipeline.snapshot, pipeline.restart_camera):
        with pytest.raises(SourceError, match="there is no camera 'yard'; known: gate"):
            refuse("yard")
    thread, _ = in_background(pipeline)
    eventually(lambda: sink.phases("gate") == ["start"], "an event")
    assert decoded(pipeline.snapshot("gate")).shape == (56, 84, 3)
    pipeline.set_thresholds(Thresholds(open=0.9999, close=0.9998), "gate")
    assert pipeline.cameras["gate"].trigger.thresholds.open == 0.9999
    pipeline.restart_camera("gate")
    eventually(lambda: server.connections == 2, "a second connection")
    eventually(lambda: sink.phases("gate")[-1] == "end", "the end of the event")
    pipeline.stop()
    server.stop()
    thread.join(30)


# ---------------------------------------------------------------- a graph that fails or hangs


class Trouble:
    """A vision graph that fails or hangs in some of its passes."""

    def __init__(self, vision, *troubles):
        self._vision, self._troubles = vision, list(troubles)
        self.file = vision.file
        self.passes = 0
        self.free = threading.Event()

    def run(self, patches):
        trouble = self._troubles[self.passes] if self.passes < len(self._troubles) else None
        self.passes += 1
        if trouble == "hang":
            self.free.wait(60)
        if trouble is not None:
            raise BackendError("the graph failed")
        return self._vision.run(patches)

    def close(self):
        pass


def test_a_graph_that_fails_is_loaded_anew(make, draw_clip, tmp_path, vision, caplog):
    clip = draw_clip(tmp_path / "clip.mp4", 10, (4, 6))
    pipeline, sink = make({"door": clip}, look=Trouble(vision, None, "fail"), reopen=lambda: Trouble(vision))
    summary = pipeline.run()
    assert sink.phases("door") == ["start", "end"]
    assert summary.cameras[0].patches == 19  # one was lost
    assert pipeline.vision.restarts == 1
    assert "the graph failed; the graph is loaded anew" in caplog.text


def test_a_graph_that_fails_again_and_again_is_the_end(make, draw_clip, tmp_path, vision):
    clip = draw_clip(tmp_path / "clip.mp4", 10)
    pipeline, _ = make(
        {"door": clip}, look=Trouble(vision, "fail"), reopen=lambda: Trouble(vision, "fail", "fail", "fail")
    )
    with pytest.raises(BackendError, match="the graph failed"):
        pipeline.run()
    pipeline, _ = make({"door": clip}, look=Trouble(vision, "fail"))
    with pytest.raises(BackendError, match="the graph failed"):
        pipeline.run()


def test_a_graph_that_hangs_is_replaced_and_what_it_still_says_is_ignored(
    make, draw_clip, tmp_path, vision, caplog
):
    clip = draw_clip(tmp_path / "clip.mp4", 10, (4, 6))
    hanging = Trouble(vision, None, "hang")
    pipeline, sink = make(
        {"door": clip}, look=hanging, reopen=lambda: Trouble(vision), **{"vision": {"stall_seconds": 0.5}}
    )
    summary = pipeline.run()
    assert sink.phases("door") == ["start", "end"]
    assert summary.cameras[0].patches == 19
    assert "hangs for more than 0.5 s; it is loaded anew" in caplog.text
    hanging.free.set()
    time.sleep(0.1)
    assert pipeline.vision.failure is None


def test_a_graph_that_always_hangs_is_the_end(make, draw_clip, tmp_path, vision):
    clip = draw_clip(tmp_path / "clip.mp4", 4)
    free = []

    def hang():
        free.append(Trouble(vision, "hang"))
        return free[-1]

    pipeline, _ = make({"door": clip}, look=hang(), reopen=hang, **{"vision": {"stall_seconds": 0.3}})
    with pytest.raises(BackendError, match=r"hangs: a pass took more than 0\.3 s"):
        pipeline.run()
    for one in free:
        one.free.set()
