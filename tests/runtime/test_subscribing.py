"""The subscribers of docs/subscribing.md, as they stand there, each against a real broker and publisher."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tvau_edge.runtime.config import load_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "subscribing.md").read_text()
MODULES = ROOT / ".node" / "node_modules"  # `make node` fills it


def block(language: str, number: int = 0) -> str:
    """The page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


def lines_of(command: list[object], count: int, ready, publish) -> list[str]:
    """Start a subscriber, publish once it has subscribed, and return its first lines."""
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    guard = threading.Timer(60, process.kill)
    guard.start()
    try:
        ready()
        publish()
        assert process.stdout is not None
        return [process.stdout.readline().rstrip("\n") for _ in range(count)]
    finally:
        guard.cancel()
        process.kill()
        process.communicate()


@pytest.fixture
def run(mosquitto, make_publisher, make_verdict, eventually):
    """Runs a subscriber on three verdicts, the second of which comes twice."""

    def run_one(command: list[object]) -> tuple[list[str], list]:
        publisher = make_publisher(mosquitto.port)
        publisher.start()
        sent = [make_verdict(0), make_verdict(1), make_verdict(2)]
        log = mosquitto.folder / f"mosquitto-{mosquitto.port}.log"

        def publish() -> None:
            for verdict in (sent[0], sent[1], sent[1], sent[2]):
                publisher.publish_verdict(verdict)

        def subscribed() -> bool:
            return bool(re.search(r"^\S+ back-end\S* 1 tvau/\+/\+/verdict", log.read_text(), re.MULTILINE))

        count = 4 if command[0] == "sh" else 3
        return lines_of(
            [*command, "127.0.0.1", mosquitto.port],
            count,
            lambda: eventually(subscribed, "a subscription"),
            publish,
        ), sent

    return run_one


@pytest.fixture
def mosquitto(make_mosquitto):
    return make_mosquitto("allow_anonymous true", "log_type all")


EXPECTED = ["box door start 0", "box door update 1", "box door update 2"]


def test_in_python(run, tmp_path):
    script = tmp_path / "subscriber.py"
    script.write_text(block("python"))
    assert run([sys.executable, script])[0] == EXPECTED


def test_in_node(run, tmp_path):
    if shutil.which("node") is None or not MODULES.exists():
        pytest.skip("Node.js or its package mqtt is missing: make node")
    script = tmp_path / "subscriber.mjs"
    script.write_text(block("javascript"))
    (tmp_path / "node_modules").symlink_to(MODULES)
    assert run(["node", script])[0] == EXPECTED


def test_in_the_shell(run, tmp_path):
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("mosquitto_sub is not installed (apt-get install mosquitto-clients)")
    script = tmp_path / "subscriber.sh"
    script.write_text(block("sh"))
    lines, sent = run(["sh", script])
    assert [json.loads(line)["id"] for line in lines] == [str(sent[k].id) for k in (0, 1, 1, 2)]


def test_the_command_of_the_page(mosquitto, make_publisher, eventually):
    from tvau_edge.runtime.control.commands import Commands
    from tvau_edge.runtime.control.device_commands import Threshold

    if shutil.which("mosquitto_rr") is None:
        pytest.skip("mosquitto_rr is not installed (apt-get install mosquitto-clients)")
    commands = Commands(["threshold"])
    commands.register("threshold", Threshold, lambda payload: payload)
    commands.start()
    publisher = make_publisher(mosquitto.port, topic="tvau/edge")
    publisher._commands = commands
    publisher.start()
    eventually(lambda: publisher.status().connected, "a connection")
    line = block("sh", 1).replace("-h localhost", f"-h 127.0.0.1 -p {mosquitto.port} -W 30")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    commands.close()
    assert json.loads(done.stdout)["result"]["open"] == 0.7, done.stderr


@pytest.mark.parametrize("number", range(3))
def test_configurations_of_the_page_are_valid(tmp_path, number):
    file = tmp_path / "site.toml"
    camera = '[[camera]]\nname = "door"\nsource = "clip.mp4"\n'
    file.write_text(f'bundle = "bundle"\n{block("toml", number)}\n{camera}')
    load_config(file)
