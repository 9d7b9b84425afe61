"""An event that went on is explained again: from the sequence that the model kept, or else from its newest window."""

import os
import signal
import threading
from uuid import uuid4

import numpy as np
import pytest
from drawn_evidence import CHECKPOINT, window

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.trigger import Window
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.explain import Explainer
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.messages import Reply, Request, halved, pack, unpack
from tvau_edge.runtime.language.process import LanguageProcess
from tvau_edge.runtime.language.recent_events import RecentEvents
from tvau_edge.runtime.language.server import LanguageServer, LanguageSettings
from tvau_edge.runtime.language.worker import ExplainWorker, RemoteLanguage

WINDOW, LONGEST = 3, 9  # temporal patches
QUESTIONS = ["anomaly", "target", "to"]


@pytest.fixture(scope="module")
def bundle(talking_bundle):
    return Bundle.open(talking_bundle)


@pytest.fixture(scope="module")
def rae(bundle):
    rae = Rae.open(bundle, threads=1)
    yield rae
    rae.close()


@pytest.fixture(scope="module")
def settings(talking_bundle):
    return LanguageSettings(talking_bundle, threads=1, patches=LONGEST)


@pytest.fixture(scope="module")
def server(settings):
    with LanguageServer(settings) as server:
        yield server


@pytest.fixture(scope="module")
def alone(bundle, rae):
    """What the dialogue says by itself of a stretch of evidence, evaluated from its beginning."""
    language, geometry = bundle.manifest.language, bundle.manifest.geometry
    room = geometry.model_copy(update={"temporal_patches": LONGEST})
    context = context_needed(language, room, bundle.manifest.base_tokens, 1024)
    with LanguageModel(bundle.file(language.files[0].file), context=context, branches=3, threads=1) as model:
        dialogue = Dialogue(model, language, geometry)

        def run(evidence):
            p_v = halved(np.stack([item.p_v for item in evidence])).astype(np.float32)
            p_an = rae.run_longer(np.stack([item.h_c for item in evidence]), WINDOW)
            return dialogue.run(p_v, halved(p_an).astype(np.float32))

        yield run


class Spy:
    """Passes requests on to a language model, and keeps them."""

    def __init__(self, language):
        self.language, self.requests = language, []

    def exchange(self, raw, seconds):
        self.requests.append(unpack(raw, Request))
        return self.language.exchange(raw, seconds)


class Event:
    """An event that is explained with its first three temporal patches, and goes on."""

    def __init__(self, explainer, told, eventually, seed=1):
        self.id, self.seen = uuid4(), window(seed, LONGEST + 4).evidence
        self._explainer, self._told, self._eventually = explainer, told, eventually

    def explain(self, **more):
        return self._submit(self.seen[:WINDOW], **more)

    def go_on(self, since, until):
        """Explain it again, with the patches from `since` to before `until` as new ones."""
        newest = self.seen[until - WINDOW : until]
        return self._submit(newest, again=True, since=self.seen[since - 1 : until])

    def _submit(self, evidence, **more):
        count = len(self._told)
        self._explainer.submit(self.id, Window(tuple(evidence)), **more)
        self._eventually(lambda: len(self._told) > count, "an explanation")
        return self._told[-1].result


@pytest.fixture
def make(rae, eventually):
    """Starts explainers, given their language model; makes events."""
    running = []

    def start(language, **more):
        told = []
        explainer = Explainer(rae, language, told.append, CHECKPOINT, **more)
        running.append(explainer)
        return explainer, lambda seed=1: Event(explainer, told, eventually, seed)

    yield start
    for explainer in running:
        explainer.close(finish=False)


def assert_same(found, expected):
    assert found.answers == expected.answers
    assert list(found.answers) == QUESTIONS
    # The KV cache holds f16, and batches are cut otherwise.
    assert found.log_odds == pytest.approx(expected.log_odds, abs=2e-3)
    assert found.tokens == expected.tokens


def test_only_what_is_new_is_sent_and_the_result_is_that_of_the_whole(make, server, alone):
    spy = Spy(server)
    explainer, event = make(spy)
    event = event()
    assert_same(event.explain(), alone(event.seen[:3]))
    assert_same(event.go_on(3, 5), alone(event.seen[:5]))
    assert_same(event.go_on(5, 9), alone(event.seen[:9]))
    assert [tensors["p_v"].shape[0] for _, tensors in spy.requests] == [3, 2, 4]
    assert [tensors["p_an"].shape[0] for _, tensors in spy.requests] == [2 * 12, 4 * 12, 8 * 12]
    health = explainer.health()
    assert (health.explained, health.again, health.extended, health.given_up) == (3, 2, 2, 0)
    assert health.kept_bytes == 2 * 64 * (9 * 6 + 8 * 12)


def test_without_patches_to_append_it_is_explained_from_its_newest_window(make, server, alone):
    explainer, event = make(server)
    event = event()
    event.explain()
    found = event._submit(event.seen[4:7], again=True)
    assert_same(found, alone(event.seen[4:7]))
    assert (explainer.health().again, explainer.health().extended) == (1, 0)


def test_another_event_in_between(make, server, alone):
    explainer, make_event = make(server)
    event, other = make_event(1), make_event(2)
    event.explain()
    other.explain()
    assert_same(event.go_on(3, 5), alone(event.seen[2:5]))
    assert explainer.health().extended == 0
    # It goes on from the newest window, which is what the model has now.
    assert_same(event.go_on(5, 7), alone(event.seen[2:7]))
    assert (explainer.health().extended, explainer.health().given_up) == (1, 0)


