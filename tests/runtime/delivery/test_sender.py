"""What the broker refuses, limits or asks for, against a real mosquitto."""

import json
from collections.abc import Callable

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tvau_edge.runtime.control.commands import Commands, Payload
from tvau_edge.runtime.delivery import properties, sender
from tvau_edge.runtime.delivery.properties import PublishProperties
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.verdict import Prompts, Verdict, abridged, marked_late

VERDICTS = "tvau/box/door/verdict"


@pytest.mark.parametrize("text", ["", "x" * 50, "ü" * 200, "y" * 20_000])
def test_properties_are_those_of_paho(text):
    theirs = Properties(PacketTypes.PUBLISH)
    theirs.MessageExpiryInterval = 77
    theirs.ContentType = "image/jpeg"
    theirs.CorrelationData = b"\x00\xff"
    theirs.UserProperty = [("name", text), ("other", "1")]
    ours = PublishProperties(
        properties.expiry(77)
        + properties.content_type("image/jpeg")
        + properties.correlation(b"\x00\xff")
        + properties.user(b"name", text.encode())
        + properties.user(b"other", b"1")
    )
    assert ours.pack() == theirs.pack()


def large(verdict: Verdict, size: int = 3000) -> Verdict:
    """The same, but large."""
    return verdict.model_copy(
        update={"explanation": "x" * 1500, "prompts": Prompts(normal=["y" * size], abnormal=[])}
    )


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_verdict_too_large_for_the_broker_comes_abridged(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, eventually, protocol
):
    """MQTT 5 brokers tell their limit; for others it is configured."""
    broker = make_mosquitto("allow_anonymous true", "max_packet_size 1500")
    subscriber = subscribe(broker.port)
    limit = {"max_packet_bytes": 1500} if protocol == "3.1.1" else {}
    publisher = make_publisher(broker.port, protocol=protocol, **limit)
    publisher.start()
    sent = [make_verdict(0), large(make_verdict(1)), make_verdict(2)]
    for verdict in sent:
        publisher.publish_verdict(verdict)
    whole, short, after = (json.loads(message.payload) for message in subscriber.wait(VERDICTS, 3))
    assert [table["id"] for table in (whole, short, after)] == [str(verdict.id) for verdict in sent]
    assert (whole["abridged"], short["abridged"], after["abridged"]) == (False, True, False)
    assert Verdict.model_validate(short).explanation is None
    eventually(lambda: len(outbox) == 0, "an empty outbox")


def test_a_limit_that_the_broker_tells_only_by_cutting_the_connection(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, eventually, caplog, monkeypatch
):
    """As it seems with mosquitto 2.0 and its message_size_limit: its answer makes paho cut the connection."""
    monkeypatch.setattr(sender, "_BARREN", 1)
    broker = make_mosquitto("allow_anonymous true", "message_size_limit 4500")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(broker.port)
    publisher.start()
    publisher.publish_verdict(large(make_verdict(0), 5000))
    for sequence in range(1, 3):
        publisher.publish_verdict(make_verdict(sequence))
    messages = [json.loads(message.payload) for message in subscriber.wait(VERDICTS, 3)]
    assert [message["sequence"] for message in messages] == list(range(3))
    assert [message["abridged"] for message in messages] == [True, False, False]
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    assert "broker.max_packet_bytes" in caplog.text
    publisher.publish_heatmap("door", b"x" * 6000)
    publisher.publish_verdict(make_verdict(3))
    subscriber.wait(VERDICTS, 4)
    eventually(lambda: "6000 bytes on tvau/box/door/heatmap" in caplog.text, "a word about the picture")


def test_nothing_overtakes_a_verdict_that_is_too_large(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, eventually, monkeypatch
):
    """Mosquitto goes on with what comes behind it, so nothing may be behind it."""
    monkeypatch.setattr(sender, "_BARREN", 1)
    broker = make_mosquitto("allow_anonymous true", "message_size_limit 6500")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(broker.port)
    sizes = [0, 4000, 0, 7000, 0, 0]  # some are large, and yet not too large
    for sequence, size in enumerate(sizes):
        publisher.publish_verdict(large(make_verdict(sequence), size) if size else make_verdict(sequence))
    publisher.start()  # all that waits could go at once
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    messages = [json.loads(message.payload) for message in subscriber.wait(VERDICTS, len(sizes))]
    assert [message["sequence"] for message in messages] == list(range(len(sizes)))
    assert [message["abridged"] for message in messages] == [size == 7000 for size in sizes]


def test_a_broker_that_cuts_us_off_is_found_out_although_health_was_sent_to_it(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, eventually, monkeypatch
):
    """Nobody acknowledges a message of QoS 0, so it says nothing of how the broker takes the others."""
    monkeypatch.setattr(sender, "_BARREN", 1)
    broker = make_mosquitto("allow_anonymous true", "message_size_limit 4500")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(broker.port)
    publisher.start()
    publisher.publish_health(b'{"fps": 1}')
    subscriber.wait("tvau/box/health")
    publisher.publish_verdict(large(make_verdict(0), 5000))
    (message,) = subscriber.wait(VERDICTS)
    assert json.loads(message.payload)["abridged"]
    eventually(lambda: len(outbox) == 0, "an empty outbox")


