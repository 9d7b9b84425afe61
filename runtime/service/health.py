"""What the box tells of itself: the message on the topic `health`, and what the Prometheus endpoint shows."""

import os
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tvau_edge.devices.host import peak_memory
from tvau_edge.runtime.cameras.feed import FeedState
from tvau_edge.runtime.language.explain import Explainer
from tvau_edge.runtime.service.pipeline import Pipeline
from tvau_edge.runtime.service.watched import Watched
from tvau_edge.runtime.verdict import Message, Moment, at

_PARTS = ("tvau-edge", "av", "numpy", "onnxruntime", "openvino", "llama-cpp-python", "paho-mqtt")
_THERMAL = Path("/sys/class/thermal")
_HWMON = Path("/sys/class/hwmon")


class CameraHealth(Message):
    """How one camera does."""

    state: Annotated[FeedState, Field(description="playing, or why it is not")]
    error: Annotated[str | None, Field(description="why it does not play")] = None
    fps: Annotated[float, Field(description="frames per second over the last five seconds")]
    silent_seconds: Annotated[float | None, Field(description="since the newest frame")] = None
    lag_ms: Annotated[float | None, Field(description="median from a frame's arrival to its judgement")] = (
        None
    )
    frames: int
    frames_dropped: Annotated[int, Field(description="decoded frames that gave way to newer ones")]
    frames_broken: Annotated[int, Field(description="pictures that could not be decoded")]
    patches: Annotated[int, Field(description="temporal patches that were judged")]
    patches_dropped: Annotated[int, Field(description="temporal patches that gave way to newer ones")]
    patches_still: Annotated[int, Field(description="temporal patches that the motion gate held")]
    reconnects: int
    restarts: Annotated[int, Field(description="of its thread, because it hung")]
    events: int
    event: Annotated[bool, Field(description="whether one is open")]


class VisionHealth(Message):
    """How the vision graph does."""

    ms: Annotated[float | None, Field(description="median per temporal patch over the last passes")] = None
    ms_p95: Annotated[float | None, Field(description="95th percentile")] = None
    patches: Annotated[int, Field(description="that it looked at")]
    restarts: Annotated[int, Field(description="because it failed or hung")]
    busy_seconds: Annotated[float, Field(description="that the pass under way has taken")]
    backend: Annotated[str, Field(description="that runs it")]
    precision: Annotated[str, Field(description="that it is computed in: int8, fp16, bf16 or fp32")]


class DialogueHealth(Message):
    """How the language model does."""

    waiting: Annotated[int, Field(description="events that wait to be explained")]
    busy_seconds: Annotated[float, Field(description="that the explanation under way has taken")]
    state: Annotated[
        str,
        Field(
            description="loading, ready, answering, closed; gone: it ended, and starts anew with the next event"
        ),
    ] = "ready"
    late: Annotated[int, Field(description="explanations that came late")] = 0
    again: Annotated[int, Field(description="explanations of events that went on after an earlier one")] = 0
    extended: Annotated[int, Field(description="of those, from the sequence that the model had kept")] = 0
    restarts: Annotated[int, Field(description="of its process")] = 0
    explained: int
    given_up: Annotated[int, Field(description="events that waited too long")]


class DeliveryHealth(Message):
    """How delivery to the broker does."""

    waiting: Annotated[int, Field(description="messages in the outbox")]
    dropped: Annotated[int, Field(description="messages that the outbox gave up")]
    durable: Annotated[bool, Field(description="everything that waits is on disk")]
    waiting_bytes: int | None = None
    connected: bool | None = None
    refused: Annotated[int | None, Field(description="messages that the broker refused for good")] = None
    held: Annotated[
        int | None, Field(description="topics on which the broker lets nothing be published for now")
    ] = None


class Health(Message):
    """The message on the topic `health`."""

    schema_: Annotated[Literal["tvau.health/1"], Field(alias="schema")] = "tvau.health/1"
    device: str
    time: Moment
    uptime_seconds: float
    cameras: dict[str, CameraHealth]
    vision: VisionHealth
    dialogue: DialogueHealth | None = None
    delivery: DeliveryHealth
    verdicts: Annotated[int, Field(description="published since the start")]
    memory_bytes: Annotated[int | None, Field(description="resident, of this process")] = None
    peak_memory_bytes: int | None = None
    cpu_seconds: Annotated[float, Field(description="of this process since its start, on all cores")]
    threads: int | None = None
    open_files: int | None = None
    temperature_celsius: Annotated[float | None, Field(description="hottest sensor")] = None
    power_watts: Annotated[float | None, Field(description="sum of the power sensors")] = None
    versions: dict[str, str]

    def to_json(self) -> bytes:
        """The message as it is published."""
        return self.model_dump_json(exclude_none=True).encode()


