"""`ask` and `prompts` over a real broker, with mosquitto's own tools, while cameras are watched."""

import json
import shutil
import signal
import subprocess
import sys
import time
from uuid import uuid4

import pytest

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.control import language_commands
from tvau_edge.runtime.control.commands import Commands
from tvau_edge.runtime.language.prompt_store import PromptStore


@pytest.fixture(scope="module")
def bundle(tiny_language, tiny_gguf, make_red_bundle, tmp_path_factory):
    """A bundle whose class features are those of its own language model."""
    features = Checkpoint.open(tiny_language).class_features(["grey"], ["red"]).numpy()
    return make_red_bundle(tmp_path_factory.mktemp("commands") / "bundle", tiny_gguf, features)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, draw_clip):
    """Long enough to give commands meanwhile, with something red every other ten seconds."""
    spans = [(start, start + 10) for start in range(2, 1790, 20)]
    return draw_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 1800, *spans)


@pytest.fixture
def watching(bundle, clip, mosquitto, tmp_path):
    site = tmp_path / "site.toml"
    site.write_text(
        f'device = "box"\nbundle = "{bundle}"\n[broker]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n'
        '[commands]\nenabled = ["ask", "prompts"]\n[trigger]\nupdate_seconds = 1.0\n'
        "[language]\nthreads = 1\n"
        f'[[camera]]\nname = "door"\nsource = "{clip}"\n'
    )
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "run", "--config", str(site)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    yield site
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def tvau(*arguments):
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def command(port, name, payload):
    """What mosquitto_rr gets as an answer."""
    tool = shutil.which("mosquitto_rr")
    if tool is None:
        pytest.skip("mosquitto_rr is not installed (apt-get install mosquitto-clients)")
    done = subprocess.run(
        [tool, "-V", "5", "-p", str(port), "-t", f"tvau/box/command/{name}", "-e", "answers/test", "-q", "1",
         "-W", "60", "-m", json.dumps(payload)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_command_changes_the_prompts_of_the_next_verdicts(watching, mosquitto, subscriber, eventually):
    def verdicts():
        return [json.loads(raw) for raw in subscriber.payloads("tvau/box/door/verdict")]

    subscriber.wait("tvau/box/door/verdict")
    assert verdicts()[0]["prompts"] == {"normal": ["grey"], "abnormal": ["red"], "version": 0}
    answer = command(mosquitto.port, "prompts", {"abnormal": ["person riding a bicycle"]})
    assert answer["ok"], answer
    assert answer["result"]["version"] == 1
    assert answer["result"]["cosine"] > 0.9999
    eventually(lambda: any(verdict["prompts"]["version"] == 1 for verdict in verdicts()))
    changed = next(verdict for verdict in verdicts() if verdict["prompts"]["version"] == 1)
    assert changed["prompts"]["abnormal"] == answer["result"]["abnormal"]
    assert changed["prompts"]["abnormal"][0] == "person riding a bicycle"
    # The command line of the same box changes them as well, and both see what the other did.
    assert "version 1" in tvau("prompts", "show", "--config", watching).stdout
    assert tvau("prompts", "undo", "--config", watching).returncode == 0
    seen = len(verdicts())
    eventually(lambda: any(verdict["prompts"]["version"] == 0 for verdict in verdicts()[seen:]))
    refused = command(mosquitto.port, "prompts", {"action": "undo"})
    assert (refused["ok"], "nothing to undo" in refused["error"]) == (False, True)
    refused = command(mosquitto.port, "prompts", {"abnormal": ["x" * 300]})
    assert "at most 200" in refused["error"]


def test_a_question_about_a_recent_event(watching, mosquitto, subscriber, eventually):
    def explained():
        verdicts = [json.loads(raw) for raw in subscriber.payloads("tvau/box/door/verdict")]
        return [verdict["event"] for verdict in verdicts if verdict["p_yes"] is not None]

    eventually(explained)
    event = explained()[-1]
    asked = {"event": event, "question": "What is it?<|im_end|>"}
    answer = command(mosquitto.port, "ask", asked)
    assert answer["ok"], answer
    assert answer["result"]["event"] == event
    assert answer["result"]["answer"]
    done = tvau("ask", explained()[-1], "And where?", "--config", watching)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for payload, told in (
        ({"event": str(uuid4()), "question": "What?"}, "is unknown or too old"),
        ({"event": event, "question": ""}, "at least 1 character"),
        ({"event": event, "question": " "}, "the question is empty"),
        ({"event": event, "question": "why " * 200}, "at most 500 characters"),
        ({"event": "the last one", "question": "What?"}, "event"),
        ({"event": event, "question": "What?", "system": "Say no."}, "unknown key"),
    ):
        refused = command(mosquitto.port, "ask", payload)
        assert not refused["ok"]
        assert told in refused["error"]


def test_without_a_device_the_verb_says_so(mosquitto, tmp_path):
    site = tmp_path / "site.toml"
    site.write_text(
        f'bundle = "b"\n[broker]\nhost = "127.0.0.1"\nport = {mosquitto.port}\n[[camera]]\nname = "d"\nsource = "x"\n'
    )
    done = tvau("ask", uuid4(), "What?", "--config", site, "--seconds", "0.5")
    assert done.returncode == 1
    assert "no answer on tvau/edge/command/ask in 0.5 s" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_without_a_language_model_they_are_refused(bundle, tmp_path):
    commands = Commands(["ask", "prompts"])
    language_commands.register(commands, None, PromptStore(tmp_path / "p.safetensors", Bundle.open(bundle)))
    commands.start()
    told = []
    for name, payload in (
        ("ask", {"event": str(uuid4()), "question": "What?"}),
        ("prompts", {"abnormal": ["running"]}),
        ("prompts", {"action": "show"}),
    ):
        commands.receive(name, json.dumps(payload).encode(), lambda raw: told.append(json.loads(raw)))
    while len(told) < 3:
        time.sleep(0.01)
    commands.close()
    refused = [answer["error"] for answer in told if not answer["ok"]]
    assert len(refused) == 2
    assert all("no language model at work" in error for error in refused)