def test_what_does_not_fit_even_abridged_is_given_up_and_counted(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, eventually, caplog
):
    broker = make_mosquitto()
    subscriber = subscribe(broker.port)
    publisher = make_publisher(broker.port, max_packet_bytes=200)
    publisher.start()
    publisher.publish_verdict(make_verdict(0))
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    assert publisher.status().refused == 1
    assert "will never take a message on tvau/box/door/verdict: Packet too large" in caplog.text
    publisher.publish_heatmap("door", b"\xff\xd8" + b"x" * 500)
    eventually(lambda: "takes no message of 502 bytes" in caplog.text, "a word about the picture")
    assert not subscriber.on(VERDICTS)


def test_a_topic_that_is_refused_waits_and_holds_no_other_up(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, tmp_path, eventually, monkeypatch, caplog
):
    monkeypatch.setattr(sender, "_HOLD_SECONDS", (0.3, 1.0))
    rights = tmp_path / "rights"
    rights.write_text("topic readwrite #\ntopic deny tvau/box/door/verdict\n")
    rights.chmod(0o644)
    broker = make_mosquitto("allow_anonymous true", f"acl_file {rights}")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(broker.port)
    publisher.start()
    for sequence in range(5):
        publisher.publish_verdict(make_verdict(sequence))
        publisher.publish_verdict(make_verdict(sequence).model_copy(update={"camera": "yard"}))
    subscriber.wait("tvau/box/yard/verdict", 5)
    eventually(lambda: publisher.status().held == 1 and len(outbox) == 5, "a topic that is held")
    assert "what the broker lets this user do" in caplog.text
    assert not subscriber.on(VERDICTS)
    rights.write_text("topic readwrite #\n")
    assert broker.process is not None
    broker.process.send_signal(1)  # SIGHUP: read it again
    messages = subscriber.wait(VERDICTS, 5)
    assert [json.loads(message.payload)["sequence"] for message in messages] == [0, 1, 2, 3, 4]
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    assert caplog.text.count("refuses tvau/box/door/verdict") == 1


def test_stopping_does_not_wait_for_what_is_refused(
    make_mosquitto, make_publisher, make_verdict, tmp_path, eventually
):
    rights = tmp_path / "rights"
    rights.write_text("topic readwrite #\ntopic deny tvau/box/door/verdict\n")
    rights.chmod(0o644)
    broker = make_mosquitto("allow_anonymous true", f"acl_file {rights}")
    publisher = make_publisher(broker.port)
    publisher.start()
    publisher.publish_verdict(make_verdict())
    eventually(lambda: publisher.status().held == 1, "a topic that is held")
    assert publisher.stop(flush_seconds=3600) == 1


def test_health_and_pictures_are_retained(mosquitto, make_publisher, subscriber, subscribe):
    publisher = make_publisher(mosquitto.port)
    publisher.start()
    publisher.publish_health(b'{"fps": 1}')
    publisher.publish_heatmap("door", b"\xff\xd8 picture")
    subscriber.wait("tvau/box/door/heatmap")
    subscriber.wait("tvau/box/health")
    late = subscribe(mosquitto.port)
    (health,), (picture,) = late.wait("tvau/box/health"), late.wait("tvau/box/door/heatmap")
    assert (health.payload, health.qos, health.retain) == (b'{"fps": 1}', 0, True)
    assert (picture.payload, picture.qos, picture.retain) == (b"\xff\xd8 picture", 1, True)
    assert picture.properties.ContentType == "image/jpeg"
    assert health.properties.ContentType == "application/json"


def test_expiry_counts_from_the_message_not_from_its_sending(
    mosquitto, make_publisher, subscriber, make_verdict
):
    publisher = make_publisher(mosquitto.port, message_expiry_seconds=3600)
    publisher.start()
    publisher.publish_verdict(make_verdict())
    (message,) = subscriber.wait(VERDICTS)
    assert 3500 < message.properties.MessageExpiryInterval <= 3600
    body = publisher._sender._events.properties(make_verdict().to_json(), 3000.0)
    assert properties.expiry(600) in body
    assert properties.expiry(1) in publisher._sender._events.properties(make_verdict().to_json(), 5000.0)


def test_over_websockets(make_mosquitto, make_publisher, subscribe, make_verdict, free_port):
    broker = make_mosquitto("allow_anonymous true", f"listener {free_port} 127.0.0.1", "protocol websockets")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(free_port, websocket_path="/mqtt")
    publisher.start()
    publisher.publish_verdict(make_verdict())
    subscriber.wait(VERDICTS)


