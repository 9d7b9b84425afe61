"""Requests over MQTT 5: a message with a response topic, and the one answer that carries its correlation data."""

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoResult  # not the built-in one before Python 3.11
from types import TracebackType
from uuid import uuid4

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.listener import Listener
from tvau_edge.runtime.errors import ConfigError, RequestError

ANSWERS = "tvau-answers/"  # what topics of answers begin with


class Requester:
    """A connection of its own to the broker, for requests; it stays connected until it is closed.

    Args:
        config: of the broker, with MQTT 5.
        name: of who asks; the client id and the response topic are made from it and a random number.

    Raises:
        ConfigError: MQTT 3.1.1 has no requests.
        BrokerError: the broker is absent, refuses us, or does not answer.
    """

    def __init__(self, config: BrokerConfig, name: str) -> None:
        if config.protocol != "5":
            raise ConfigError("requests and their answers need MQTT 5 (broker.protocol)")
        number = uuid4().hex[:12]
        self._topic = f"{ANSWERS}{name}/{number}"
        self._waiting: dict[bytes, Future[bytes]] = {}
        self._lock = threading.Lock()
        self._listener = Listener(config, f"tvau-{name}-{number}", self._topic, self._receive)

    def __enter__(self) -> "Requester":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(self, topic: str, payload: bytes, content_type: str, seconds: float) -> bytes:
        """Publish a request and wait for its answer.

        Args:
            topic: where somebody takes requests.
            payload: of the request.
            content_type: MIME type of the payload.
            seconds: to wait; the broker forgets the request after that.

        Raises:
            RequestError: nobody answered in time, or the broker has nobody who would.
        """
        key = uuid4().bytes
        answer: Future[bytes] = Future()
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic, properties.CorrelationData = self._topic, key
        properties.ContentType = content_type
        properties.MessageExpiryInterval = max(1, round(seconds))
        with self._lock:
            self._waiting[key] = answer
        try:
            self._listener.publish(topic, payload, properties)
            return answer.result(seconds)
        except NoResult as error:
            raise RequestError(
                f"no answer on {topic} in {seconds:g} s: nobody takes such requests there, they are busy, or the one "
                "who took this one is gone"
            ) from error
        except ValueError as error:  # paho: too large
            raise RequestError(f"the request of {len(payload)} bytes cannot be sent: {error}") from error
        finally:
            with self._lock:
                self._waiting.pop(key, None)

    def close(self) -> None:
        """Disconnect; whoever waits still is told in time."""
        self._listener.close()

    def _receive(self, message: mqtt.MQTTMessage) -> None:
        key = getattr(message.properties, "CorrelationData", None)
        with self._lock:
            answer = self._waiting.pop(key, None) if key is not None else None
        if answer is not None:  # else it comes too late, or is not for us
            answer.set_result(bytes(message.payload))
