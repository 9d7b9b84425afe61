import logging
import threading
import time
from uuid import uuid4

import numpy as np
import pytest
from drawn_evidence import CHECKPOINT, window

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.errors import EvidenceError, LanguageModelError
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.explain import Explainer, Patience
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.messages import Reply, Request, halved, pack, unpack
from tvau_edge.runtime.language.recent_events import RecentEvents
from tvau_edge.runtime.language.server import LanguageServer, LanguageSettings


def eventually(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def bundle(talking_bundle):
    return Bundle.open(talking_bundle)


@pytest.fixture(scope="module")
def real(bundle):
    """RAE in ONNX Runtime and a language model in llama.cpp, random weights."""
    with LanguageServer(LanguageSettings(bundle.path, threads=1)) as server:
        rae = Rae.open(bundle, threads=1)
        yield rae, server
        rae.close()


def test_explains_with_rae_and_the_language_model(real):
    told = []
    explainer = Explainer(*real, told.append, CHECKPOINT)
    event = uuid4()
    explainer.submit(event, window())
    explainer.close()
    (explanation,) = told
    assert explanation.event == event
    assert list(explanation.result.answers) == ["anomaly", "target", "to"]
    assert 0 <= explanation.result.p_yes <= 1
    assert not explanation.late
    assert explanation.latency_ms.keys() == {"wait", "rae", "prefill", "answers"}
    assert all(value >= 0 for value in explanation.latency_ms.values())


def test_it_says_of_each_window_what_the_dialogue_says_alone(real, bundle):
    rae, server = real
    told = {}
    explainer = Explainer(rae, server, lambda e: told.__setitem__(e.event, e.result), CHECKPOINT)
    events = {uuid4(): window(seed) for seed in range(3)}
    for event, seen in events.items():
        explainer.submit(event, seen)
    explainer.close()
    assert told.keys() == events.keys()
    language, geometry = bundle.manifest.language, bundle.manifest.geometry
    context = context_needed(language, geometry, bundle.manifest.base_tokens, 1024)
    path = bundle.file(language.files[0].file)
    with LanguageModel(path, context=context, branches=3, threads=1) as model:
        dialogue = Dialogue(model, language, geometry)
        for event, seen in events.items():
            p_an = halved(rae.run(np.stack([evidence.h_c for evidence in seen.evidence])))
            p_v = halved(np.stack([evidence.p_v for evidence in seen.evidence]))
            assert p_v.dtype == p_an.dtype == np.float16
            alone = dialogue.run(p_v.astype(np.float32), p_an.astype(np.float32))
            assert (told[event].answers, told[event].p_yes) == (alone.answers, alone.p_yes)
    assert len({result.p_yes for result in told.values()}) == 3


def test_a_question_about_a_recent_event_sees_what_was_said(real):
    told = []
    explainer = Explainer(*real, told.append, CHECKPOINT)
    first, second = uuid4(), uuid4()
    explainer.submit(first, window(1))
    explainer.submit(second, window(2))
    eventually(lambda: len(told) == 2)
    answers = [
        explainer.ask(first, "And why?"),
        explainer.ask(second, "And why?"),
        explainer.ask(first, "And then?"),
    ]
    assert all(answers)
    turns = explainer._recent.get(first).turns
    assert [turn.question for turn in turns[-2:]] == ["And why?", "And then?"]
    assert [turn.answer for turn in turns[-2:]] == [answers[0], answers[2]]
    assert len(turns) == 5
    health = explainer.health()
    assert (health.state, health.explained, health.kept_events, health.given_up) == ("ready", 2, 2, 0)
    assert health.kept_bytes == 2 * 2 * (3 * 6 * 64 + 2 * 12 * 64)
    explainer.close()


def test_no_more_evidence_is_kept_than_it_may(real):
    told = []
    explainer = Explainer(*real, told.append, CHECKPOINT, recent=RecentEvents(1, 10_000))
    first, second = uuid4(), uuid4()
    explainer.submit(first, window(1))
    eventually(lambda: told)
    explainer.submit(second, window(2))
    eventually(lambda: len(told) == 2)
    assert explainer.health().kept_events == 1
    with pytest.raises(EvidenceError, match=f"event {first} is unknown or too old"):
        explainer.ask(first, "Why?")
    explainer.close()


@pytest.mark.parametrize(
    ("question", "match"),
    [(" \n", "is empty"), ("why " * 200, "has 799 characters; at most 500")],
    ids=["empty", "huge"],
)
def test_questions_that_are_refused(real, question, match):
    explainer = Explainer(*real, lambda _: None, CHECKPOINT)
    with pytest.raises(EvidenceError, match=match):
        explainer.ask(uuid4(), question)
    with pytest.raises(EvidenceError, match=r"is unknown or too old; .* none yet"):
        explainer.ask(uuid4(), "Why?")
    explainer.close()


def test_another_checkpoints_evidence_is_refused(real, caplog):
    explainer = Explainer(*real, lambda _: pytest.fail("it was explained"), "1" * 64)
    explainer.submit(uuid4(), window())
    explainer.close()
    assert "both sides need bundles of one checkpoint" in caplog.text
    assert explainer.given_up == 1


class Slow:
    """A language model that answers each request when the test says so, and a RAE."""

    def __init__(self):
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.failures = 0

    def run(self, h_c):
        return h_c.reshape(-1, 12)

    def exchange(self, request, seconds):
        message, _ = unpack(request, Request)
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if self.failures:
            self.failures -= 1
            raise LanguageModelError("the process ended")
        if message.kind == "ask":
            return pack(Reply(ok=True, answer=message.question.upper(), turns=message.turns))
        return pack(Reply(ok=True, answers={"target": "a person"}, p_yes=0.9))


@pytest.fixture
def slow():
    return Slow()


def explain_slowly(slow, waiting=2, **patience):
    told = []
    patience = Patience(waiting=waiting, **patience)
    return Explainer(slow, slow, told.append, CHECKPOINT, patience=patience), told


def test_the_newest_event_is_explained_first(slow):
    explainer, told = explain_slowly(slow, waiting=8)
    events = [uuid4() for _ in range(4)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)  # it is at the first; the others come meanwhile
    for event in events[1:]:
        explainer.submit(event, window())
    slow.go.release(4)
    explainer.close()
    assert [explanation.event for explanation in told] == [events[0], *reversed(events[1:])]


def test_too_many_give_up_the_oldest_and_count_it(slow, caplog):
    explainer, told = explain_slowly(slow, waiting=2)
    events = [uuid4() for _ in range(5)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    with caplog.at_level(logging.WARNING):
        for event in events[1:]:
            explainer.submit(event, window())
    assert explainer.given_up == 2
    assert all(str(event) in caplog.text for event in events[1:3])
    slow.go.release(3)
    explainer.close()
    assert {explanation.event for explanation in told} == {events[0], *events[3:]}


def test_an_event_that_asks_again_is_explained_once_from_its_newest_window(slow):
    explainer, told = explain_slowly(slow)
    first, second = uuid4(), uuid4()
    explainer.submit(first, window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(second, window(1))
    explainer.submit(second, window(2))
    slow.go.release(2)
    explainer.close()
    assert [explanation.event for explanation in told] == [first, second]
    assert explainer.given_up == 0


def test_submitting_never_waits(slow):
    explainer, _ = explain_slowly(slow)
    explainer.submit(uuid4(), window())
    assert slow.begun.acquire(timeout=30)  # busy until we let it go
    explainer.submit(uuid4(), window())
    slow.go.release(2)
    explainer.close()


def test_closing_without_finishing_gives_up_what_waits(slow):
    explainer, told = explain_slowly(slow)
    events = [uuid4() for _ in range(3)]
    for event in events[:1]:
        explainer.submit(event, window())
    assert slow.begun.acquire(timeout=30)
    for event in events[1:]:
        explainer.submit(event, window())
    slow.go.release()
    explainer.close(finish=False)
    assert [explanation.event for explanation in told] == events[:1]
    assert explainer.given_up == 2


def test_the_most_severe_event_is_explained_first(slow):
    explainer, told = explain_slowly(slow, waiting=8)
    events = [uuid4() for _ in range(5)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    for event, severity in zip(events[1:], (0.62, 0.98, 0.65, 0.93), strict=True):
        explainer.submit(event, window(), severity)
    slow.go.release(5)
    explainer.close()
    # Within a tenth of severity, the newest goes first.
    assert [explanation.event for explanation in told] == [events[k] for k in (0, 4, 2, 3, 1)]


def test_a_second_explanation_waits_for_the_first_ones_of_others(slow):
    explainer, told = explain_slowly(slow, waiting=8)
    events = [uuid4() for _ in range(4)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(events[1], window(), 0.99, again=True)
    explainer.submit(events[2], window(), 0.1)
    explainer.submit(events[3], window(), 0.98)
    slow.go.release(4)
    explainer.close()
    assert [explanation.event for explanation in told] == [events[k] for k in (0, 3, 2, 1)]


def test_where_too_many_wait_second_explanations_are_given_up_first(slow, caplog):
    explainer, told = explain_slowly(slow, waiting=2)
    events = [uuid4() for _ in range(4)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    with caplog.at_level(logging.WARNING):
        explainer.submit(events[1], window(), 0.99, again=True)
        for event in events[2:]:
            explainer.submit(event, window(), 0.1)
    slow.go.release(3)
    explainer.close()
    assert [explanation.event for explanation in told] == [events[k] for k in (0, 3, 2)]
    assert f"event {events[1]} is not explained again: 2 others that go first wait already" in caplog.text


def test_one_that_was_not_explained_yet_keeps_its_place_when_it_comes_again(slow):
    explainer, told = explain_slowly(slow, waiting=8)
    events = [uuid4() for _ in range(3)]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(events[1], window(), 0.9)
    explainer.submit(events[2], window(), 0.1)
    explainer.submit(events[1], window(1), 0.9, again=True)
    slow.go.release(3)
    explainer.close()
    assert [explanation.event for explanation in told] == events
    assert explainer.health().again == 0


def test_an_event_that_is_explained_late_is_marked(slow):
    explainer, told = explain_slowly(slow, late=0.05)
    explainer.submit(uuid4(), window())
    assert slow.begun.acquire(timeout=30)
    threading.Event().wait(0.1)
    slow.go.release()
    explainer.close()
    assert told[0].late
    assert explainer.health().late == 1


def test_an_event_beyond_its_deadline_is_given_up(slow, caplog):
    explainer, told = explain_slowly(slow, deadline=2.0)
    first, second = uuid4(), uuid4()
    explainer.submit(first, window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(second, window())
    threading.Event().wait(2.1)
    slow.go.release(2)
    explainer.close()
    assert [explanation.event for explanation in told] == [first]
    assert f"event {second} is not explained: its deadline has passed" in caplog.text
    assert explainer.given_up == 1


def test_a_question_goes_before_events_and_has_a_deadline_of_its_own(slow):
    explainer, told = explain_slowly(slow, waiting=8, question=2.0)
    event, other = uuid4(), uuid4()
    explainer.submit(event, window(), 1.0)
    slow.go.release()
    eventually(lambda: told)
    explainer.submit(other, window(), 1.0)
    assert slow.begun.acquire(timeout=30)
    assert slow.begun.acquire(timeout=30)  # busy with it
    with pytest.raises(LanguageModelError, match="ask again later"):
        explainer.ask(event, "why?")
    slow.go.release()
    eventually(lambda: len(told) == 2)
    slow.go.release()
    assert explainer.ask(event, "why?") == "WHY?"
    explainer.close()


def test_an_event_whose_language_model_ended_is_tried_once_more(slow, caplog):
    explainer, told = explain_slowly(slow)
    event = uuid4()
    slow.failures = 1
    slow.go.release(2)
    explainer.submit(event, window())
    explainer.close()
    assert [explanation.event for explanation in told] == [event]
    assert f"event {event} is tried again: the process ended" in caplog.text


def test_a_failure_is_told_and_the_next_event_is_explained(slow, caplog):
    explainer, told = explain_slowly(slow)
    failing, fine = uuid4(), uuid4()
    slow.failures = 2
    slow.go.release(3)
    explainer.submit(failing, window())
    eventually(lambda: explainer.given_up == 1)
    explainer.submit(fine, window())
    explainer.close()
    assert f"event {failing} is not explained: the process ended" in caplog.text
    assert [explanation.event for explanation in told] == [fine]


def test_a_fault_of_ours_costs_one_explanation_and_not_the_thread(slow, caplog):
    told = []

    def publish(explanation):
        if not told:
            told.append(None)
            raise ValueError("a fault of ours")
        told.append(explanation)

    explainer = Explainer(slow, slow, publish, CHECKPOINT)
    events = [uuid4(), uuid4()]
    explainer.submit(events[0], window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(events[1], window())
    slow.go.release(2)
    explainer.close()
    assert [explanation.event for explanation in told[1:]] == events[1:]
    assert f"event {events[0]} is not explained, by a fault of this program" in caplog.text


def test_it_tells_how_busy_it_is(slow):
    explainer, _ = explain_slowly(slow)
    assert (explainer.waiting, explainer.busy_seconds) == (0, 0.0)
    explainer.submit(uuid4(), window())
    assert slow.begun.acquire(timeout=30)
    explainer.submit(uuid4(), window())
    assert explainer.waiting == 1
    before = explainer.busy_seconds
    threading.Event().wait(0.02)
    assert explainer.busy_seconds > before
    slow.go.release(2)
    assert explainer.close()
    assert (explainer.waiting, explainer.busy_seconds) == (0, 0.0)


def test_closing_does_not_wait_for_ever(slow):
    explainer, told = explain_slowly(slow)
    explainer.submit(uuid4(), window())
    assert slow.begun.acquire(timeout=30)
    assert not explainer.close(finish=False, seconds=0.05)  # it hangs: the model must stay open
    assert explainer.busy_seconds > 0
    slow.go.release()
    assert explainer.close(finish=False, seconds=30)
    assert len(told) == 1