def test_a_picture_that_a_websocket_takes_in_part_costs_no_verdict(
    make_mosquitto, make_publisher, subscribe, make_verdict, outbox, free_port, eventually
):
    """A packet of which a WebSocket has taken only the beginning is forgotten by paho 2.2 (its issue 887)."""
    broker = make_mosquitto("allow_anonymous true", f"listener {free_port} 127.0.0.1", "protocol websockets")
    subscriber = subscribe(broker.port)
    publisher = make_publisher(free_port, websocket_path="/mqtt", keepalive=3600)
    publisher.start()
    publisher.publish_heatmap("door", b"x" * (4 << 20))
    for sequence in range(100):
        publisher.publish_verdict(make_verdict(sequence))
    verdicts = subscriber.wait(VERDICTS, 100)
    assert [json.loads(message.payload)["sequence"] for message in verdicts] == list(range(100))
    assert len(subscriber.wait("tvau/box/door/heatmap")[0].payload) == 4 << 20
    eventually(lambda: len(outbox) == 0, "an empty outbox")


def test_much_over_tls(tls_mosquitto, make_publisher, make_verdict, outbox, authority, eventually):
    publisher = make_publisher(tls_mosquitto().port, tls={"ca": authority.ca}, keepalive=3600)
    publisher.start()
    publisher.publish_heatmap("door", b"x" * (8 << 20))
    for sequence in range(200):
        publisher.publish_verdict(make_verdict(sequence))
    eventually(lambda: len(outbox) == 0, "an empty outbox")
    eventually(lambda: not publisher._sender._unfinished(), "a picture that is acknowledged")


def test_names_that_need_quoting_keep_their_attributes(mosquitto, make_publisher, subscriber, make_verdict):
    publisher = make_publisher(mosquitto.port)
    publisher.start()
    name = 'do"or\\ "time":"x'
    sent = make_verdict().model_copy(update={"camera": name, "target": '"late":false "id":"7"'})
    publisher.publish_verdict(sent)
    (message,) = subscriber.wait(f"tvau/box/{name}/verdict")
    user = dict(message.properties.UserProperty)
    assert (user["id"], user["source"]) == (str(sent.id), f"urn:tvau:box:{name}")
    assert user["time"] == json.loads(sent.to_json())["time"]


def test_marking_changes_the_mark_alone(make_verdict):
    sent = make_verdict().model_copy(update={"target": '"late":false', "explanation": '\\"late":false'})
    assert json.loads(marked_late(sent.to_json())) == json.loads(sent.to_json()) | {"late": True}
    assert json.loads(abridged(sent.to_json()))["late"] is False


class Level(Payload):
    level: float


@pytest.fixture
def commanded(mosquitto, subscriber, outbox, make_publisher) -> Callable[..., Publisher]:
    """Starts a publisher that obeys the command `level`."""
    commands = Commands(["level"])
    commands.register("level", Level, lambda payload: payload)
    commands.start()
    publisher = make_publisher(mosquitto.port)
    publisher._commands = commands
    publisher.start()
    subscriber.wait("tvau/box/available")  # sent behind the subscription of commands
    yield publisher
    commands.close()


def command(client, topic: str, payload: bytes, to: str | None, correlation: bytes = b"7", **more) -> None:
    asked = Properties(PacketTypes.PUBLISH)
    if to is not None:
        asked.ResponseTopic = to
        asked.CorrelationData = correlation
    client.publish(topic, payload, qos=1, properties=asked, **more)


def test_a_command_is_answered_on_its_response_topic(commanded, subscriber):
    command(subscriber._client, "tvau/box/command/level", b'{"level": 0.5}', "me/answers")
    (answer,) = subscriber.wait("me/answers")
    assert json.loads(answer.payload)["result"] == {"level": 0.5}
    assert answer.properties.CorrelationData == b"7"
    command(subscriber._client, "tvau/box/command/level", b"{}", "me/answers", b"8")
    again = subscriber.wait("me/answers", 2)[1]
    assert not json.loads(again.payload)["ok"]
    assert again.properties.CorrelationData == b"8"


@pytest.mark.parametrize("to", [None, "tvau/box/available", "tvau/box/command/level", "tvau/box", "$SYS/x"])
def test_no_answer_goes_where_it_could_do_harm(commanded, subscriber, to):
    command(subscriber._client, "tvau/box/command/level", b'{"level": 0.5}', to)
    command(subscriber._client, "tvau/box/command/level", b'{"level": 0.6}', "me/answers")
    assert json.loads(subscriber.wait("me/answers")[0].payload)["result"] == {"level": 0.6}
    assert subscriber.payloads("tvau/box/available") == [b"online"]
    if to is not None:
        assert len(subscriber.on(to)) <= 2  # what we sent ourselves


def test_a_retained_command_is_not_obeyed(mosquitto, subscriber, outbox, make_publisher):
    obeyed: list[object] = []
    subscriber._client.publish("tvau/box/command/level", b'{"level": 0.5}', qos=1, retain=True)
    subscriber.wait("tvau/box/command/level")
    commands = Commands(["level"])
    commands.register("level", Level, obeyed.append)
    commands.start()
    publisher = make_publisher(mosquitto.port)
    publisher._commands = commands
    publisher.start()
    subscriber.wait("tvau/box/available")
    command(subscriber._client, "tvau/box/command/level", b'{"level": 0.6}', "me/answers")
    subscriber.wait("me/answers")
    commands.close()
    assert obeyed == [Level(level=0.6)]
