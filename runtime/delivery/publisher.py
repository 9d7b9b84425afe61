"""Publishes to the broker: verdicts through the outbox, the newest of all else retained, availability with a will."""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.control.commands import Commands
from tvau_edge.runtime.delivery.connection import advised, connect, failure_reason, make_client
from tvau_edge.runtime.delivery.network import Network
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.sender import Sender
from tvau_edge.runtime.errors import BrokerError
from tvau_edge.runtime.verdict import State, Verdict

log = logging.getLogger(__name__)

_JSON, _TEXT = "application/json", "text/plain"


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """How delivery goes, for `health`.

    Attributes:
        connected: the broker has accepted us.
        waiting: messages in the outbox.
        waiting_bytes: of their payloads.
        dropped: messages that the outbox gave up, since it was full or they too old.
        refused: messages that the broker refused for good.
        held: topics on which the broker lets nothing be published for now.
        durable: everything that waits is on disk.
    """

    connected: bool
    waiting: int
    waiting_bytes: int
    dropped: int
    refused: int
    held: int
    durable: bool


class Publisher:
    """One connection to the broker.

    Args:
        config: of the broker.
        device: name of this box.
        outbox: where verdicts wait; stays open when the publisher stops.
        commands: obeys what comes on `<root>/command/<name>`; None, or none enabled: nothing is subscribed.

    Raises:
        ConfigError: a secret or a file of TLS cannot be read.
    """

    def __init__(
        self, config: BrokerConfig, device: str, outbox: Outbox, commands: Commands | None = None
    ) -> None:
        self._config, self._outbox, self._commands = config, outbox, commands
        self.root = config.topic or f"tvau/{device}"
        self._available = f"{self.root}/available"
        self._births: dict[
            str, list[str]
        ] = {}  # where someone says that he is born -> topics that he wants then
        self._answered = threading.Event()  # by the broker, with yes or no
        self._refusal: str | None = None
        self._outage: str | None = None  # what was last said of it
        self._client = make_client(config, device, self._available)
        self._network = Network(self._client, self._on_connect_fail)
        self._sender = Sender(self._client, config, outbox, self._network.wake)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_publish, self._client.on_message = self._on_publish, self._on_message
        self._sender.retain(self._available, b"online", _TEXT)

    def start(self) -> None:
        """Connect and begin to deliver.

        Raises:
            BrokerError: the broker is absent or refuses us; not raised when `broker.wait` is set, as long as it
                is only absent.
        """
        absent = connect(self._client, self._config)
        if absent is not None:
            self._tell_outage(f"cannot be reached: {absent}")
        self._network.start(self._sender.work)
        answered = self._answered.wait(0 if self._config.wait else self._config.connect_seconds)
        if self._refusal is not None:
            self._end(time.monotonic())
            raise BrokerError(f"broker {self._config.address} refuses us: {self._refusal}")
        if not answered and not self._config.wait:
            self._end(time.monotonic())
            raise BrokerError(
                f"broker {self._config.address} does not answer in {self._config.connect_seconds:g} s: is it an MQTT "
                f"broker, does it speak MQTT {self._config.protocol} (broker.protocol, --mqtt), and does it want "
                "TLS? (broker.tls, mqtts://…)"
            )

    def publish_verdict(self, verdict: Verdict) -> None:
        """Hand over a verdict; returns when the outbox has it."""
        self._outbox.put(f"{self.root}/{verdict.camera}/verdict", verdict.phase, verdict.to_json())

    def publish_state(self, camera: str, state: State) -> None:
        """Publish a camera's state, retained; only the newest matters, so it does not go through the outbox."""
        self._sender.retain(f"{self.root}/{camera}/state", state.to_json(), _JSON)

    def publish_health(self, payload: bytes) -> None:
        """Publish how the device is, as JSON: retained, at QoS 0."""
        self._sender.retain(f"{self.root}/health", payload, _JSON, qos=0)

    def publish_heatmap(self, camera: str, jpeg: bytes) -> None:
        """Publish a camera's picture, retained."""
        self._sender.retain(f"{self.root}/{camera}/heatmap", jpeg, "image/jpeg")

    def publish_discovery(self, topic: str, payload: bytes, birth: str) -> None:
        """Publish what a home automation needs to know of us, retained, and again when it says that it is online.

        Args:
            topic: whole topic.
            payload: JSON; empty to be forgotten.
            birth: topic on which it says `online`.
        """
        wanted = self._births.setdefault(birth, [])
        if topic not in wanted:
            wanted.append(topic)
        self._sender.retain(topic, payload, _JSON)
        if self._sender.connected:
            self._client.subscribe(birth, qos=1)

    def status(self) -> DeliveryStatus:
        """How delivery goes."""
        outbox, sender = self._outbox, self._sender
        return DeliveryStatus(
            connected=sender.connected,
            waiting=len(outbox),
            waiting_bytes=outbox.bytes,
            dropped=outbox.dropped,
            refused=sender.refused,
            held=len(sender.held),
            durable=outbox.durable,
        )

    def stop(self, flush_seconds: float = 10.0) -> int:
        """Deliver what waits, for so long at most, say goodbye and disconnect.

        Returns:
            Messages that were not delivered; they stay in the outbox.
        """
        sender, deadline = self._sender, time.monotonic() + flush_seconds
        while len(self._outbox) > sender.stuck and sender.connected and time.monotonic() < deadline:
            time.sleep(0.02)
        sender.retain(self._available, b"stopped", _TEXT)
        self._end(max(deadline, time.monotonic() + 0.5))
        return len(self._outbox)

    def _end(self, deadline: float) -> None:
        self._sender.stop(deadline)
        self._network.join(deadline - time.monotonic())

    # What follows is called on the network's thread, which must not wait.

    def _on_connect(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            refusal = advised(reason)
            if refusal != self._refusal:
                log.error("broker %s refuses us: %s", self._config.address, refusal)
            self._refusal = refusal
            self._answered.set()
            return
        self._refusal = None
        if not self._sender.barren:
            self._outage = None
        self._network.settle(self._sender.barren)
        if self._commands is not None and self._commands.enabled:
            client.subscribe(f"{self.root}/command/+", qos=1)
        for birth in self._births:
            client.subscribe(birth, qos=1)
        self._sender.connect(
            getattr(properties, "ReceiveMaximum", 65535), getattr(properties, "MaximumPacketSize", None)
        )
        self._answered.set()

    def _on_disconnect(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        self._sender.disconnect()
        if reason.is_failure and self._refusal is None:
            self._tell_outage(f"is gone: {advised(reason)}")

    def _on_connect_fail(self, error: Exception) -> None:
        self._tell_outage(f"cannot be reached: {failure_reason(error)}")

    def _tell_outage(self, what: str) -> None:
        """Say what ails the connection, each thing once."""
        if what != self._outage:
            self._outage = what
            log.warning("broker %s %s; verdicts wait in the outbox", self._config.address, what)

    def _on_publish(
        self, client: mqtt.Client, data: Any, mid: int, reason: ReasonCode, properties: Any
    ) -> None:
        self._sender.acknowledge(mid, reason)

    def _on_message(self, client: mqtt.Client, data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        prefix = f"{self.root}/command/"
        if topic in self._births:
            if message.payload == b"online":
                self._sender.tell_again(self._births[topic])
        elif self._commands is not None and topic.startswith(prefix) and not message.retain:
            # A command that is retained would be obeyed at each connecting.
            to = getattr(message.properties, "ResponseTopic", None)
            correlation = getattr(message.properties, "CorrelationData", None)

            def respond(payload: bytes) -> None:
                if self._may_answer(to):
                    self._sender.answer(str(to), payload, correlation)

            self._commands.receive(topic.removeprefix(prefix), bytes(message.payload), respond)

    def _may_answer(self, topic: str | None) -> bool:
        """Whether an answer may go there: nowhere that the broker reads, or that others read for our messages."""
        if not topic or topic.startswith("$") or any(character in topic for character in "+#\0"):
            return False
        return not f"{topic}/".startswith(f"{self.root}/") and not self._sender.retains(topic)
