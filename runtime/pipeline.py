"""The pipeline: cameras -> sampler -> vision -> trigger -> dialogue -> verdicts, on a few threads.

One thread per camera decodes and samples; one runs the vision graph on a batch with at most one temporal patch of
each camera; one asks the language model, and never holds the others up; one delivers to the broker.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from tvau_edge.devices.host import peak_memory
from tvau_edge.runtime.announce import Announcer
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import CameraConfig, SiteConfig
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.explain import Explainer, Explanation
from tvau_edge.runtime.intake import Intake
from tvau_edge.runtime.latest import LatestFrames
from tvau_edge.runtime.manifest import Thresholds
from tvau_edge.runtime.sampler import Sampler, TemporalPatch
from tvau_edge.runtime.source import Source
from tvau_edge.runtime.timeline import Timeline
from tvau_edge.runtime.trigger import EventUpdate, Trigger
from tvau_edge.runtime.verdict import Model, Prompts, State, Verdict, at
from tvau_edge.runtime.vision import Evidence, Vision

log = logging.getLogger(__name__)

_STATE_SECONDS = 1.0  # least time between two states of a camera, unless it changes


@dataclass(frozen=True, slots=True)
class CameraSummary:
    """What became of one camera: temporal patches seen and dropped, samples repeated, events."""

    camera: str
    patches: int
    dropped: int
    repeated: int
    events: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers.

    Attributes:
        cameras: one entry per camera.
        seconds: wall time.
        vision_ms: mean time of the vision pass per temporal patch.
        explained: events that the language model explained.
        given_up: events that waited too long for it.
        verdicts: published.
        peak_memory: bytes of this process, where the system tells.
    """

    cameras: list[CameraSummary]
    seconds: float
    vision_ms: float
    explained: int
    given_up: int
    verdicts: int
    peak_memory: int | None


class Sink(Protocol):
    """Where a pipeline's messages go; `Publisher` is one."""

    def publish_verdict(self, verdict: Verdict) -> None:
        """Take a verdict."""

    def publish_state(self, camera: str, state: State) -> None:
        """Take a camera's state."""


@dataclass
class _Watched:
    """One camera inside the pipeline."""

    config: CameraConfig
    trigger: Trigger
    timeline: Timeline
    sampler: Sampler
    patches: int = 0
    events: int = 0
    error: SourceError | None = None
    told: float = 0.0
    event: UUID | None = None  # that is open
    shown: UUID | None = None  # in the retained state


