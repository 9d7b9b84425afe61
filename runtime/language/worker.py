"""The verb `tvau explain`: a stronger box explains events for devices, over MQTT 5 requests.

Workers share the subscription `$share/tvau/<topic>`: the broker gives each request to one of them, in turn. What waits
longer than the device does, which the message's expiry tells, is not answered. If a worker dies with a request, the
device hears nothing, and asks again.
"""

import logging
import queue
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated

import paho.mqtt.client as mqtt
import typer
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from rich.console import Console

from tvau_edge.runtime.broker_config import BrokerConfig, parse_broker
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import LanguageConfig, load_config
from tvau_edge.runtime.delivery.listener import Listener
from tvau_edge.runtime.delivery.requests import ANSWERS, Requester
from tvau_edge.runtime.errors import BrokerError, ConfigError, LanguageModelError, RequestError
from tvau_edge.runtime.language.messages import Reply, pack
from tvau_edge.runtime.language.server import Language, LanguageServer, LanguageSettings

log = logging.getLogger(__name__)
console = Console(stderr=True)

TOPIC, GROUP = "tvau-explain/request", "tvau"
CONTENT_TYPE = "application/x-safetensors"
_ANSWER_SECONDS = 600.0
_WAITING = 64  # requests that a worker keeps waiting


class ExplainWorker:
    """Takes requests from a broker and answers them, one after the other.

    Args:
        config: of the broker, with MQTT 5.
        name: of this worker; each needs its own.
        language: answers.
        topic: of requests.

    Raises:
        ConfigError: MQTT 3.1.1 has no requests.
        BrokerError: the broker is absent, refuses us, or does not answer.
    """

    def __init__(self, config: BrokerConfig, name: str, language: Language, topic: str = TOPIC) -> None:
        if config.protocol != "5":
            raise ConfigError("tvau explain needs MQTT 5 (broker.protocol)")
        self._language = language
        # With when each is too old: mosquitto 2.0.11 stops to deliver to a client that takes one at a time once a
        # message has expired at the broker, so they wait here.
        self._requests: queue.Queue[tuple[mqtt.MQTTMessage, float]] = queue.Queue(_WAITING)
        self._closing = threading.Event()
        self.answered = self.expired = 0
        self._listener = Listener(config, f"tvau-explain-{name}", f"$share/{GROUP}/{topic}", self._receive)
        self._thread = threading.Thread(target=self._serve, name="explain", daemon=True)
        self._thread.start()

    def __enter__(self) -> "ExplainWorker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer what is being answered, and disconnect; what waits is not answered."""
        self._closing.set()
        self._thread.join()
        self._listener.close()

    def _receive(self, message: mqtt.MQTTMessage) -> None:
        seconds = getattr(message.properties, "MessageExpiryInterval", _ANSWER_SECONDS)
        try:
            self._requests.put_nowait((message, time.monotonic() + seconds))
        except queue.Full:
            log.warning("a request is dropped: %d wait already", _WAITING)

    def _serve(self) -> None:
        while not self._closing.is_set():
            try:
                message, until = self._requests.get(timeout=0.2)
            except queue.Empty:
                continue
            if time.monotonic() > until:
                self.expired += 1
                continue
            to = getattr(message.properties, "ResponseTopic", None)
            # Whoever may publish requests must not make us publish anywhere else.
            if isinstance(to, str) and to.startswith(ANSWERS) and not set("+#") & set(to):
                self._answer(message, to)
            else:
                log.warning("a request without a response topic under %s is ignored", ANSWERS)

    def _answer(self, message: mqtt.MQTTMessage, to: str) -> None:
        try:
            reply = self._language.exchange(bytes(message.payload), _ANSWER_SECONDS)
        except LanguageModelError as error:
            reply = pack(Reply(ok=False, error=str(error)))
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = CONTENT_TYPE
        correlation = getattr(message.properties, "CorrelationData", None)
        if correlation is not None:
            properties.CorrelationData = correlation
        self.answered += 1
        self._listener.publish(to, reply, properties)


class RemoteLanguage:
    """A language model that works on another box; the device's side of `ExplainWorker`.

    Args:
        config: of the broker.
        device: name of this box.
        topic: where workers take requests.
    """

    def __init__(self, config: BrokerConfig, device: str, topic: str = TOPIC) -> None:
        self._config, self._device, self._topic = config, device, topic
        self._requester: Requester | None = None
        self._lock = threading.Lock()
        self.state = "ready"

    def exchange(self, request: bytes, seconds: float) -> bytes:
        """Have a worker answer; see `Language`.

        Raises:
            LanguageModelError: none did in time, or the broker is away. Asked again, another worker may.
        """
        self.state = "answering"
        try:
            with self._lock:
                if self._requester is None:
                    self._requester = Requester(self._config, self._device)
            reply = self._requester.request(self._topic, request, CONTENT_TYPE, seconds)
        except (BrokerError, RequestError) as error:
            self.state = "gone"
            raise LanguageModelError(str(error)) from error
        self.state = "ready"
        return reply

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            if self._requester is not None:
                self._requester.close()
            self._requester = None


def explain_verb(
    bundle: Annotated[
        Path, typer.Option(help="Folder of a bundle of the devices' checkpoint, with a language model.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="A configuration whose [broker] and [language] tables are used.")
    ] = None,
    broker: Annotated[str | None, typer.Option(help="host[:port], mqtt://… or mqtts://….")] = None,
    name: Annotated[str, typer.Option(help="Of this worker; each needs its own.")] = "worker",
    topic: Annotated[str, typer.Option(help="On which devices publish requests (language.worker).")] = TOPIC,
    language_type: Annotated[
        str | None, typer.Option("--type", help="GGUF type, if the bundle has several.")
    ] = None,
) -> None:
    """Explain events for devices, until a signal comes."""
    site = load_config(config) if config is not None else None
    if site is None and broker is None:
        raise ConfigError("give --config FILE or --broker HOST")
    address = BrokerConfig.model_validate(parse_broker(broker)) if broker is not None else BrokerConfig()
    language = site.language if site is not None else LanguageConfig()
    with console.status("opening the bundle"):
        opened = Bundle.open(bundle)
        settings = LanguageSettings(
            opened.path.absolute(),
            language_type or language.type,
            language.threads,
            language.gpu_layers,
            language.history,
            language.calibration,
            language.longest_sequence(opened.manifest.geometry.temporal_patches),
        )
        server = LanguageServer(settings)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with server, ExplainWorker(address if site is None else site.broker, name, server, topic) as worker:
        console.print(f"worker {name} takes requests on {topic}; Ctrl-C ends it", highlight=False)
        stopped.wait()
        console.print(f"{worker.answered} requests answered", highlight=False)