def test_another_dialogue_in_the_cache_is_not_thrown_away_by_a_vain_try(make, server, monkeypatch):
    explainer, make_event = make(spy := Spy(server))
    event, other = make_event(1), make_event(2)
    event.explain()
    other.explain()
    message, tensors = spy.requests[0]
    vain = pack(message.model_copy(update={"after": "0" * 64}), tensors)
    reply, _ = unpack(server.exchange(vain), Reply)
    assert (reply.ok, "not here any more" in reply.error) == (False, True)
    monkeypatch.setattr(server._dialogue, "begin", lambda *_: pytest.fail("it was evaluated anew"))
    assert explainer.ask(other.id, "And?")


def test_a_sequence_that_is_full_begins_anew_with_the_newest_window(make, server, alone):
    explainer, event = make(server)
    event = event()
    event.explain()
    assert_same(event.go_on(3, 9), alone(event.seen[:9]))
    assert_same(event.go_on(9, 10), alone(event.seen[7:10]))
    assert (explainer.health().again, explainer.health().extended) == (2, 1)


def test_patches_that_do_not_follow_are_not_appended(make, server, alone):
    explainer, event = make(server)
    event = event()
    event.explain()
    assert_same(event.go_on(5, 7), alone(event.seen[4:7]))  # 3 and 4 never came
    assert explainer.health().extended == 0


def test_evidence_that_was_forgotten(make, server, alone):
    explainer, event = make(server, recent=RecentEvents(32, 1))
    event = event()
    event.explain()
    assert_same(event.go_on(3, 5), alone(event.seen[2:5]))
    assert (explainer.health().extended, explainer.health().given_up) == (0, 0)


def test_the_process_is_killed_between_the_two(make, settings, alone):
    with LanguageProcess(settings) as process:
        explainer, event = make(process)
        event = event()
        event.explain()
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert_same(event.go_on(3, 5), alone(event.seen[2:5]))
        health = explainer.health()
        assert (health.restarts, health.again, health.extended, health.given_up) == (1, 1, 0, 0)
        explainer.close()


def test_the_process_is_killed_during_the_second(make, settings, alone, eventually):
    with LanguageProcess(settings) as process:
        explainer, event = make(process)
        event = event()
        event.explain()
        os.kill(process.pid, signal.SIGSTOP)  # so that it surely has the request when it dies
        killer = threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL))
        killer.start()
        assert_same(event.go_on(3, 5), alone(event.seen[2:5]))
        assert (explainer.health().restarts, explainer.health().given_up) == (1, 0)
        explainer.close()


def test_a_worker_that_has_the_sequence_and_one_that_has_not(make, settings, alone, mosquitto):
    config = BrokerConfig(host="127.0.0.1", port=mosquitto.port)
    remote = RemoteLanguage(config, "box")
    explainer, event = make(remote)
    event = event()
    with LanguageServer(settings) as server, ExplainWorker(config, "a", server):
        event.explain()
        assert_same(event.go_on(3, 5), alone(event.seen[:5]))
    assert explainer.health().extended == 1
    with LanguageServer(settings) as server, ExplainWorker(config, "b", server):
        assert_same(event.go_on(5, 6), alone(event.seen[3:6]))
    assert (explainer.health().extended, explainer.health().given_up) == (1, 0)
    explainer.close()
    remote.close()


def test_questions_see_the_longer_sequence_and_what_was_asked_before(make, server):
    explainer, event = make(server)
    event = event()
    event.explain()
    explainer.ask(event.id, "Who?")
    event.go_on(3, 6)
    turns = explainer._recent.get(event.id).turns
    assert [turn.key for turn in turns] == [*QUESTIONS, "question"]
    assert (turns[-1].question, bool(turns[-1].answer)) == ("Who?", True)
    explainer.ask(event.id, "And why?")
    assert server._dialogue.patches == 6
    turns = explainer._recent.get(event.id).turns
    assert [turn.question for turn in turns[-2:]] == ["Who?", "And why?"]
    # With all of that in the cache, it still can grow.
    event.go_on(6, 8)
    assert (server._dialogue.patches, explainer.health().extended) == (8, 2)


class Held(Spy):
    """Lets a second explanation wait in the language model until the test says so."""

    def __init__(self, language):
        super().__init__(language)
        self.begun, self.go = threading.Event(), threading.Event()

    def exchange(self, raw, seconds):
        if unpack(raw, Request)[0].after is not None:
            self.begun.set()
            assert self.go.wait(30)
        return super().exchange(raw, seconds)


def test_a_question_in_the_middle_of_a_second_explanation_is_about_what_is_known_after_it(make, server):
    held = Held(server)
    explainer, event = make(held)
    event = event()
    event.explain()
    explainer.submit(event.id, Window(event.seen[2:5]), again=True, since=event.seen[2:5])
    assert held.begun.wait(30)
    asking = threading.Thread(target=explainer.ask, args=(event.id, "Who?"))
    asking.start()
    asking.join(0.2)
    held.go.set()
    asking.join(30)
    assert [message.kind for message, _ in held.requests] == ["explain", "explain", "ask"]
    assert held.requests[-1][1]["p_v"].shape[0] == 5
    turns = explainer._recent.get(event.id).turns
    assert turns[-1].question == "Who?"


def test_a_question_survives_a_second_explanation_that_fails_once(make, settings):
    with LanguageProcess(settings) as process:
        explainer, event = make(process)
        event = event()
        event.explain()
        explainer.ask(event.id, "Who?")
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        event._submit(event.seen[4:7], again=True)
        turns = explainer._recent.get(event.id).turns
        assert [turn.key for turn in turns] == [*QUESTIONS, "question"]
        assert explainer.health().again == 1
        explainer.close()
