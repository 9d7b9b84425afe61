"""Publishes to the broker: verdicts through the outbox, states retained, availability with a last will."""

import json
import logging
import socket
import ssl
import threading
import time
from collections import deque
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.errors import BrokerError, ConfigError
from tvau_edge.runtime.outbox import FIRST, Entry, Outbox
from tvau_edge.runtime.verdict import SCHEMA, State, Verdict

log = logging.getLogger(__name__)

_IN_FLIGHT = 20  # messages sent and not yet acknowledged
_LATE_SECONDS = 5.0  # after which a message counts as late
_ADVICE = {  # by the broker's reason
    "Not authorized": "check broker.username and its password",
    "Bad user name or password": "check broker.username and its password",
    "Unsupported protocol version": "try broker.protocol or --mqtt with the other version",
    "Session taken over": "another client has the same id; give each box its own device name or broker.client_id",
}


class Publisher:
    """One connection to the broker, kept alive by paho's thread, fed by a thread of its own.

    Args:
        config: of the broker.
        device: name of this box.
        outbox: where verdicts wait; stays open when the publisher stops.
    """

    def __init__(self, config: BrokerConfig, device: str, outbox: Outbox) -> None:
        self._config = config
        self._device = device
        self._outbox = outbox
        self.root = config.topic or f"tvau/{device}"
        self._retained: dict[str, bytes] = {}
        self._acknowledged: deque[int] = deque()  # packet ids
        self._news = threading.Event()  # of them
        self._connection = 0  # how often we were connected
        # Held while we publish, so that nothing slips in between a new connection and what it must hear first. Not
        # to be taken in on_publish or on_disconnect, which paho may call under locks that publishing needs.
        self._lock = threading.Lock()
        self._connected = threading.Event()
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._stopping = threading.Event()
        self._client = self._make_client()
        self._sender = threading.Thread(target=self._send, name="mqtt", daemon=True)

    def _make_client(self) -> mqtt.Client:
        five = self._config.protocol == "5"
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._config.client_id or f"tvau-{self._device}",
            protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
        )
        password = self._config.password()
        if self._config.username is not None:
            client.username_pw_set(self._config.username, password.get_secret_value() if password else None)
        if self._config.tls is not None:
            client.tls_set_context(_tls_context(self._config))
        client.will_set(f"{self.root}/available", "offline", qos=1, retain=True)
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.reconnect_delay_set(min_delay=1, max_delay=60)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def start(self) -> None:
        """Connect and begin to deliver.

        Raises:
            BrokerError: the broker is absent or refuses us; not raised when `broker.wait` is set, as long as it
                is only absent.
        """
        try:
            self._client.connect(self._config.host, self._config.effective_port, self._config.keepalive)
        except ssl.SSLError as error:
            raise BrokerError(f"broker {self._config.address}: {_tls_reason(error)}") from error
        except (OSError, UnicodeError) as error:
            if not self._config.wait:
                raise BrokerError(
                    f"broker {self._config.address}: {_network_reason(error)}; start one (apt-get install mosquitto), "
                    "correct broker.host and broker.port, or set broker.wait = true to store verdicts until it comes"
                ) from error
            log.warning(
                "broker %s: %s; verdicts wait in the outbox", self._config.address, _network_reason(error)
            )
            self._client.connect_async(self._config.host, self._config.effective_port, self._config.keepalive)
        self._client.loop_start()
        answered = self._answered.wait(0 if self._config.wait else self._config.connect_seconds)
        if self._refusal is not None:
            self._client.loop_stop()
            raise BrokerError(f"broker {self._config.address} refuses us: {self._refusal}")
        if not answered and not self._config.wait:
            self._client.loop_stop()
            raise BrokerError(
                f"broker {self._config.address} does not answer in {self._config.connect_seconds:g} s: is it an MQTT "
                f"broker, does it speak MQTT {self._config.protocol} (broker.protocol, --mqtt), and does it want "
                "TLS? (broker.tls, mqtts://…)"
            )
        self._sender.start()

    def publish_verdict(self, verdict: Verdict) -> None:
        """Hand over a verdict; returns when the outbox has it."""
        self._outbox.put(f"{self.root}/{verdict.camera}/verdict", verdict.phase, verdict.to_json())

    def publish_state(self, camera: str, state: State) -> None:
        """Publish a camera's state, retained; only the newest matters, so it does not go through the outbox."""
        self._retain(f"{self.root}/{camera}/state", state.to_json())

    def publish_health(self, health: bytes) -> None:
        """Publish what the box tells of itself, retained."""
        self._retain(f"{self.root}/health", health)

    def publish_heatmap(self, camera: str, jpeg: bytes) -> None:
        """Publish the picture of a camera's event, retained."""
        self._retain(f"{self.root}/{camera}/heatmap", jpeg)

    def stop(self, flush_seconds: float = 10.0) -> int:
        """Deliver what waits, for so long at most, say goodbye and disconnect.

        Returns:
            Messages that were not delivered; they stay in the outbox.
        """
        deadline = time.monotonic() + flush_seconds
        while len(self._outbox) and self._connected.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stopping.set()
        if self._sender.is_alive():
            self._sender.join()
        if self._connected.is_set():
            goodbye = self._client.publish(f"{self.root}/available", "stopped", qos=1, retain=True)
            _acknowledged(goodbye, max(0.5, deadline - time.monotonic()))
        self._client.disconnect()
        self._client.loop_stop()
        return len(self._outbox)

    def _retain(self, topic: str, payload: bytes) -> None:
        with self._lock:
            self._retained[topic] = payload
            if self._connected.is_set():
                self._publish_retained(topic, payload)

    def _publish_retained(self, topic: str, payload: bytes) -> None:
        properties = self._properties("application/json")
        self._client.publish(topic, payload, qos=1, retain=True, properties=properties)

    def _send(self) -> None:
        """Keep the window of unacknowledged messages filled, in the outbox's order."""
        last = FIRST
        in_flight: dict[int, tuple[int, int]] = {}  # packet id -> message's number, connection
        while not self._stopping.is_set():
            self._news.clear()
            self._forget(in_flight)
            connection = self._connection
            # paho sends anew what an older connection left unacknowledged; nothing may overtake that.
            free = self._connected.is_set() and all(sent == connection for _, sent in in_flight.values())
            room = _IN_FLIGHT - len(in_flight) if free else 0
            entries = self._outbox.after(last, room) if room else []
            for entry in entries:
                packet = self._publish(entry, connection)
                if packet is None:
                    break
                in_flight[packet] = entry.number, connection
                last = entry.number
            if not entries:
                # Something to send wakes us through the outbox, an acknowledgement by its event.
                (self._news if in_flight else self._outbox).wait(0.2)
        self._forget(in_flight)

    def _forget(self, in_flight: dict[int, tuple[int, int]]) -> None:
        """Take what the broker has acknowledged out of the outbox."""
        while self._acknowledged:
            number, _ = in_flight.pop(self._acknowledged.popleft(), (None, 0))
            if number is not None:
                self._outbox.delivered(number)

    def _publish(self, entry: Entry, connection: int) -> int | None:
        """Give a message to paho, which sends it until it is acknowledged; its packet id, or None when it is late."""
        payload = _marked_late(entry)
        properties = self._verdict_properties(payload)
        with self._lock:
            if self._connection != connection or not self._connected.is_set():
                return None
            return self._client.publish(entry.topic, payload, qos=1, properties=properties).mid

    def _on_publish(
        self, client: mqtt.Client, data: Any, mid: int, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            log.error("broker %s refused a message for good: %s", self._config.address, reason)
        self._acknowledged.append(mid)
        self._news.set()

    def _on_connect(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            self._refusal = _advised(reason)
            log.error("broker %s refuses us: %s", self._config.address, self._refusal)
            self._answered.set()
            return
        self._refusal = None
        with self._lock:
            self._connection += 1
            client.publish(f"{self.root}/available", "online", qos=1, retain=True)
            for topic, payload in self._retained.items():
                self._publish_retained(topic, payload)
            self._connected.set()
        self._answered.set()

    def _on_disconnect(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        self._connected.clear()
        if reason.is_failure and self._refusal is None:
            log.warning(
                "broker %s is gone: %s; verdicts wait in the outbox", self._config.address, _advised(reason)
            )

    def _properties(self, content_type: str) -> Properties | None:
        if self._config.protocol != "5":
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = content_type
        return properties

    def _verdict_properties(self, payload: bytes) -> Properties | None:
        """CloudEvents attributes of a verdict (MQTT protocol binding, binary mode)."""
        properties = self._properties("application/json")
        if properties is not None:
            verdict = json.loads(payload)
            properties.UserProperty = [
                ("specversion", "1.0"),
                ("id", verdict["id"]),
                ("source", f"urn:tvau:{verdict['device']}:{verdict['camera']}"),
                ("type", SCHEMA.replace("/", ".")),
                ("time", verdict["time"]),
            ]
        return properties


def _marked_late(entry: Entry) -> bytes:
    """The payload, with `late` set when the message waited."""
    if time.time() - entry.stored < _LATE_SECONDS:
        return entry.payload
    return json.dumps(json.loads(entry.payload) | {"late": True}, separators=(",", ":")).encode()


def _acknowledged(message: mqtt.MQTTMessageInfo, seconds: float) -> None:
    try:
        message.wait_for_publish(seconds)
    except (RuntimeError, ValueError):
        log.debug("the broker went before it heard the goodbye")


def _advised(reason: ReasonCode) -> str:
    """The broker's reason, and what to do about it."""
    name = str(reason)
    return f"{name}; {_ADVICE[name]}" if name in _ADVICE else name


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


def _network_reason(error: OSError | UnicodeError) -> str:
    match error:
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


def _tls_reason(error: ssl.SSLError) -> str:
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
