"""An event that goes on, from the picture to the verdicts: a drawn clip, ONNX Runtime and llama.cpp."""

from contextlib import ExitStack

import pytest

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.language.opening import open_language
from tvau_edge.runtime.service.health import HealthReader
from tvau_edge.runtime.service.pipeline import Pipeline

DELIVERY = {"waiting": 0, "dropped": 0, "durable": True}


class Sink:
    def __init__(self):
        self.verdicts = []

    def publish_verdict(self, verdict):
        self.verdicts.append(verdict)

    publish_state = publish_heatmap = lambda self, *_: None


@pytest.fixture
def watch(talking_bundle, draw_clip, tmp_path, eventually):
    """Watches ten seconds in which something is red from the second on for six, given keys of [language]."""
    stack = ExitStack()
    clip = draw_clip(tmp_path / "clip.mp4", 10, (1, 7))

    def run(**language):
        camera = {"name": "door", "source": str(clip)}
        tables = {"language": language, "trigger": {"close_after": 2, "update_seconds": 100}}
        site = parse_config({"bundle": talking_bundle, "camera": [camera], **tables}, "test")
        bundle, sink = Bundle.open(talking_bundle), Sink()
        vision = Vision.open(bundle, threads=1)
        stack.callback(vision.close)
        make_explainer, kind = open_language(site, bundle, stack)

        def on_patch(camera, pts):
            if pts > 5:  # the clip must not be over before the first explanation comes
                eventually(lambda: pipeline.explained, "the first explanation")

        pipeline = Pipeline(site, bundle, vision, sink, make_explainer, kind, on_patch)
        return pipeline, pipeline.run(), sink.verdicts

    with stack:
        yield run


@pytest.mark.parametrize("way", ["window", "extend"])
def test_it_is_explained_again_after_its_end(watch, way):
    pipeline, summary, told = watch(explain_again=way, extend_to=20)
    assert [verdict.phase for verdict in told] == ["start", "update", "end", "update"]
    assert [verdict.sequence for verdict in told] == [0, 1, 2, 3]
    assert len({verdict.event for verdict in told}) == 1
    _, first, end, second = told
    assert end.p_yes == first.p_yes != second.p_yes
    assert second.ended == end.ended
    assert not second.late
    assert pipeline.timelines["door"].answers[second.event]["to"] == second.to
    assert (summary.explained, summary.given_up) == (1, 0)
    health = HealthReader("box").read(pipeline, DELIVERY).dialogue
    assert (health.explained, health.again, health.extended) == (1, 1, way == "extend")


def test_it_is_explained_once_where_that_is_wanted(watch):
    pipeline, summary, told = watch(explain_again="never")
    assert [verdict.phase for verdict in told] == ["start", "update", "end"]
    assert (summary.explained, HealthReader("box").read(pipeline, DELIVERY).dialogue.again) == (1, 0)


def test_the_longest_sequence_is_bounded(watch):
    pipeline, _, told = watch(explain_again="extend", extend_to=4)
    assert [verdict.phase for verdict in told] == ["start", "update", "end", "update"]
    health = HealthReader("box").read(pipeline, DELIVERY).dialogue
    assert (health.again, health.extended) == (1, 0)
