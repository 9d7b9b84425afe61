"""A paho client as the configuration wants it, and what the ways in which a connection fails mean."""

import random
import socket
import ssl
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.quick_client import QuickClient
from tvau_edge.runtime.errors import BrokerError, ConfigError

_ADVICE = {  # by the broker's reason
    "Not authorized": "check broker.username and its password, and what the broker lets this user do",
    "Bad user name or password": "check broker.username and its password",
    "Unsupported protocol version": "try broker.protocol or --mqtt with the other version",
    "Session taken over": "another client has the same id; give each box its own device name or broker.client_id",
    "Packet too large": "the broker takes no message of this size; raise its limit, or set broker.max_packet_bytes",
}


def make_client(config: BrokerConfig, device: str, will_topic: str) -> mqtt.Client:
    """A client that is not connected yet; its last will is `offline` on `will_topic`, retained.

    Raises:
        ConfigError: a secret or a file of TLS cannot be read.
    """
    client = QuickClient(
        CallbackAPIVersion.VERSION2,
        client_id=config.client_id or f"tvau-{device}",
        protocol=mqtt.MQTTv5 if config.protocol == "5" else mqtt.MQTTv311,
        transport="websockets" if config.websocket_path else "tcp",
    )
    password = config.password()
    if config.username is not None:
        client.username_pw_set(config.username, password.get_secret_value() if password else None)
    if config.websocket_path:
        client.ws_set_options(config.websocket_path)
        client.on_socket_open = _write_whole
    if config.tls is not None:
        client.tls_set_context(_tls_context(config))
    client.will_set(will_topic, "offline", qos=1, retain=True)
    # The publisher keeps the window itself: paho's own cannot follow what the broker says when it accepts us.
    client.max_inflight_messages_set(0)
    client.suppress_exceptions = True  # of our callbacks: they must not end the thread that calls them
    client.reconnect_delay_set(*reconnect_delays())  # type: ignore[arg-type]  # any number of seconds will do
    return client


def _write_whole(client: mqtt.Client, data: Any, connection: Any) -> None:
    """Have paho write on when a WebSocket has taken a part of a packet, which it forgets otherwise (its issue 887)."""
    send = connection.send

    def send_or_block(packet: bytes) -> int:
        sent: int = send(packet)
        if not sent:
            raise BlockingIOError
        return sent

    connection.send = send_or_block


def reconnect_delays(barren: int = 0) -> tuple[float, float]:
    """Seconds before connecting anew, drawn: at first, and at most; each delay is twice the one before.

    Boxes that lost the same broker are not to come back all at once.

    Args:
        barren: connections in a row in which the broker acknowledged nothing; after each we begin with the first delay.
    """
    return random.uniform(0.5, 1.5) * 2 ** min(barren, 5), random.uniform(50, 80)  # noqa: S311


def take_back_all(client: mqtt.Client) -> None:
    """Have paho forget all messages that were not acknowledged, so that none is sent anew."""
    with client._out_message_mutex:  # there is no public way
        client._out_messages.clear()


def connect(client: mqtt.Client, config: BrokerConfig) -> str | None:
    """Open the connection; what the broker answers comes later.

    Returns:
        None, or with `broker.wait` why the broker cannot be reached now: the client will try on.

    Raises:
        BrokerError: its certificate does not hold, its name makes no sense, or without `broker.wait` it is absent.
    """
    try:
        client.connect(config.host, config.effective_port, config.keepalive)
    except ssl.SSLError as error:
        raise BrokerError(f"broker {config.address}: {tls_reason(error)}") from error
    except UnicodeError as error:
        raise BrokerError(f"broker {config.address}: {network_reason(error)}; correct broker.host") from error
    except OSError as error:
        if not config.wait:
            raise BrokerError(
                f"broker {config.address}: {network_reason(error)}; start one (apt-get install mosquitto), "
                "correct broker.host and broker.port, or set broker.wait = true to store verdicts until it comes"
            ) from error
        client.connect_async(config.host, config.effective_port, config.keepalive)
        return network_reason(error)
    return None


def advised(reason: ReasonCode) -> str:
    """The broker's reason, and what to do about it."""
    name = str(reason)
    return f"{name}; {_ADVICE[name]}" if name in _ADVICE else name


def failure_reason(error: BaseException | None) -> str:
    """Why a connection could not be opened."""
    match error:
        case ssl.SSLError():
            return tls_reason(error)
        case OSError() | UnicodeError():
            return network_reason(error)
        case _:
            return "it cannot be reached"


def network_reason(error: OSError | UnicodeError) -> str:
    """Why there is no connection."""
    match error:
        case mqtt.WebsocketConnectionError():
            return f"it answers, but not as a WebSocket for MQTT ({error}); see broker.websocket_path"
        case ConnectionRefusedError():
            return "nothing listens there (connection refused)"
        case socket.gaierror() | UnicodeError():
            return "no such host"
        case TimeoutError():
            return "no answer (timed out)"
        case ConnectionError():  # while we connect, only TLS talks to the other side
            return "it cut the connection; is the port one that speaks TLS?"
        case _:
            return error.strerror or str(error)


def tls_reason(error: ssl.SSLError) -> str:
    """Why a connection is not trusted."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS failed: {error.reason or error}; is the port one that speaks TLS?"
    # By OpenSSL's X509_V_ERR_…: CERT_NOT_YET_VALID, CERT_HAS_EXPIRED, HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH.
    match error.verify_code:
        case 9:
            return "its certificate is not valid yet; is this device's clock right?"
        case 10:
            return "its certificate has expired; renew it at the broker (or is this device's clock wrong?)"
        case 62 | 64:
            return (
                "its certificate is for another host; use the name that the certificate holds in broker.host"
            )
        case _:
            return (
                f"its certificate is not signed by an authority we know ({error.verify_message}); "
                "set broker.tls.ca"
            )


def _tls_context(config: BrokerConfig) -> ssl.SSLContext:
    tls = config.tls
    assert tls is not None  # the caller looked
    try:
        context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"broker.tls.ca = {tls.ca}: cannot be loaded: {error}") from error
    if tls.certificate and tls.key:
        try:
            # The empty password: OpenSSL would ask for one at the terminal.
            context.load_cert_chain(str(tls.certificate), str(tls.key), password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"broker.tls.certificate = {tls.certificate} and key = {tls.key}: cannot be loaded: {error}"
            ) from error
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    return context
