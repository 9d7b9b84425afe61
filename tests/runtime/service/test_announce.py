import threading
from dataclasses import replace
from uuid import UUID, uuid4

import numpy as np
import pytest

from tvau_edge.runtime.detection.trigger import EventUpdate, Window
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.dialogue import DialogueResult
from tvau_edge.runtime.language.explain import Explanation
from tvau_edge.runtime.service.announce import Announcer
from tvau_edge.runtime.verdict import Model, Prompts

EVENT = UUID(int=7)
START = 1_700_000_000.0
ANSWERS = {"anomaly": "Yes.", "target": "A person.", "motion": "Runs.", "from": "left", "to": "right"}


def update(phase="start", event=EVENT, seconds=0.0, hot=(0, 0), peak=0.9):
    heat = np.full((3, 3), 0.1, np.float32)
    heat[hot] = 0.95
    newest = Evidence("door", 0, seconds, START + seconds, np.zeros((2, 3, 3)), heat, peak, np.zeros((1, 1)))
    ended = START + seconds if phase == "end" else None
    window = Window((newest,))
    return EventUpdate("door", event, phase, START, ended, peak, 1, window, 0, window)


def explanation(event=EVENT, p_yes=0.9, answers=ANSWERS):
    result = DialogueResult(answers, p_yes, (), 10, {"prefill": 20.0, "answers": 30.00049})
    return Explanation(event, result, {"wait": 5.0, "rae": 2.0, **result.latency_ms})


@pytest.fixture
def told():
    return []


@pytest.fixture
def announcer(told):
    model = Model(name="tiny", bundle="0" * 64, backend="onnxruntime", quantization="fp32, q8_0")
    prompts = Prompts(normal=["walking"], abnormal=["running"])
    return Announcer("gate-7", model, prompts, 0.5, (0.4, 0.6), told.append)


def test_a_verdict_holds_what_is_known(announcer, told):
    announcer.announce(update(hot=(2, 0)), {"vision": 12.3456})
    (verdict,) = told
    assert (verdict.phase, verdict.sequence, verdict.event) == ("start", 0, EVENT)
    assert (verdict.device, verdict.camera) == ("gate-7", "door")
    assert verdict.started.timestamp() == verdict.time.timestamp() == START
    assert verdict.ended is None
    assert (verdict.anomaly, verdict.p_yes, verdict.target, verdict.explanation) == (
        "unsure",
        None,
        None,
        None,
    )
    assert [(region.name, region.score) for region in verdict.regions] == [
        ("lower left", pytest.approx(0.95))
    ]
    assert verdict.latency_ms == {"vision": 12.346}
    assert verdict.prompts.abnormal == ["running"]
    assert verdict.model.quantization == "fp32, q8_0"


def test_sequences_count_within_an_event_and_ids_never_repeat(announcer, told):
    other = uuid4()
    for event, phase in [
        (EVENT, "start"),
        (other, "start"),
        (EVENT, "update"),
        (other, "end"),
        (EVENT, "end"),
    ]:
        announcer.announce(update(phase, event), {})
    assert [v.sequence for v in told if v.event == EVENT] == [0, 1, 2]
    assert [v.sequence for v in told if v.event == other] == [0, 1]
    assert len({v.id for v in told}) == 5
    assert announcer.published == 5


def test_an_explanation_is_an_update_and_stays_with_its_event(announcer, told):
    announcer.announce(update(), {"vision": 1.0})
    announcer.explain(explanation())
    announcer.announce(update("end", seconds=4), {})
    _, explained, end = told
    assert (explained.phase, explained.sequence) == ("update", 1)
    assert (end.phase, end.sequence) == ("end", 2)
    for verdict in (explained, end):
        assert (verdict.anomaly, verdict.p_yes) == ("yes", 0.9)
        assert (verdict.target, verdict.motion, verdict.from_, verdict.to) == (
            "A person.",
            "Runs.",
            "left",
            "right",
        )
        assert verdict.explanation == "Yes. A person. Runs. left right"
        assert verdict.latency_ms == {"vision": 1, "wait": 5, "rae": 2, "prefill": 20, "answers": 30}
    assert end.ended.timestamp() == START + 4


def test_an_explanation_after_the_end_is_an_update_with_a_higher_sequence(announcer, told):
    announcer.announce(update(), {})
    announcer.announce(update("end", seconds=4), {})
    announcer.explain(explanation())
    late = told[-1]
    assert (late.phase, late.sequence) == ("update", 2)
    assert late.ended.timestamp() == START + 4


def test_explanations_of_unknown_events_are_silent(announcer, told):
    announcer.explain(explanation(event=uuid4()))
    assert told == []


def test_old_events_are_forgotten(announcer, told):
    announcer.announce(update("end"), {})
    for _ in range(100):
        announcer.announce(update("end", uuid4()), {})
    announcer.explain(explanation())
    assert len(told) == 101
    assert len(announcer._events) <= 64


@pytest.mark.parametrize(
    ("p_yes", "word"),
    [
        (None, "unsure"),
        (0.0, "no"),
        (0.39, "no"),
        (0.4, "unsure"),
        (0.6, "unsure"),
        (0.61, "yes"),
        (1.0, "yes"),
    ],
)
def test_the_band_of_doubt(announcer, p_yes, word):
    assert announcer.judge(p_yes) == word


def test_a_dialogue_without_the_question_of_anomaly(announcer, told):
    announcer.announce(update(), {})
    announcer.explain(explanation(p_yes=None, answers={"target": "A dog."}))
    assert (told[-1].anomaly, told[-1].p_yes, told[-1].target) == ("unsure", None, "A dog.")
    assert told[-1].explanation == "A dog."


def test_regions_are_those_of_the_newest_heatmap(announcer, told):
    announcer.announce(update(hot=(0, 0)), {})
    announcer.announce(update("update", seconds=1, hot=(2, 2)), {})
    announcer.announce(replace(update("end", seconds=2, hot=(1, 1)), peak=0.97), {})
    assert [v.regions[0].name for v in told] == ["upper left", "lower right", "center"]
    assert told[-1].score == 0.97


def test_threads_do_not_mix_up_an_event_s_sequence(announcer, told):
    announcer.announce(update(), {})

    def explain():
        for _ in range(50):
            announcer.explain(explanation())

    threads = [threading.Thread(target=explain) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        announcer.announce(update("update", seconds=number), {})
    for thread in threads:
        thread.join()
    assert [verdict.sequence for verdict in told] == list(range(251))