class HealthReader:
    """Puts the message together.

    Args:
        device: name of this box.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._started = time.monotonic()
        self._versions = _versions()

    def read(self, pipeline: Pipeline, delivery: Mapping[str, Any]) -> Health:
        """How everything does now.

        Args:
            pipeline: that runs.
            delivery: keys of `DeliveryHealth`.
        """
        vision, explainer = pipeline.vision, pipeline.explainer
        latencies = sorted(vision.latencies)
        dropped = pipeline.intake.dropped
        status = process_status()
        return Health(
            device=self._device,
            time=at(time.time()),
            uptime_seconds=round(time.monotonic() - self._started, 1),
            cameras={
                name: _camera(watched, dropped.get(name, 0)) for name, watched in pipeline.cameras.items()
            },
            vision=VisionHealth(
                ms=_share(latencies, 0.5),
                ms_p95=_share(latencies, 0.95),
                patches=vision.patches,
                restarts=vision.restarts,
                busy_seconds=round(vision.stalled_seconds, 1),
                backend=vision.file.backend,
                precision=vision.file.precision,
            ),
            dialogue=None if explainer is None else _dialogue(explainer, pipeline.explained),
            delivery=DeliveryHealth.model_validate(dict(delivery)),
            verdicts=pipeline.verdicts,
            memory_bytes=status.get("VmRSS"),
            peak_memory_bytes=peak_memory(),
            cpu_seconds=round(time.process_time(), 2),
            threads=status.get("Threads"),
            open_files=open_files(),
            temperature_celsius=temperature(),
            power_watts=power(),
            versions=self._versions,
        )


def _dialogue(explainer: Explainer, explained: int) -> DialogueHealth:
    told = explainer.health()
    return DialogueHealth(
        waiting=told.waiting,
        busy_seconds=round(explainer.busy_seconds, 1),
        state=told.state,
        late=told.late,
        again=told.again,
        extended=told.extended,
        restarts=told.restarts,
        explained=explained,
        given_up=told.given_up,
    )


def _camera(watched: Watched, dropped: int) -> CameraHealth:
    facts = watched.feed.facts
    lag = _share(sorted(watched.lags), 0.5)
    return CameraHealth(
        state=facts.state,
        error=facts.error,
        fps=round(facts.fps, 2),
        silent_seconds=None if facts.silent_seconds is None else round(facts.silent_seconds, 1),
        lag_ms=None if lag is None or not facts.live else round(lag * 1e3, 1),
        frames=facts.frames,
        frames_dropped=facts.dropped,
        frames_broken=facts.broken,
        patches=watched.patches,
        patches_dropped=dropped,
        patches_still=watched.gate.still if watched.gate is not None else 0,
        reconnects=facts.reconnects,
        restarts=facts.restarts,
        events=watched.events,
        event=watched.event is not None,
    )


def _share(ordered: Sequence[float], share: float) -> float | None:
    """The value below which so large a share lies."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def process_status(path: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Resident memory (VmRSS, bytes) and threads of this process, where the system tells."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    found = {
        words[0].rstrip(":"): int(words[1]) for words in lines if words[:1] in (["VmRSS:"], ["Threads:"])
    }
    if "VmRSS" in found:
        found["VmRSS"] *= 1024
    return found


def open_files(folder: Path = Path("/proc/self/fd")) -> int | None:
    """File descriptors of this process, where the system tells."""
    try:
        return len(os.listdir(folder))
    except OSError:
        return None


def temperature(folder: Path = _THERMAL) -> float | None:
    """Degrees Celsius of the hottest thermal zone, or None where there is no sensor."""
    return max((value / 1e3 for value in _readings(folder, "thermal_zone*/temp") if value > 0), default=None)


def power(folder: Path = _HWMON) -> float | None:
    """Watts of all power sensors together, or None where there is none."""
    readings = _readings(folder, "hwmon*/power*_input")
    return sum(readings) / 1e6 if readings else None


def _readings(folder: Path, pattern: str) -> list[int]:
    found = []
    for path in folder.glob(pattern):
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue  # a sensor that is asleep
    return found


def _versions() -> dict[str, str]:
    found = {}
    for part in _PARTS:
        try:
            found[part] = version(part)
        except PackageNotFoundError:
            continue
    return found
