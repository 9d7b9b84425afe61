"""`tvau run` as a service: ready, alive, reloading and stopping, with systemd's end of the socket in our hands."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from types import SimpleNamespace

import pytest
from jsonschema import Draft202012Validator

from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.service import oversight as module
from tvau_edge.runtime.service.health import Health
from tvau_edge.runtime.service.oversight import Oversight


class Service:
    """`tvau run` with a configuration file, watched as systemd watches it."""

    def __init__(self, folder, bundle, port):
        self.folder, self.bundle, self.port = folder, bundle, port
        self.file = folder / "site.toml"
        self.said = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        threading.Thread(target=self._listen, daemon=True).start()
        self.process = None

    def write(self, *cameras, text=""):
        lines = ['device = "box"'] if "device" not in text else []
        lines += [f'bundle = "{self.bundle}"'] if "bundle" not in text else []
        lines += [text, "[broker]", 'host = "127.0.0.1"', f"port = {self.port}"]
        lines += ["[health]", "seconds = 0.5"] if "[health]" not in text else []
        for name, source in cameras:
            lines += ["[[camera]]", f'name = "{name}"', f'source = "{source}"', "stall_seconds = 60"]
        self.file.write_text("\n".join(lines))

    def start(self):
        environment = os.environ | {"NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "3000000"}
        command = [sys.executable, "-m", "tvau_edge.runtime.cli", "run", "--config", str(self.file)]
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log, stdout=log)

    def _listen(self):
        while True:
            try:
                message = self._socket.recv(4096).decode()
            except OSError:
                return
            with self._changed:
                self.said += message.split("\n")
                self._changed.notify_all()

    def hear(self, what, count=1):
        with self._changed:
            heard = self._changed.wait_for(lambda: self.said.count(what) >= count, 60)
        assert heard, f"{what} was not said {count} times, but {self.said}\n{self.log}"

    def hang_up(self):
        os.kill(self.process.pid, signal.SIGHUP)

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def stop(self):
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._socket.close()


@pytest.fixture
def service(tmp_path, red_bundle, mosquitto):
    one = Service(tmp_path, red_bundle, mosquitto.port)
    yield one
    one.close()


@pytest.fixture
def red_camera(faulty_camera, send_act, draw_clip, tmp_path):
    """Starts cameras that show something red for ever, at three times the speed of life."""
    stream = draw_clip(tmp_path / "red.ts", 10, (0, 10)).read_bytes()
    return lambda: faulty_camera(send_act(stream, rate=len(stream) / 3, then="again"))


def newest_health(subscriber):
    return json.loads(subscriber.wait("tvau/box/health")[-1].payload)


def test_ready_alive_healthy_and_stopped(service, red_camera, subscriber, eventually):
    service.write(("gate", red_camera().url))
    service.start()
    service.hear("READY=1")
    service.hear("WATCHDOG=1", 3)
    subscriber.wait("tvau/box/gate/verdict")
    eventually(
        lambda: newest_health(subscriber)["cameras"]["gate"].get("lag_ms"), "a health that knows the lag"
    )
    health = newest_health(subscriber)
    Draft202012Validator(Health.model_json_schema(mode="serialization")).validate(health)
    gate = health["cameras"]["gate"]
    assert (gate["state"], gate["event"]) == ("playing", True)
    assert gate["lag_ms"] > 0
    assert gate["fps"] > 0
    assert service.stop() == 0
    service.hear("STOPPING=1")
    subscriber.wait_payload("tvau/box/available", b"stopped")
    phases = [json.loads(payload)["phase"] for payload in subscriber.payloads("tvau/box/gate/verdict")]
    assert (phases[0], phases[-1]) == ("start", "end")
    assert "Traceback" not in service.log


def test_cameras_and_mistakes_at_a_hang_up(service, red_camera, subscriber):
    gate, yard = red_camera(), red_camera()
    service.write(("gate", gate.url))
    service.start()
    subscriber.wait("tvau/box/gate/verdict")
    service.write(("gate", gate.url), text="devise = 1")
    service.hang_up()
    service.hear("RELOADING=1")
    service.hear("READY=1", 2)
    assert "the new configuration is wrong, the old one stays: " in service.log
    assert "devise: unknown key; did you mean 'device'?" in service.log
    service.write(("gate", gate.url), ("yard", yard.url))
    service.hang_up()
    service.hear("READY=1", 3)
    subscriber.wait("tvau/box/yard/verdict")
    assert gate.connections == 1
    phases = [json.loads(payload)["phase"] for payload in subscriber.payloads("tvau/box/gate/verdict")]
    assert "end" not in phases  # it has noticed nothing
    service.hang_up()
    service.hear("READY=1", 4)
    assert "nothing has changed" in service.log
    assert service.stop() == 0


def test_what_cannot_change_in_place_is_opened_anew_or_stays(service, red_camera, subscriber, free_port):
    gate = red_camera()
    service.write(("gate", gate.url))
    service.start()
    subscriber.wait("tvau/box/gate/verdict")
    service.write(("gate", gate.url), text=f'bundle = "{service.folder / "absent"}"')
    service.hang_up()
    service.hear("READY=1", 2)
    assert "the old one stays" in service.log
    assert service.process.poll() is None
    # A broker that nobody can reach is only found out when the old one has been left: then the old one goes on.
    right, service.port = service.port, free_port
    service.write(("gate", gate.url))
    service.hang_up()
    service.hear("READY=1", 3)
    assert "the new configuration cannot be used, the old one goes on" in service.log
    service.port = right
    service.write(("gate", gate.url), text='device = "other"')
    service.hang_up()
    service.hear("READY=1", 4)
    subscriber.wait("tvau/other/gate/verdict")
    subscriber.wait_payload("tvau/box/available", b"stopped")
    assert service.stop() == 0
    subscriber.wait_payload("tvau/other/available", b"stopped")
    assert "Traceback" not in service.log


def test_prometheus_beside_it(service, red_camera, free_port, subscriber):
    pytest.importorskip("prometheus_client")
    service.write(("gate", red_camera().url), text=f"[health]\nprometheus_port = {free_port}")
    service.start()
    service.hear("READY=1")
    subscriber.wait("tvau/box/gate/verdict")
    with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert 'tvau_camera_up{camera="gate"} 1.0' in text
    assert service.stop() == 0


# ---------------------------------------------------------------- alone


class Told:
    """In place of a notifier: keeps what is said."""

    watchdog_seconds = 0.0003

    def __init__(self):
        self.said = []

    def __getattr__(self, name):
        return lambda *_: self.said.append(name)


def make(reload=None, **pipeline):
    site = parse_config({"bundle": "b", "camera": [{"name": "a", "source": "a.mp4"}]}, "test")
    notifier = Told()
    oversight = Oversight(site, notifier, lambda payload: None, dict, reload)
    oversight._next_health = float("inf")
    oversight.attach(SimpleNamespace(**{"explainer": None} | pipeline))
    return oversight, notifier


def test_a_language_model_that_hangs_leaves_the_watchdog_alone(caplog, monkeypatch):
    monkeypatch.setattr(module, "_DIALOGUE_SECONDS", 5.0)
    explainer = SimpleNamespace(busy_seconds=4.0)
    oversight, notifier = make(explainer=explainer)
    oversight.tick()
    assert notifier.said.count("alive") == 1
    explainer.busy_seconds = 6.0
    for _ in range(3):
        threading.Event().wait(0.01)
        oversight.tick()
    assert notifier.said.count("alive") == 1
    assert caplog.text.count("the language model hangs") == 1
    explainer.busy_seconds = 0.0
    oversight.tick()
    assert notifier.said.count("alive") == 2


def test_health_that_fails_costs_nothing_else(caplog):
    oversight, notifier = make()
    oversight._next_health = 0.0
    oversight.tick()  # the pipeline of this test has nothing that health could read
    assert "health cannot be published" in caplog.text
    assert "alive" in notifier.said


def test_without_a_file_there_is_nothing_to_read_again(caplog):
    oversight, notifier = make()
    oversight.ask_reload()
    with caplog.at_level(logging.WARNING):
        oversight.tick()
    assert "there is no configuration file" in caplog.text
    assert "reloading" not in notifier.said


def test_a_file_that_has_gone_changes_nothing(caplog):
    def reload():
        raise ConfigError("site.toml: no such file")

    oversight, notifier = make(reload)
    before = oversight.site
    oversight.ask_reload()
    oversight.tick()
    assert "the old one stays: site.toml: no such file" in caplog.text
    assert oversight.site is before
    assert notifier.said[-2:] == ["ready", "alive"]
