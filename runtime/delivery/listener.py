"""A connection of its own to the broker that hears one subscription, beside the publisher's."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.connection import advised, connect, make_client
from tvau_edge.runtime.errors import BrokerError

log = logging.getLogger(__name__)


class Listener:
    """Hears what comes on a subscription, and can publish; it stays connected until it is closed.

    Args:
        config: of the broker.
        client_id: its own; cut to what brokers take.
        subscription: topic filter, subscribed at QoS 1 at every connect.
        receive: takes each message, on paho's thread.

    Raises:
        ConfigError: a secret or a file of TLS cannot be read.
        BrokerError: the broker is absent, refuses us, or does not answer.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        subscription: str,
        receive: Callable[[mqtt.MQTTMessage], None],
    ) -> None:
        self._config = config.model_copy(update={"client_id": client_id[:64], "wait": False})
        self._subscription = subscription
        self._ready = threading.Event()
        self._refusal: str | None = None
        self._client = make_client(self._config, client_id, f"{client_id}/gone")
        self._client.will_clear()
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda client, data, message: receive(message)
        connect(self._client, self._config)
        self._client.loop_start()
        answered = self._ready.wait(config.connect_seconds)
        if self._refusal is not None or not answered:
            self.close()
            raise BrokerError(f"broker {config.address}: {self._refusal or 'it does not answer'}")

    def publish(self, topic: str, payload: bytes, properties: Properties) -> None:
        """Publish a message at QoS 1.

        Raises:
            ValueError: it is larger than MQTT allows.
        """
        self._client.publish(topic, payload, qos=1, properties=properties)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: mqtt.Client, data: Any, flags: Any, reason: ReasonCode, properties: Any
    ) -> None:
        if reason.is_failure:
            self._refusal = advised(reason)
            log.error("broker %s refuses us: %s", self._config.address, self._refusal)
            self._ready.set()
            return
        client.subscribe(self._subscription, qos=1)
