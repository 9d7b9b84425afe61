"""The way out: a verdict through the outbox to a broker on this machine and on to a subscriber."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tvau_edge.benchmarks.delivery import (
    THREADS,
    local_mosquitto,
    paho_alone,
    sample_verdict,
    through_the_outbox,
)
from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.footage import patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.manifest import Thresholds
from tvau_edge.runtime.service.announce import Announcer
from tvau_edge.runtime.verdict import Model, Prompts

_PATIENCE = 10.0  # seconds for one message


class _Subscriber:
    """Counts the verdicts that arrive."""

    def __init__(self, port: int) -> None:
        self._arrived = threading.Semaphore(0)
        subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda *_: self._arrived.release()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe("tvau/+/+/verdict", qos=1)
        if not subscribed.wait(_PATIENCE):
            raise BenchError("the broker on this machine does not answer")

    def wait(self) -> None:
        """Wait for the next message."""
        if not self._arrived.acquire(timeout=_PATIENCE):
            raise BenchError(f"a verdict did not arrive within {_PATIENCE:g} s")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


@contextmanager
def _delivery() -> Iterator[tuple[Publisher, _Subscriber]]:
    """A publisher that is connected to a broker of its own, and a subscriber there."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="tvau-bench-")))
        port = stack.enter_context(local_mosquitto(folder))
        outbox = stack.enter_context(closing(Outbox(folder / "outbox.db")))
        publisher = Publisher(BrokerConfig(host="127.0.0.1", port=port), "bench", outbox)
        publisher.start()
        stack.callback(publisher.stop, 0)
        yield publisher, stack.enter_context(closing(_Subscriber(port)))


def publish(job: Job, facts: Facts) -> Iterator[float]:
    """From a verdict to the subscriber that has it: outbox (durable), QoS 1, broker, loopback interface."""
    with _delivery() as (publisher, subscriber):
        facts["bytes"] = len(sample_verdict().to_json())
        while True:
            verdict = sample_verdict()
            started = time.perf_counter()
            publisher.publish_verdict(verdict)
            subscriber.wait()
            yield time.perf_counter() - started


def glass_to_mqtt(job: Job, facts: Facts) -> Iterator[float]:
    """From the compressed frames of one temporal patch to a verdict in the hands of a subscriber.

    The runtime's own stages one after another: decoding, sampling, vision, trigger, verdict, outbox, broker. Every
    patch makes a verdict here. Camera, its encoder and its network come before this; so does waiting for the patch's
    second frame.
    """
    bundle = Bundle.open(job.bundle, verify=False)
    manifest = bundle.manifest
    always = Thresholds(open=1e-30, close=1e-31)
    with (
        _delivery() as (publisher, subscriber),
        closing(Vision.open(bundle, job.case.backend, job.case.precision, job.threads)) as vision,
    ):
        prompts = Prompts(normal=manifest.class_prompts.normal, abnormal=manifest.class_prompts.abnormal)
        model = Model(
            name=manifest.name,
            bundle=bundle.sha256,
            backend=vision.file.backend,
            quantization=vision.file.precision,
        )
        stream = patches(job.source, manifest.geometry)
        while True:
            announcer = Announcer(
                "bench", model, prompts, manifest.thresholds.close, (0.4, 0.6), publisher.publish_verdict
            )
            trigger = Trigger(always, manifest.geometry.temporal_patches)
            started = time.perf_counter()
            (evidence,) = vision.run([next(stream)])
            update = trigger.push(evidence)
            if update is None:
                raise BenchError("a score that is no number: the graph is broken")
            announcer.announce(update, {})
            subscriber.wait()
            yield time.perf_counter() - started


def outbox(job: Job, facts: Facts) -> Iterator[float]:
    """`samples` messages through the outbox until the last is acknowledged; durable before they leave."""
    payload = sample_verdict().to_json()
    with TemporaryDirectory(prefix="tvau-bench-") as name, local_mosquitto(Path(name)) as port:
        while True:
            rate, _, _ = through_the_outbox(port, Path(name), payload, job.case.samples, THREADS)
            yield job.case.samples / rate


def paho(job: Job, facts: Facts) -> Iterator[float]:
    """`samples` messages by paho alone until the last is acknowledged; lost when the process ends."""
    payload = sample_verdict().to_json()
    with TemporaryDirectory(prefix="tvau-bench-") as name, local_mosquitto(Path(name)) as port:
        while True:
            yield job.case.samples / paho_alone(port, payload, job.case.samples)
