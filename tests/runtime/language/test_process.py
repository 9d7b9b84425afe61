import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from uuid import uuid4

import pytest
from drawn_evidence import CHECKPOINT, request, window

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language import process as language_process
from tvau_edge.runtime.language.explain import Explainer, Patience
from tvau_edge.runtime.language.messages import Reply, unpack
from tvau_edge.runtime.language.process import LanguageProcess
from tvau_edge.runtime.language.server import LanguageServer, LanguageSettings


@pytest.fixture(scope="module")
def settings(talking_bundle):
    return LanguageSettings(talking_bundle, threads=1)


@pytest.fixture
def process(settings, monkeypatch):
    monkeypatch.setattr(language_process, "_PAUSES", (0.0, 0.1))
    with LanguageProcess(settings) as process:
        yield process


def test_it_answers_as_the_model_does_in_this_process(process, settings):
    asked = request()
    there, _ = unpack(process.exchange(asked, 60), Reply)
    with LanguageServer(settings) as server:
        here, _ = unpack(server.exchange(asked), Reply)
    assert there.ok
    assert (there.answers, there.p_yes, there.turns) == (here.answers, here.p_yes, here.turns)
    assert process.state == "ready"


def test_it_is_another_process_that_ends_with_it(settings):
    process = LanguageProcess(settings)
    pid = process.pid
    assert pid != os.getpid()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(LanguageModelError, match="is closed"):
        process.exchange(request(), 1)


def test_killed_while_idle_it_is_started_anew(process):
    asked = request()
    before, _ = unpack(process.exchange(asked, 60), Reply)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    after, _ = unpack(process.exchange(asked, 60), Reply)
    assert (after.answers, after.p_yes) == (before.answers, before.p_yes)
    assert process.restarts == 1


def test_killed_during_a_request_it_says_so_and_is_started_anew(process, caplog):
    os.kill(process.pid, signal.SIGSTOP)  # so that it is surely killed before it answers
    pid = process.pid
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(LanguageModelError, match=r"process ended \(SIGKILL\); it is started anew"):
        process.exchange(request(), 60)
    assert process.state == "gone"
    assert "detection goes on" in caplog.text
    reply, _ = unpack(process.exchange(request(), 60), Reply)
    assert reply.ok
    assert process.pid != pid


def test_a_process_that_hangs_is_ended(process):
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(LanguageModelError, match=r"did not answer in 0\.2 s"):
        process.exchange(request(), 0.2)
    reply, _ = unpack(process.exchange(request(), 60), Reply)
    assert reply.ok


