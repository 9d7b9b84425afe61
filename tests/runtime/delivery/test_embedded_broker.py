import socket
import sys
import threading

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tvau_edge.runtime.delivery.embedded_broker import EmbeddedBroker
from tvau_edge.runtime.errors import BrokerError, MissingExtraError


class Client:
    """An MQTT 3.1.1 client that collects."""

    def __init__(self, port):
        self.came = []
        self.subscribed, self.message = threading.Event(), threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self.client.on_connect = lambda client, *_: client.subscribe("box/#", qos=1)
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._collect
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.subscribed.wait(30)

    def _collect(self, client, data, message):
        self.came.append((message.topic, message.payload, message.retain))
        self.message.set()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def connect():
    clients = []

    def start(port):
        clients.append(Client(port))
        return clients[-1]

    yield start
    for client in clients:
        client.close()


def test_it_delivers_and_retains(connect):
    with EmbeddedBroker() as broker:
        first = connect(broker.port)
        first.client.publish("box/state", b"ON", qos=1, retain=True).wait_for_publish(30)
        assert first.message.wait(30)
        assert first.came[0][:2] == ("box/state", b"ON")
        second = connect(broker.port)
        assert second.message.wait(30)
        assert second.came[0] == ("box/state", b"ON", True)


def test_it_listens_on_the_loopback_interface_alone_and_lets_go_of_its_port():
    with EmbeddedBroker() as broker:
        with socket.create_connection(("127.0.0.1", broker.port), 5):
            pass
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", broker.port))
        table = open("/proc/net/tcp").read()  # noqa: SIM115
        assert f"0100007F:{broker.port:04X} 00000000:0000 0A" in table
        assert f"00000000:{broker.port:04X} 00000000:0000 0A" not in table
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port), 5)
    assert not [thread for thread in threading.enumerate() if thread.name == "embedded broker"]


def test_two_at_once():
    with EmbeddedBroker() as one, EmbeddedBroker() as other:
        assert one.port != other.port


def test_a_port_that_is_taken():
    broker = EmbeddedBroker()
    with (
        socket.create_server(("127.0.0.1", broker.port)),
        pytest.raises(BrokerError, match="does not start"),
    ):
        broker.__enter__()


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "amqtt", None)
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(MissingExtraError, match=r"tvau-edge\[broker\]"):
        EmbeddedBroker()
