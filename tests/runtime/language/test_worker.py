import os
import signal
import subprocess
import sys
import threading
import time
from uuid import uuid4

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from drawn_evidence import CHECKPOINT, request, window
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.errors import BrokerError, ConfigError, LanguageModelError
from tvau_edge.runtime.language.explain import Explainer, Patience
from tvau_edge.runtime.language.messages import Reply, Request, pack, unpack
from tvau_edge.runtime.language.server import LanguageServer, LanguageSettings
from tvau_edge.runtime.language.worker import TOPIC, ExplainWorker, RemoteLanguage


@pytest.fixture(scope="module")
def server(talking_bundle):
    with LanguageServer(LanguageSettings(talking_bundle, threads=1)) as server:
        yield server


@pytest.fixture
def config(mosquitto):
    return BrokerConfig(host="127.0.0.1", port=mosquitto.port)


@pytest.fixture
def remote(config):
    remote = RemoteLanguage(config, "box")
    yield remote
    remote.close()


class Named:
    """A language model that answers at once, or not before it may, and tells who it is."""

    def __init__(self, name):
        self.name, self.may = name, threading.Event()
        self.may.set()

    def exchange(self, raw, seconds):
        self.may.wait(30)
        return pack(Reply(ok=True, answer=self.name))


def test_the_answers_are_those_of_one_box(server, config, remote):
    asked = [request(seed) for seed in range(3)]
    with ExplainWorker(config, "a", server) as worker:
        there = [unpack(remote.exchange(one, 30), Reply)[0] for one in asked]
        assert worker.answered == 3
    for one, reply in zip(asked, there, strict=True):
        here, _ = unpack(server.exchange(one), Reply)
        assert (reply.answers, reply.p_yes, reply.turns) == (here.answers, here.p_yes, here.turns)


def test_several_workers_share_the_load_of_several_devices(config):
    devices = [RemoteLanguage(config, f"box{number}") for number in range(3)]
    with ExplainWorker(config, "a", Named("a")) as one, ExplainWorker(config, "b", Named("b")) as other:
        for _ in range(4):
            for device in devices:
                unpack(device.exchange(request(), 30), Reply)
        assert one.answered + other.answered == 12
        assert min(one.answered, other.answered) >= 3
    for device in devices:
        device.close()


def test_each_device_gets_its_own_answers(config):
    class Echo:
        def exchange(self, raw, seconds):
            message, _ = unpack(raw, Request)
            return pack(Reply(ok=True, answer=message.device))

    found = {}

    def ask(name):
        device = RemoteLanguage(config, name)
        found[name] = {unpack(device.exchange(request(device=name), 30), Reply)[0].answer for _ in range(5)}
        device.close()

    with ExplainWorker(config, "a", Echo()):
        threads = [threading.Thread(target=ask, args=(f"box{number}",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == {f"box{number}": {f"box{number}"} for number in range(3)}


def test_without_a_worker_the_device_is_told(remote):
    with pytest.raises(LanguageModelError, match=r"no answer on tvau-explain/request in 0\.3 s"):
        remote.exchange(request(), 0.3)
    assert remote.state == "gone"


def test_without_a_broker_the_device_is_told_and_tries_again(mosquitto, config, remote):
    mosquitto.kill()
    with pytest.raises(LanguageModelError, match="connection refused"):
        remote.exchange(request(), 5)
    mosquitto.start()
    with ExplainWorker(config, "a", Named("a")):
        assert unpack(remote.exchange(request(), 30), Reply)[0].answer == "a"


def test_a_request_that_nobody_took_in_time_is_not_answered_later(config, remote):
    slow = Named("slow")
    slow.may.clear()
    with ExplainWorker(config, "a", slow) as worker:
        for _ in range(3):
            with pytest.raises(LanguageModelError):
                remote.exchange(request(), 0.5)
        time.sleep(1.2)  # MQTT counts expiry in whole seconds
        slow.may.set()
        assert unpack(remote.exchange(request(), 30), Reply)[0].answer == "slow"
        # The first it had already; the last is answered.
        assert (worker.answered, worker.expired) == (2, 2)


class FakeRae:
    def run(self, h_c):
        return np.ones((24, 64), np.float32)


def test_a_worker_that_dies_with_a_request(talking_bundle, config, mosquitto, remote):
    """Kill -9 of a worker that has a request: the event is explained by another."""
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "explain", "--bundle", str(talking_bundle)]
    command += ["--broker", f"127.0.0.1:{mosquitto.port}", "--name", "mortal"]
    mortal = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    line = mortal.stderr.readline()
    while "takes requests" not in line:
        line = mortal.stderr.readline()
        assert line
    assert unpack(remote.exchange(request(), 60), Reply)[0].ok
    os.kill(mortal.pid, signal.SIGSTOP)  # so that it surely has the request when it dies
    told = []
    explainer = Explainer(FakeRae(), remote, told.append, CHECKPOINT, patience=Patience(answer=3.0))
    event = uuid4()
    explainer.submit(event, window())
    time.sleep(0.5)
    mortal.kill()
    mortal.wait()
    with (
        LanguageServer(LanguageSettings(talking_bundle, threads=1)) as server,
        ExplainWorker(config, "b", server),
    ):
        explainer.close()
    assert [explanation.event for explanation in told] == [event]


def test_it_ends_at_a_signal(talking_bundle, mosquitto):
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "explain", "--bundle", str(talking_bundle)]
    worker = subprocess.Popen(
        [*command, "--broker", f"127.0.0.1:{mosquitto.port}"], stderr=subprocess.PIPE, text=True
    )
    line = worker.stderr.readline()
    while "takes requests" not in line:
        line = worker.stderr.readline()
    worker.send_signal(signal.SIGTERM)
    _, said = worker.communicate(timeout=30)
    assert worker.returncode == 0, said
    assert "0 requests answered" in said


def publish(config, payload, to):
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect(config.host, config.effective_port)
    client.loop_start()
    properties = Properties(PacketTypes.PUBLISH)
    if to is not None:
        properties.ResponseTopic = to
    client.publish(TOPIC, payload, qos=1, properties=properties).wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def test_strange_requests_do_no_harm(server, config, remote, subscriber):
    with ExplainWorker(config, "a", server) as worker:
        publish(config, request(), None)
        publish(config, request(), "tvau/box/door/verdict")
        publish(config, b"\xff" * 100, "tvau-answers/stranger")
        (message,) = subscriber.wait("tvau-answers/stranger")
        reply, _ = unpack(message.payload, Reply)
        assert (reply.ok, "not a message of" in reply.error) == (False, True)
        assert unpack(remote.exchange(request(), 30), Reply)[0].ok
        assert worker.answered == 2
    assert not subscriber.on("tvau/box/door/verdict")


def test_what_it_needs(config, free_port, server):
    with pytest.raises(ConfigError, match="MQTT 5"):
        ExplainWorker(config.model_copy(update={"protocol": "3.1.1"}), "a", server)
    with pytest.raises(BrokerError, match="connection refused"):
        ExplainWorker(BrokerConfig(host="127.0.0.1", port=free_port), "a", server)
