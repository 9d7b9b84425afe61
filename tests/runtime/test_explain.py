import logging
import threading
from contextlib import ExitStack
from uuid import uuid4

import numpy as np
import pytest

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.dialogue import Dialogue, DialogueResult, context_needed
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.explain import Explainer
from tvau_edge.runtime.llama import LanguageModel
from tvau_edge.runtime.rae import Rae
from tvau_edge.runtime.trigger import Window
from tvau_edge.runtime.vision import Evidence


def window(seed=0, patches=3):
    generator = np.random.default_rng(seed)
    return Window(
        tuple(
            Evidence(
                "door",
                k,
                k / 2,
                1000 + k / 2,
                generator.normal(0, 1, (2, 4, 6)).astype(np.float32),
                np.zeros((4, 6), np.float32),
                0.5,
                generator.normal(0, 0.3, (6, 64)).astype(np.float32),
            )
            for k in range(patches)
        )
    )


@pytest.fixture(scope="module")
def bundle(talking_bundle):
    return Bundle.open(talking_bundle)


@pytest.fixture(scope="module")
def real(bundle):
    """RAE in ONNX Runtime and a dialogue with llama.cpp, random weights."""
    with ExitStack() as stack:
        language, geometry = bundle.manifest.language, bundle.manifest.geometry
        context = context_needed(language, geometry, bundle.manifest.base_tokens)
        path = bundle.file(language.files[0].file)
        model = stack.enter_context(LanguageModel(path, context=context, threads=1))
        rae = Rae.open(bundle, threads=1)
        stack.callback(rae.close)
        yield rae, Dialogue(model, language, geometry)


def test_explains_with_rae_and_the_language_model(real):
    told = []
    explainer = Explainer(*real, told.append)
    event = uuid4()
    explainer.submit(event, window())
    explainer.close()
    (explanation,) = told
    assert explanation.event == event
    assert list(explanation.result.answers) == ["anomaly", "target", "to"]
    assert 0 <= explanation.result.p_yes <= 1
    assert explanation.latency_ms.keys() == {"wait", "rae", "prefill", "answers"}
    assert all(value >= 0 for value in explanation.latency_ms.values())


def test_it_says_of_each_window_what_the_dialogue_says_alone(real):
    rae, dialogue = real
    told = {}
    explainer = Explainer(rae, dialogue, lambda e: told.__setitem__(e.event, e.result))
    events = {uuid4(): window(seed) for seed in range(3)}
    for event, seen in events.items():
        explainer.submit(event, seen)
    explainer.close()
    assert told.keys() == events.keys()
    for event, seen in events.items():
        p_an = rae.run(np.stack([evidence.h_c for evidence in seen.evidence]))
        alone = dialogue.run(np.stack([evidence.p_v for evidence in seen.evidence]), p_an)
        assert (told[event].answers, told[event].p_yes) == (alone.answers, alone.p_yes)
    assert len({result.p_yes for result in told.values()}) == 3


class Slow:
    """A dialogue that lets each question go on when the test says so, and a RAE that names the window."""

    def __init__(self):
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.failing = False

    def run(self, *inputs):
        if len(inputs) == 1:  # as RAE
            return inputs[0].reshape(-1, 12)
        self.begun.release()
        assert self.go.acquire(timeout=30)
        if self.failing:
            raise LanguageModelError("the context is full")
        return DialogueResult({"target": "a person"}, 0.9, (), 1, {})


@pytest.fixture
def slow():
    return Slow()


def explain_slowly(slow, waiting=2):
    told = []
    return Explainer(slow, slow, told.append, waiting), told


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


def test_a_failure_is_told_and_the_next_event_is_explained(slow, caplog):
    explainer, told = explain_slowly(slow)
    failing, fine = uuid4(), uuid4()
    slow.failing = True
    with caplog.at_level(logging.ERROR):
        explainer.submit(failing, window())
        slow.go.release()
        assert slow.begun.acquire(timeout=30)
        while not caplog.records:
            threading.Event().wait(0.01)
        slow.failing = False
        explainer.submit(fine, window())
        slow.go.release()
        explainer.close()
    assert f"event {failing} is not explained: the context is full" in caplog.text
    assert [explanation.event for explanation in told] == [fine]


def test_a_fault_of_ours_costs_one_explanation_and_not_the_thread(slow, caplog):
    told = []

    def publish(explanation):
        if not told:
            told.append(None)
            raise ValueError("a fault of ours")
        told.append(explanation)

    explainer = Explainer(slow, slow, publish)
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