class Pipeline:
    """Watches the cameras of a configuration until they end or `stop` is called.

    Args:
        config: the site's.
        bundle: opened.
        vision: loaded from it.
        sink: takes the messages.
        make_explainer: makes the explainer, given what takes its explanations; None to publish verdicts without
            text.
        on_patch: called after each temporal patch with the camera's name and the patch's stamp in seconds.
    """

    def __init__(
        self,
        config: SiteConfig,
        bundle: Bundle,
        vision: Vision,
        sink: Sink,
        make_explainer: Callable[[Callable[[Explanation], None]], Explainer] | None = None,
        language_type: str | None = None,
        on_patch: Callable[[str, float], None] | None = None,
    ) -> None:
        manifest = bundle.manifest
        self._config, self._vision, self._sink = config, vision, sink
        self._on_patch = on_patch
        self._explain_after = config.language.explain_after or manifest.geometry.temporal_patches // 2
        self.thresholds = thresholds = Thresholds(
            open=config.trigger.open or manifest.thresholds.open,
            close=config.trigger.close or min(manifest.thresholds.close, config.trigger.open or 1),
        )
        self._cameras = {
            camera.name: _Watched(
                camera,
                Trigger(
                    thresholds,
                    manifest.geometry.temporal_patches,
                    open_after=config.trigger.open_after,
                    close_after=config.trigger.close_after,
                    update_seconds=config.trigger.update_seconds,
                ),
                Timeline(camera.name),
                Sampler(manifest.geometry, upscale=camera.upscale),
            )
            for camera in config.camera
        }
        precision = vision.file.precision
        self._announcer = Announcer(
            config.device,
            Model(
                name=manifest.name,
                bundle=bundle.sha256,
                backend=vision.file.backend,
                quantization=f"{precision}, {language_type}" if language_type else precision,
            ),
            Prompts(normal=manifest.class_prompts.normal, abnormal=manifest.class_prompts.abnormal),
            thresholds.close,
            config.language.unsure,
            sink.publish_verdict,
        )
        self._explainer = make_explainer(self._explained) if make_explainer else None
        self._intake = Intake(list(self._cameras))
        self._stopping = threading.Event()
        self._vision_seconds = 0.0
        self._explaining: dict[UUID, _Watched] = {}
        self._explanations = 0

    @property
    def timelines(self) -> dict[str, Timeline]:
        """What each camera saw, by name."""
        return {name: camera.timeline for name, camera in self._cameras.items()}

    def stop(self) -> None:
        """Stop watching; events that are open are closed, and `run` returns. May be called from a signal handler."""
        self._stopping.set()
        self._intake.close()

    def run(self) -> Summary:
        """Watch until every source has ended.

        Raises:
            SourceError: a source could not be opened or read; the others were watched to their end.
        """
        started = time.perf_counter()
        threads = [
            threading.Thread(target=self._watch, args=(camera,), name=f"source {name}", daemon=True)
            for name, camera in self._cameras.items()
        ]
        for thread in threads:
            thread.start()
        try:
            while batch := self._intake.take():
                self._look(batch)
        finally:
            self.stop()
            for camera in self._cameras.values():
                if (update := camera.trigger.flush()) is not None:
                    self._tell(camera, update, {})
                    self._state(camera, update.newest)
            if self._explainer is not None:
                self._explainer.close(finish=True)
        for thread in threads:
            thread.join(timeout=5)
        errors = [camera.error for camera in self._cameras.values() if camera.error is not None]
        if errors:
            raise SourceError("\n".join(str(error) for error in errors))
        return self._summary(time.perf_counter() - started)

    def _watch(self, camera: _Watched) -> None:
        """Decode and sample one camera, on a thread of its own."""
        config = camera.config
        try:
            with Source(
                config.source, config.name, stall_seconds=config.stall_seconds, image_rate=config.image_rate
            ) as source:
                frames = LatestFrames(source) if source.live else source
                for frame in frames:
                    for patch in camera.sampler.push(frame):
                        self._intake.put(patch, live=source.live)
                    if self._stopping.is_set():
                        break
                if isinstance(frames, LatestFrames):
                    frames.close()
        except SourceError as error:
            camera.error = error
            if len(self._cameras) > 1:  # else it is told when the run ends, which is now
                log.error("%s", error)  # noqa: TRY400 (the message tells all)
        finally:
            self._intake.end(config.name)

    def _look(self, batch: list[TemporalPatch]) -> None:
        started = time.perf_counter()
        evidence = self._vision.run(batch)
        seconds = time.perf_counter() - started
        self._vision_seconds += seconds
        for item in evidence:
            camera = self._cameras[item.camera]
            camera.patches += 1
            update = camera.trigger.push(item)
            if update is not None:
                self._tell(camera, update, {"vision": seconds * 1e3 / len(batch)})
            self._ask(camera)
            camera.timeline.add(item, camera.event)
            self._state(camera, item)
            if self._on_patch is not None:
                self._on_patch(item.camera, item.pts)

    def _tell(self, camera: _Watched, update: EventUpdate, latency_ms: dict[str, float]) -> None:
        if update.phase == "start":
            camera.event = update.event
            camera.events += 1
        self._announcer.announce(update, latency_ms)
        if update.phase == "end":
            camera.event = None
            self._explain(camera, update)

    def _ask(self, camera: _Watched) -> None:
        """Have the open event explained once it is old enough to be understood."""
        current = camera.trigger.current
        if current is not None and current.patches >= self._explain_after:
            self._explain(camera, current)

    def _explain(self, camera: _Watched, update: EventUpdate) -> None:
        if self._explainer is not None and update.event not in self._explaining:
            self._explaining[update.event] = camera
            self._explainer.submit(update.event, update.window)

    def _explained(self, explanation: Explanation) -> None:
        self._explanations += 1
        self._explaining[explanation.event].timeline.explain(explanation.event, explanation.result.answers)
        self._announcer.explain(explanation)

    def _state(self, camera: _Watched, evidence: Evidence) -> None:
        """Publish the camera's state when an event opens or ends, else now and then."""
        now = time.monotonic()
        if camera.event == camera.shown and now - camera.told < _STATE_SECONDS:
            return
        camera.told, camera.shown = now, camera.event
        state = State(
            anomaly="ON" if camera.event else "OFF",
            score=evidence.score,
            event=camera.event,
            time=at(evidence.time),
        )
        self._sink.publish_state(camera.config.name, state)

    def _summary(self, seconds: float) -> Summary:
        patches = sum(camera.patches for camera in self._cameras.values())
        dropped = self._intake.dropped
        return Summary(
            cameras=[
                CameraSummary(name, camera.patches, dropped[name], camera.sampler.repeated, camera.events)
                for name, camera in self._cameras.items()
            ],
            seconds=seconds,
            vision_ms=self._vision_seconds * 1e3 / max(patches, 1),
            explained=self._explanations,
            given_up=self._explainer.given_up if self._explainer else 0,
            verdicts=self._announcer.published,
            peak_memory=peak_memory(),
        )
