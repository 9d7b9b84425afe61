"""What the publisher says when there is no broker, or one that refuses us or that we must not trust."""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.delivery.connection import advised, network_reason
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.errors import BrokerError, ConfigError


def message_of(publisher: Publisher) -> str:
    with pytest.raises(BrokerError) as caught:
        publisher.start()
    assert "127.0.0.1" in str(caught.value) or "localhost" in str(caught.value)
    return str(caught.value)


def test_nobody_listens(make_publisher, free_port):
    text = message_of(make_publisher(free_port))
    assert f"127.0.0.1:{free_port}" in text
    assert "connection refused" in text
    assert "broker.wait" in text


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "a" * 70, "a..b", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.invalid"]
)
def test_no_such_host(make_publisher, host):
    with pytest.raises(BrokerError, match="no such host") as caught:
        make_publisher(1883, host=host).start()
    assert host in str(caught.value)


def test_bad_passwords(password_mosquitto, make_publisher, monkeypatch):
    monkeypatch.setenv("TVAU_TEST_PASSWORD", "wrong")
    for protocol in ("5", "3.1.1"):
        settings = {"username": "door", "password_env": "TVAU_TEST_PASSWORD", "protocol": protocol}
        text = message_of(make_publisher(password_mosquitto.port, **settings))
        assert "refuses us" in text
        assert "check broker.username and its password" in text
        assert "wrong" not in text


def test_anonymous_where_a_password_is_wanted(password_mosquitto, make_publisher):
    assert "refuses us" in message_of(make_publisher(password_mosquitto.port))


def test_the_right_password(password_mosquitto, make_publisher, tmp_path):
    file = tmp_path / "password"
    file.write_text("sesame\n")
    file.chmod(0o600)
    make_publisher(password_mosquitto.port, username="door", password_file=file).start()


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_something_that_is_no_broker(make_publisher, mute):
    text = message_of(make_publisher(mute, connect_seconds=0.3))
    assert "is it an MQTT broker" in text
    assert "broker.protocol" in text


def test_a_server_of_another_protocol(make_publisher, eventually):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        text = message_of(make_publisher(server.getsockname()[1], connect_seconds=1))
    assert "is it an MQTT broker" in text


def test_waiting_for_a_broker_that_comes_later(mosquitto, make_publisher, subscribe, make_verdict):
    mosquitto.kill()
    publisher = make_publisher(mosquitto.port, wait=True)
    publisher.start()
    publisher.publish_verdict(make_verdict())
    mosquitto.start()
    # What it published first is gone when nobody had subscribed: availability is retained.
    subscribe(mosquitto.port).wait_payload("tvau/box/available", b"online")


def test_tls(tls_mosquitto, make_publisher, authority):
    broker = tls_mosquitto()
    for host in ("127.0.0.1", "localhost"):
        make_publisher(broker.port, host=host, tls={"ca": authority.ca}).start()


@pytest.mark.parametrize(
    ("certificate", "host", "expected"),
    [
        ("expired", "127.0.0.1", "its certificate has expired"),
        ("early", "127.0.0.1", "its certificate is not valid yet"),
        ("stranger", "localhost", "its certificate is for another host"),
        ("stranger", "127.0.0.1", "its certificate is for another host"),
    ],
)
def test_certificates_that_do_not_hold(tls_mosquitto, make_publisher, authority, certificate, host, expected):
    broker = tls_mosquitto(certificate)
    assert expected in message_of(make_publisher(broker.port, host=host, tls={"ca": authority.ca}))


def test_an_unknown_authority(tls_mosquitto, make_publisher, other_authority):
    broker = tls_mosquitto()
    for tls in ({"ca": other_authority.ca}, {}):
        text = message_of(make_publisher(broker.port, tls=tls))
        assert "not signed by an authority we know" in text
        assert "broker.tls.ca" in text


def test_waiting_does_not_hide_a_bad_certificate(tls_mosquitto, make_publisher, authority):
    broker = tls_mosquitto("expired")
    assert "has expired" in message_of(make_publisher(broker.port, wait=True, tls={"ca": authority.ca}))


