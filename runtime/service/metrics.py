"""A Prometheus endpoint that shows the health of the box (extra: metrics)."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.extras import load
from tvau_edge.runtime.service.health import Health

# Of a camera: key of `CameraHealth`, name, whether it only rises, what it is.
_CAMERA = (
    ("fps", "tvau_camera_fps", False, "Frames per second"),
    ("lag_ms", "tvau_camera_lag_milliseconds", False, "Median from a frame's arrival to its judgement"),
    ("silent_seconds", "tvau_camera_silent_seconds", False, "Since the newest frame"),
    ("frames", "tvau_camera_frames", True, "Frames decoded and taken"),
    ("frames_dropped", "tvau_camera_frames_dropped", True, "Frames that gave way to newer ones"),
    ("frames_broken", "tvau_camera_frames_broken", True, "Pictures that could not be decoded"),
    ("patches", "tvau_camera_patches", True, "Temporal patches judged"),
    ("patches_dropped", "tvau_camera_patches_dropped", True, "Temporal patches that gave way to newer ones"),
    ("patches_still", "tvau_camera_patches_still", True, "Temporal patches that the motion gate held"),
    ("reconnects", "tvau_camera_reconnects", True, "Times that it was opened again"),
    ("restarts", "tvau_camera_restarts", True, "Times that its thread was replaced"),
    ("events", "tvau_camera_events", True, "Events opened"),
    ("event", "tvau_camera_event_open", False, "Whether an event is open"),
)
# Of the box: path in `Health`, name, whether it only rises, what it is.
_BOX = (
    ("uptime_seconds", "tvau_uptime_seconds", False, "Since the start"),
    ("verdicts", "tvau_verdicts", True, "Verdicts published"),
    ("vision.ms", "tvau_vision_milliseconds", False, "Median of the vision pass per temporal patch"),
    ("vision.ms_p95", "tvau_vision_p95_milliseconds", False, "95th percentile of the vision pass"),
    ("vision.patches", "tvau_vision_patches", True, "Temporal patches that the graph looked at"),
    ("vision.restarts", "tvau_vision_restarts", True, "Times that the graph was loaded anew"),
    ("dialogue.waiting", "tvau_dialogue_waiting", False, "Events that wait to be explained"),
    ("dialogue.busy_seconds", "tvau_dialogue_busy_seconds", False, "Time of the explanation under way"),
    ("dialogue.explained", "tvau_dialogue_explained", True, "Events explained"),
    ("dialogue.given_up", "tvau_dialogue_given_up", True, "Events that waited too long"),
    ("delivery.waiting", "tvau_outbox_waiting", False, "Messages in the outbox"),
    ("delivery.waiting_bytes", "tvau_outbox_waiting_bytes", False, "Bytes in the outbox"),
    ("delivery.dropped", "tvau_outbox_dropped", True, "Messages that the outbox gave up"),
    ("delivery.refused", "tvau_broker_refused", True, "Messages that the broker refused for good"),
    ("delivery.durable", "tvau_outbox_durable", False, "Whether everything that waits is on disk"),
    ("delivery.connected", "tvau_broker_connected", False, "Whether the broker has accepted us"),
    ("memory_bytes", "tvau_memory_bytes", False, "Resident memory"),
    ("cpu_seconds", "tvau_cpu_seconds", True, "CPU time on all cores"),
    ("threads", "tvau_threads", False, "Threads"),
    ("open_files", "tvau_open_files", False, "File descriptors"),
    ("temperature_celsius", "tvau_temperature_celsius", False, "Hottest sensor"),
    ("power_watts", "tvau_power_watts", False, "Sum of the power sensors"),
)


class Metrics:
    """Serves `/metrics` for Prometheus by its official client.

    Args:
        host: address to listen on.
        port: 0 for any that is free.
        read: gives the present health.

    Raises:
        MissingExtraError: the extra `metrics` is not installed.
        ConfigError: nothing can listen there.
    """

    def __init__(self, host: str, port: int, read: Callable[[], Health]) -> None:
        client = load("prometheus_client", "health.prometheus_port", "metrics")
        core = load("prometheus_client.core", "health.prometheus_port", "metrics")
        self._families = {True: core.CounterMetricFamily, False: core.GaugeMetricFamily}
        self._info = core.InfoMetricFamily
        self._read = read
        registry = client.CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = client.start_http_server(port, addr=host, registry=registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"health.prometheus_port = {port}: nothing can listen on {host}:{port}: {error}"
            ) from error
        self.port: int = self._server.server_port

    def describe(self) -> list[Any]:
        """Nothing is known before the first request; the client asks when we register."""
        return []

    def collect(self) -> Iterator[Any]:
        """Everything, for one request."""
        health = self._read()
        yield self._info(
            "tvau", "Versions", value={name.replace("-", "_"): text for name, text in health.versions.items()}
        )
        for path, name, rises, about in _BOX:
            value: Any = health
            for part in path.split("."):
                value = getattr(value, part, None)
            if value is not None:
                family = self._families[rises](name, about)
                family.add_metric([], float(value))
                yield family
        for key, name, rises, about in _CAMERA:
            family = self._families[rises](name, about, labels=["camera"])
            for camera, facts in health.cameras.items():
                value = getattr(facts, key)
                if value is not None:
                    family.add_metric([camera], float(value))
            yield family
        playing = self._families[False]("tvau_camera_up", "Whether it plays", labels=["camera"])
        for camera, facts in health.cameras.items():
            playing.add_metric([camera], float(facts.state == "playing"))
        yield playing

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        if isinstance(self._thread, threading.Thread):
            self._thread.join(5)
