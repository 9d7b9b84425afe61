"""The publisher against a real mosquitto: availability, delivery through restarts, and what it says when it cannot."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.verdict import State, at

VERDICTS = "tvau/box/door/verdict"
CLIENT = """
import sys
from pathlib import Path
from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
publisher = Publisher(BrokerConfig(host="127.0.0.1", port=int(sys.argv[1])), "box", Outbox(Path(sys.argv[2])))
publisher.start()
print("started", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(make_publisher: Callable[..., Publisher]) -> Callable[..., Publisher]:
    """Starts a publisher, given the port."""

    def start_one(port: int, **settings: object) -> Publisher:
        publisher = make_publisher(port, **settings)
        publisher.start()
        return publisher

    return start_one


def sequences(payloads: list[bytes]) -> list[int]:
    return [json.loads(payload)["sequence"] for payload in payloads]


def test_available_follows_a_clean_run(mosquitto, subscriber, start, subscribe):
    publisher = start(mosquitto.port)
    subscriber.wait_payload("tvau/box/available", b"online")
    assert publisher.stop() == 0
    subscriber.wait_payload("tvau/box/available", b"stopped")
    late = subscribe(mosquitto.port).wait("tvau/box/available")[0]
    assert (late.payload, late.retain) == (b"stopped", True)
    assert subscriber.payloads("tvau/box/available") == [b"online", b"stopped"]


def test_kill_9_leaves_the_last_will(mosquitto, subscriber, tmp_path):
    command = [sys.executable, "-c", CLIENT, str(mosquitto.port), str(tmp_path / "other.db")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"started\n"
    subscriber.wait_payload("tvau/box/available", b"online")
    process.send_signal(signal.SIGKILL)
    process.wait()
    subscriber.wait_payload("tvau/box/available", b"offline")
    process.stdout.close()
    process.stdin.close()


def test_states_are_retained_and_come_back_when_the_broker_is_new(mosquitto, start, subscribe):
    publisher = start(mosquitto.port)
    publisher.publish_state("door", State(anomaly="OFF", score=0.1, time=at(0)))
    publisher.publish_state("door", State(anomaly="ON", score=0.9, event=uuid4(), time=at(1)))
    publisher.publish_state("yard", State(anomaly="OFF", score=0.2, time=at(1)))
    first = subscribe(mosquitto.port)
    first.wait("tvau/box/door/state")
    first.wait("tvau/box/yard/state")
    mosquitto.restart()
    second = subscribe(mosquitto.port)
    (door,) = second.wait("tvau/box/door/state")
    (yard,) = second.wait("tvau/box/yard/state")
    assert json.loads(door.payload)["anomaly"] == "ON"
    assert json.loads(yard.payload)["score"] == 0.2
    second.wait_payload("tvau/box/available", b"online")


def test_a_state_given_while_the_broker_is_gone_is_told_when_it_is_back(
    mosquitto, start, subscribe, eventually
):
    publisher = start(mosquitto.port)
    mosquitto.kill()
    eventually(lambda: not publisher.status().connected, "the loss of the connection")
    publisher.publish_state("door", State(anomaly="ON", score=0.9, time=at(1)))
    mosquitto.start()
    (state,) = subscribe(mosquitto.port).wait("tvau/box/door/state")
    assert json.loads(state.payload)["anomaly"] == "ON"


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_payload_is_the_verdict(mosquitto, subscriber, start, protocol, make_verdict):
    publisher = start(mosquitto.port, protocol=protocol)
    sent = make_verdict()
    publisher.publish_verdict(sent)
    (message,) = subscriber.wait(VERDICTS)
    assert bytes(message.payload) == sent.to_json()
    assert (message.qos, message.retain) == (1, False)
    properties = message.properties
    if protocol == "3.1.1":
        assert not hasattr(properties, "ContentType")
        assert not hasattr(properties, "UserProperty")
        return
    assert properties.ContentType == "application/json"
    assert dict(properties.UserProperty) == {
        "specversion": "1.0",
        "id": str(sent.id),
        "source": "urn:tvau:box:door",
        "type": "tvau.verdict.1",
        "time": "2027-01-15T08:00:00.000Z",
    }


def test_topics_lie_under_the_root(mosquitto, subscriber, start, make_verdict):
    publisher = start(mosquitto.port, topic="site/7")
    publisher.publish_verdict(make_verdict())
    subscriber.wait("site/7/door/verdict")
    subscriber.wait_payload("site/7/available", b"online")


def test_a_verdict_that_waited_says_so(mosquitto, subscriber, tmp_path, monkeypatch, make_verdict):
    waited, prompt = make_verdict(), make_verdict(1)
    monkeypatch.setattr("tvau_edge.runtime.delivery.outbox.time.time", lambda: 1e9)
    before = Outbox(tmp_path / "waited.db")
    before.put(VERDICTS, "start", waited.to_json())
    before.close()
    monkeypatch.undo()
    outbox = Outbox(tmp_path / "waited.db")
    publisher = Publisher(BrokerConfig(host="127.0.0.1", port=mosquitto.port), "box", outbox)
    publisher.start()
    publisher.publish_verdict(prompt)
    first, second = subscriber.wait(VERDICTS, 2)
    publisher.stop()
    outbox.close()
    assert json.loads(first.payload) == json.loads(waited.to_json()) | {"late": True}
    assert bytes(second.payload) == prompt.to_json()
    assert dict(first.properties.UserProperty)["id"] == str(waited.id)


def test_what_was_not_delivered_is_delivered_by_the_next_run(
    mosquitto, start, outbox, subscribe, eventually, make_verdict
):
    publisher = start(mosquitto.port)
    mosquitto.kill()
    eventually(lambda: not publisher.status().connected, "the loss of the connection")
    for sequence in range(3):
        publisher.publish_verdict(make_verdict(sequence))
    assert publisher.stop(0) == 3
    mosquitto.start()
    subscriber = subscribe(mosquitto.port)
    start(mosquitto.port)
    subscriber.wait(VERDICTS, 3)
    assert sequences(subscriber.payloads(VERDICTS)) == [0, 1, 2]
    eventually(lambda: len(outbox) == 0, "an empty outbox")


class Cable:
    """Passes bytes between a publisher and a broker, until it is pulled."""

    def __init__(self, port: int) -> None:
        self._broker = port
        self._plugged = threading.Event()
        self._plugged.set()
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._server.accept()
            except OSError:
                return
            if not self._plugged.is_set():
                ours.close()
                continue
            theirs = socket.create_connection(("127.0.0.1", self._broker))
            self._ends = [ours, theirs]
            for source, target in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def pull(self) -> None:
        self._plugged.clear()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def plug(self) -> None:
        self._plugged.set()

    def close(self) -> None:
        self.pull()
        self._server.close()


@pytest.fixture
def cable(mosquitto) -> Iterator[Cable]:
    """To `mosquitto`."""
    between = Cable(mosquitto.port)
    yield between
    between.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_killed_while_we_send_loses_nothing(
    mosquitto, cable, start, outbox, subscribe, protocol, make_verdict, eventually
):
    """Mosquitto acknowledges what it has sent on; a subscriber of QoS 0 is sent everything at once."""
    publisher = start(cable.port, protocol=protocol)
    seen: list[int] = []
    portion, lives = 60, 3

    def feed(life: int) -> None:
        for sequence in range(life * portion, (life + 1) * portion):
            publisher.publish_verdict(make_verdict(sequence))

    for life in range(lives):
        subscriber = subscribe(mosquitto.port, qos=0)
        cable.plug()  # only now: what is published without a subscriber is gone
        feeder = threading.Thread(target=feed, args=(life,))
        feeder.start()
        subscriber.wait(VERDICTS, 10)
        mosquitto.kill()
        cable.pull()
        subscriber.await_end()
        seen += sequences(subscriber.payloads(VERDICTS))
        subscriber.close()
        feeder.join()
        mosquitto.start()
    subscriber = subscribe(mosquitto.port, qos=0)
    cable.plug()
    assert publisher.stop(0) >= 0
    start(mosquitto.port, protocol=protocol)
    missing = set(range(portion * lives)) - set(seen)
    eventually(lambda: missing <= set(sequences(subscriber.payloads(VERDICTS))), "what was missing")
    seen += sequences(subscriber.payloads(VERDICTS))
    firsts = list(dict.fromkeys(seen))  # copies may follow
    assert firsts == list(range(portion * lives))


class Relay:
    """A broker's double that speaks just enough MQTT: it tells what it got, and acknowledges when told to."""

    def __init__(self, connack: bytes = b"\x20\x02\x00\x00") -> None:
        self._connack, self._five = connack, len(connack) > 4
        self.retained: list[tuple[str, bytes]] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.acknowledge, self.hold_retained = threading.Event(), threading.Event()
        self.lives: list[list[int]] = []
        self._socket: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                self._socket, _ = self._server.accept()
            except OSError:
                return
            self.lives.append([])
            try:
                self._speak(self._socket)
            except OSError:
                continue

    def _speak(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        waiting: list[bytes] = []
        connection.settimeout(0.05)
        while True:
            if self.acknowledge.is_set():
                for packet in waiting:
                    connection.sendall(b"\x40\x02" + packet)
                waiting.clear()
            try:
                kind, body = _packet(connection)
            except TimeoutError:
                continue
            if not kind:
                stream.close()
                return
            if kind >> 4 == 1:
                connection.sendall(self._connack)
            elif kind >> 4 == 3:
                length = int.from_bytes(body[:2], "big")
                topic, packet, rest = body[2 : 2 + length], body[2 + length : 4 + length], body[4 + length :]
                # Our properties are shorter than 16384 bytes: one or two bytes of length.
                more = (
                    (rest[0] & 0x7F) + (1 if rest[0] < 0x80 else 1 + 128 * rest[1] + 1) if self._five else 0
                )
                payload = rest[more:]
                if kind & 1:
                    self.retained.append((topic.decode(), payload))
                    if not self.hold_retained.is_set():
                        connection.sendall(b"\x40\x02" + packet)
                elif topic.endswith(b"verdict"):
                    self.lives[-1].append(json.loads(payload)["sequence"])
                    waiting.append(packet)
                else:
                    connection.sendall(b"\x40\x02" + packet)
            elif kind >> 4 == 12:
                connection.sendall(b"\xd0\x00")

    def cut(self) -> None:
        assert self._socket is not None
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.close()
        if self._socket is not None:
            self._socket.close()


def _packet(connection: socket.socket) -> tuple[int, bytes]:
    """A packet's first byte and body; 0 at the end. Times out only between packets."""
    head = connection.recv(1)
    if not head:
        return 0, b""
    connection.settimeout(30)
    length, shift = 0, 0
    while True:
        (byte,) = connection.recv(1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    body = b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    connection.settimeout(0.05)
    return head[0], body


@pytest.fixture
def relay() -> Iterator[Relay]:
    double = Relay()
    yield double
    double.close()


def test_nothing_overtakes_what_was_not_acknowledged(relay, start, outbox, eventually, make_verdict):
    publisher = start(relay.port, protocol="3.1.1")
    for sequence in range(5):
        publisher.publish_verdict(make_verdict(sequence))
    eventually(lambda: relay.lives[-1] == [0, 1, 2, 3, 4], "five verdicts")
    relay.cut()
    for sequence in range(5, 30):
        publisher.publish_verdict(make_verdict(sequence))
    eventually(lambda: len(relay.lives) == 2 and len(relay.lives[-1]) >= 5, "the five again")
    # Whatever went out before the cut was noticed comes again, in order.
    assert relay.lives[-1] == list(range(len(relay.lives[-1])))
    assert len(outbox) == 30
    relay.acknowledge.set()
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    assert relay.lives[-1] == list(range(30))


def test_at_most_a_window_is_on_its_way(relay, start, outbox, eventually, make_verdict):
    publisher = start(relay.port, protocol="3.1.1", in_flight=20)
    for sequence in range(50):
        publisher.publish_verdict(make_verdict(sequence))
    eventually(lambda: len(relay.lives[-1]) >= 20, "a window")
    assert relay.lives[-1] == list(range(20))
    assert publisher.stop(0) == 50


def test_stopping_without_an_acknowledgement_keeps_the_verdict(
    relay, start, outbox, eventually, make_verdict
):
    publisher = start(relay.port, protocol="3.1.1")
    publisher.publish_verdict(make_verdict())
    eventually(lambda: relay.lives[-1] == [0], "the verdict")
    assert publisher.stop(0.1) == 1
    assert len(outbox) == 1


def test_the_brokers_receive_maximum_is_respected(outbox, make_publisher, eventually, make_verdict):
    relay = Relay(connack=b"\x20\x06\x00\x00\x03\x21\x00\x07")  # MQTT 5: receive maximum 7
    try:
        publisher = make_publisher(relay.port)
        publisher.start()
        eventually(lambda: relay.retained, "availability")
        for sequence in range(30):
            publisher.publish_verdict(make_verdict(sequence))
        eventually(lambda: len(relay.lives[-1]) >= 7, "a window")
        assert relay.lives[-1] == list(range(7))
        relay.acknowledge.set()
        eventually(lambda: len(outbox) == 0, "an empty outbox")
        assert relay.lives[-1] == list(range(30))
    finally:
        relay.close()


def test_an_older_state_never_overtakes_a_newer_one(relay, start, eventually):
    """What was not acknowledged is sent anew by paho when it connects again; the newer one waits for it."""
    publisher = start(relay.port, protocol="3.1.1")
    eventually(lambda: relay.retained, "availability")
    relay.hold_retained.set()
    publisher.publish_state("door", State(anomaly="ON", score=0.9, time=at(0)))
    eventually(lambda: len(relay.retained) == 2, "the older state")
    publisher.publish_state("door", State(anomaly="OFF", score=0.1, time=at(1)))
    relay.hold_retained.clear()
    relay.cut()

    def last() -> str:
        states = [json.loads(payload)["anomaly"] for topic, payload in relay.retained if "state" in topic]
        return states[-1]

    eventually(lambda: last() == "OFF", "the newer state")
    eventually(lambda: not publisher._sender._unfinished(), "rest")
    assert last() == "OFF"