def test_tls_where_there_is_none(mosquitto, make_publisher, authority):
    text = message_of(make_publisher(mosquitto.port, tls={"ca": authority.ca}))
    assert "speaks TLS" in text


def test_no_tls_where_it_is_wanted(tls_mosquitto, make_publisher):
    assert "does it want TLS" in message_of(make_publisher(tls_mosquitto().port, connect_seconds=1))


def test_mutual_tls(tls_mosquitto, make_publisher, authority):
    broker = tls_mosquitto("good", "require_certificate true")
    mine = authority.issue("box", "DNS:box")
    tls = {"ca": authority.ca, "certificate": mine, "key": mine.with_suffix(".key")}
    make_publisher(broker.port, tls=tls).start()
    # TLS 1.3 tells of a missing client certificate only after the handshake.
    with pytest.raises(BrokerError):
        make_publisher(broker.port, tls={"ca": authority.ca}, connect_seconds=1).start()


@pytest.fixture
def offered(authority) -> Iterator[tuple[int, list[str | None]]]:
    """A TLS server that takes the ALPN protocol `mqtt`; its port, and what it agreed on with whoever came."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "good.pem", authority.folder / "good.key")
    context.set_alpn_protocols(["mqtt"])
    agreed: list[str | None] = []

    def serve() -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                connection, _ = listener.accept()
                with (
                    contextlib.suppress(OSError),
                    context.wrap_socket(connection, server_side=True) as secure,
                ):
                    agreed.append(secure.selected_alpn_protocol())
                    secure.recv(1000)  # CONNECT; what follows is not MQTT's
                    secure.sendall(b"\x20\x02\x00\x05")  # CONNACK of MQTT 3.1.1: not authorized

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        yield listener.getsockname()[1], agreed
        listener.shutdown(socket.SHUT_RDWR)
        server.join(10)


@pytest.mark.parametrize(
    ("alpn", "expected"),
    [(["mqtt"], "mqtt"), (["x-amzn-mqtt-ca", "mqtt"], "mqtt"), (["other"], None), ([], None)],
)
def test_the_alpn_protocol_that_is_configured_is_offered(make_publisher, authority, offered, alpn, expected):
    """Brokers that take MQTT at port 443 tell it from HTTPS by this."""
    port, agreed = offered
    publisher = make_publisher(port, protocol="3.1.1", tls={"ca": authority.ca, "alpn": alpn})
    assert "Not authorized" in message_of(publisher)
    assert agreed == [expected]


@pytest.mark.parametrize("key", ["ca", "certificate"])
@pytest.mark.parametrize("content", [None, "no PEM"])
def test_files_of_tls_that_cannot_be_loaded(make_publisher, tmp_path, key, content):
    file = tmp_path / "some.pem"
    if content:
        file.write_text(content)
    tls = {key: file} if key == "ca" else {"certificate": file, "key": file}
    with pytest.raises(ConfigError, match=rf"broker\.tls\.{key}") as caught:
        make_publisher(1, tls=tls)
    assert str(file) in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_without_asking(make_publisher, authority):
    locked = authority.folder / "locked.key"
    source = authority.folder / "good.key"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", source, "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(ConfigError, match=r"locked\.key"):
        make_publisher(1, tls={"certificate": authority.folder / "good.pem", "key": locked})


def test_reasons_by_their_error():
    assert "timed out" in network_reason(TimeoutError())
    assert network_reason(OSError(113, "No route to host")) == "No route to host"


@pytest.mark.parametrize(
    ("kind", "name", "advice"),
    [
        (PacketTypes.DISCONNECT, "Session taken over", "another client has the same id"),
        (PacketTypes.CONNACK, "Unsupported protocol version", "broker.protocol"),
        (PacketTypes.CONNACK, "Bad user name or password", "broker.username"),
    ],
)
def test_the_brokers_reasons_come_with_advice(kind, name, advice):
    text = advised(ReasonCode(kind, name))
    assert text.startswith(name)
    assert advice in text
