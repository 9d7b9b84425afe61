"""The network's thread against servers that do what a mosquitto seldom does: hang, or say much at once."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import paho.mqtt.client as mqtt
import pytest

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery import network as module
from tvau_edge.runtime.delivery.connection import connect, make_client
from tvau_edge.runtime.delivery.network import Network

CONNACK = b"\x20\x02\x00\x00"  # MQTT 3.1.1: accepted
MESSAGE = b"\x30\x04\x00\x01tx"  # PUBLISH at QoS 0: "x" on "t"


class Server:
    """Answers the first bytes of each connection as it is told to, reads no more, and keeps it open."""

    def __init__(self, answer: bytes = b"", context: ssl.SSLContext | None = None) -> None:
        self._answer, self._context = answer, context
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._open.append(connection)
            if self._answer:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                    self._open.append(connection)
                connection.recv(1000)
                connection.sendall(self._answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for each in (self._server, *self._open):
            each.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers, which end with the test."""
    running: list[Server] = []

    def start(*arguments: object) -> Server:
        running.append(Server(*arguments))
        return running[-1]

    yield start
    for server in running:
        server.close()


class Job:
    """Work that is to be done again and again until it is told to end."""

    def __init__(self) -> None:
        self.times, self.ended = 0, False

    def __call__(self) -> float | None:
        self.times += 1
        return None if self.ended else 3600.0


class Running:
    """A network and its work, and what it failed at."""

    def __init__(self, config: BrokerConfig, prepare: Callable[[mqtt.Client], None]) -> None:
        self.client = make_client(config, "box", "t")
        prepare(self.client)
        self.job, self.failures, self.delays = Job(), [], []
        self.network = Network(self.client, self._fail)
        connect(self.client, config)
        self.network.start(self.job)

    def _fail(self, error: Exception) -> None:
        self.failures.append(error)
        self.delays.append(self.network._delay)

    def end(self) -> None:
        self.job.ended = True
        self.network.wake()
        self.network.join(10)
        assert not self.network._thread.is_alive()


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Starts networks, given the configuration and what is to be set at the client before it connects."""
    running: list[Running] = []

    def start(config: BrokerConfig, prepare: Callable[[mqtt.Client], None] = lambda client: None) -> Running:
        running.append(Running(config, prepare))
        return running[-1]

    yield start
    for each in running:
        each.end()


def config_of(port: int, **settings: object) -> BrokerConfig:
    return BrokerConfig.model_validate(
        {"host": "127.0.0.1", "port": port, "protocol": "3.1.1", "wait": True, **settings}
    )


def test_each_delay_is_twice_the_one_before(run, eventually, monkeypatch, free_port):
    monkeypatch.setattr(module, "reconnect_delays", lambda barren=0: (0.01 * 2**barren, 0.05))
    running = run(config_of(free_port))
    delays = running.delays
    eventually(lambda: len(delays) >= 6, "six attempts")
    assert delays[:6] == [None, 0.01, 0.02, 0.04, 0.05, 0.05]
    running.network.settle(1)
    eventually(lambda: 0.02 in delays[6:], "the first delay after a barren connection")


def test_what_tls_has_decrypted_along_is_read(run, serve, authority, eventually):
    """All of it comes in one record: the socket itself has nothing more to be read then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "good.pem", authority.folder / "good.key")
    server = serve(CONNACK + 500 * MESSAGE, context)
    came: list[bytes] = []

    def note(client: mqtt.Client) -> None:
        client.on_message = lambda client, data, message: came.append(message.payload)

    run(config_of(server.port, tls={"ca": authority.ca}), note)
    eventually(lambda: len(came) == 500, "all messages")  # one a second without


@pytest.mark.timeout(60)
def test_whoever_wakes_it_need_not_wait(run, serve, eventually):
    running = run(config_of(serve(CONNACK).port))
    for times in range(1, 200):  # it looks after pings once a second by itself, too seldom for this
        eventually(lambda wanted=times: running.job.times >= wanted, "work")
        running.network.wake()


@pytest.mark.timeout(60)
def test_stopping_does_not_wait_for_a_broker_that_reads_nothing(serve, make_publisher, outbox, eventually):
    publisher = make_publisher(serve(CONNACK).port, protocol="3.1.1", keepalive=3600)
    publisher.start()
    publisher.publish_heatmap("door", b"x" * (32 << 20))
    eventually(lambda: publisher._client.want_write(), "a picture that is not written")
    publisher.stop(0)
    assert not publisher._network._thread.is_alive()


@pytest.mark.timeout(60)
def test_stopping_does_not_wait_for_a_handshake(serve, make_publisher, authority, monkeypatch, eventually):
    monkeypatch.setattr(module, "reconnect_delays", lambda barren=0: (0.01, 0.05))
    silent = serve()
    publisher = make_publisher(silent.port, tls={"ca": authority.ca}, wait=True, keepalive=3600)
    publisher._client.connect_async("127.0.0.1", silent.port, 3600)
    publisher._network.start(publisher._sender.work)
    eventually(lambda: silent._open, "a connection")
    publisher.stop(0)
    silent.close()
    eventually(lambda: not publisher._network._thread.is_alive(), "the thread's end")


@pytest.mark.timeout(60)
def test_what_another_thread_subscribes_to_is_written_at_once(mosquitto, run, eventually):
    granted: list[int] = []

    def note(client: mqtt.Client) -> None:
        client.on_subscribe = lambda client, data, packet, reasons, properties: granted.append(packet)

    running = run(config_of(mosquitto.port), note)
    eventually(running.client.is_connected, "a connection")
    for number in range(200):
        running.client.subscribe(f"t/{number}", qos=1)
        eventually(lambda wanted=number + 1: len(granted) == wanted, "the broker's answer")


def test_a_connection_that_is_gone_is_opened_anew(run, mosquitto, eventually, monkeypatch):
    monkeypatch.setattr(module, "reconnect_delays", lambda barren=0: (0.01, 0.05))
    running = run(config_of(mosquitto.port))
    eventually(running.client.is_connected, "a connection")
    mosquitto.kill()
    eventually(lambda: len(running.failures) > 2, "failures")
    assert isinstance(running.failures[-1], ConnectionRefusedError)
    mosquitto.start()
    eventually(running.client.is_connected, "a connection")
    assert running.job.times < 10 * len(running.failures) + 100  # it does not spin meanwhile