def test_closing_does_not_wait_for_a_request(process):
    os.kill(process.pid, signal.SIGSTOP)
    told = []

    def ask():
        with contextlib.suppress(LanguageModelError):
            process.exchange(request(), 60)
        told.append(time.monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    while process.state != "answering":
        time.sleep(0.01)
    process.close()
    thread.join(30)
    assert told


@pytest.mark.parametrize(
    "raw", [b"", b"nonsense" * 9, request(checkpoint="1" * 64)], ids=["empty", "noise", "other"]
)
def test_what_is_wrong_with_a_request_is_answered(process, raw):
    reply, _ = unpack(process.exchange(raw, 60), Reply)
    assert not reply.ok
    assert "not a message of tvau.explain/1" in reply.error or "of one checkpoint" in reply.error
    assert process.restarts == 0


def test_a_model_that_cannot_be_loaded(talking_bundle, red_bundle, tmp_path, capfd):
    with pytest.raises(LanguageModelError, match="has no language model"):
        LanguageProcess(LanguageSettings(red_bundle))
    broken = tmp_path / "bundle"
    subprocess.run(["cp", "-r", talking_bundle, broken], check=True)
    (broken / "lvlm-f32.gguf").write_bytes(bytes((broken / "lvlm-f32.gguf").stat().st_size))
    with pytest.raises(LanguageModelError, match="damaged"):
        LanguageProcess(LanguageSettings(broken))
    assert "Traceback" not in capfd.readouterr().err


def test_it_ends_when_the_one_who_started_it_is_killed(talking_bundle):
    program = """
import sys, time
from pathlib import Path
from tvau_edge.runtime.language.process import LanguageProcess
from tvau_edge.runtime.language.server import LanguageSettings
process = LanguageProcess(LanguageSettings(Path(sys.argv[1]), threads=1))
print(process.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program, talking_bundle], stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 30
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killed_during_an_event_while_cameras_are_watched(
    talking_bundle, draw_clip, mosquitto, subscriber, tmp_path
):
    """Kill -9 of the language process: detection goes on, and each event is explained all the same."""
    clip = draw_clip(tmp_path / "clip.mp4", 300, (2, 150), (160, 290))
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "run", "--bundle", str(talking_bundle)]
    command += ["--source", str(clip), "--broker", f"127.0.0.1:{mosquitto.port}"]
    watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    subscriber.wait("tvau/edge/camera/verdict")  # the first event has begun
    os.kill(_child_of(watching.pid), signal.SIGKILL)
    _, said = watching.communicate(timeout=120)
    assert watching.returncode == 0, said
    subscriber.wait_payload("tvau/edge/available", b"stopped")
    verdicts = [json.loads(raw) for raw in subscriber.payloads("tvau/edge/camera/verdict")]
    ended = {verdict["event"] for verdict in verdicts if verdict["phase"] == "end"}
    explained = {verdict["event"] for verdict in verdicts if verdict["p_yes"] is not None}
    assert len(ended) == 2
    assert explained == ended
    assert "the language model's process failed" in " ".join(said.split())


def _child_of(parent):
    """The language process that `parent` started."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        (child,) = file.read().split()
    return int(child)


@pytest.fixture
def explained(process, talking_bundle):
    """An explainer over `process`, its two events, and what it told of the first."""
    rae = Rae.open(Bundle.open(talking_bundle), threads=1)
    told, first, second = [], uuid4(), uuid4()
    explainer = Explainer(rae, process, told.append, CHECKPOINT, patience=Patience(question=60.0))
    explainer.submit(first, window(1))
    while not told:
        time.sleep(0.01)
    yield explainer, first, second, told
    explainer.close(finish=False)
    rae.close()


@pytest.fixture
def restart(process, monkeypatch):
    """Restarts wait for `go_on` after they have set `begun`."""
    real, begun, go_on = process._restart, threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(60)
        real()

    monkeypatch.setattr(process, "_restart", slow)
    yield begun, go_on
    go_on.set()


def _kill(process):
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_question_in_the_middle_of_a_restart_is_answered_after_it(process, explained, restart):
    (explainer, first, second, told), (begun, go_on) = explained, restart
    _kill(process)
    explainer.submit(second, window(2))  # finds it gone and starts it anew
    assert begun.wait(60)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(explainer.ask(first, "And why?")))
    asking.start()
    asking.join(0.3)
    assert not answers
    go_on.set()
    asking.join(60)
    assert answers
    assert answers[0]
    while len(told) < 2:  # the event is explained too
        time.sleep(0.01)
    assert process.restarts == 1


def test_a_question_does_not_wait_for_a_restart_that_takes_too_long(process, explained, restart):
    (explainer, first, _, _), (begun, go_on) = explained, restart
    _kill(process)
    explainer._patience = Patience(question=0.2)
    with pytest.raises(LanguageModelError, match=r"did not come to it in 0\.2 s; ask again later"):
        explainer.ask(first, "And why?")
    assert begun.is_set()
    explainer._patience = Patience(question=60.0)
    before = [turn.question for turn in explainer._recent.get(first).turns]
    go_on.set()
    assert explainer.ask(first, "And now?")
    # What was given up is not part of what was said.
    assert [turn.question for turn in explainer._recent.get(first).turns] == [*before, "And now?"]
