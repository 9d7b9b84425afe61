"""Tells the broker how the building of engines goes: topic `<root>/engines`, retained for late listeners."""

import json
import logging
import ssl
import time
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt import MQTTException, publish

from tvau_edge.runtime.broker_config import BrokerConfig

log = logging.getLogger(__name__)

_SECONDS = 10.0  # least time between two messages of the same state


class EngineNews:
    """Publishes a build's progress; a broker that is not there does not hold the build up.

    Args:
        broker: of the site.
        device: name of this box.
    """

    def __init__(self, broker: BrokerConfig, device: str) -> None:
        self._broker = broker
        self.topic = f"{broker.topic or f'tvau/{device}'}/engines"
        self._client_id = f"{broker.client_id or f'tvau-{device}'}-engines"
        self._state, self._told = "", 0.0

    def tell(self, news: dict[str, object]) -> None:
        """Publish `news`, unless its state was told a moment ago."""
        state, now = f"{news.get('state')} {news.get('graph')}", time.monotonic()
        if state == self._state and now - self._told < _SECONDS:
            return
        self._state, self._told = state, now
        try:
            publish.single(self.topic, json.dumps(news), qos=1, retain=True, **self._connection())
        except (OSError, ValueError, MQTTException) as error:
            log.info("no news of the engines to %s: %s", self._broker.address, error)

    def _connection(self) -> dict[str, Any]:
        broker = self._broker
        settings: dict[str, Any] = {
            "hostname": broker.host,
            "port": broker.effective_port,
            "client_id": self._client_id,
            "protocol": mqtt.MQTTv5 if broker.protocol == "5" else mqtt.MQTTv311,
        }
        if broker.username is not None:
            secret = broker.password()
            settings["auth"] = {
                "username": broker.username,
                "password": secret.get_secret_value() if secret else None,
            }
        if broker.tls is not None:
            context = ssl.create_default_context(cafile=str(broker.tls.ca) if broker.tls.ca else None)
            if broker.tls.certificate is not None:
                context.load_cert_chain(broker.tls.certificate, broker.tls.key)
            settings["tls"] = context
        return settings
