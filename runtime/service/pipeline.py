"""The pipeline: cameras -> sampler -> vision -> trigger -> dialogue -> verdicts, on a few threads.

One thread per camera decodes and samples; one runs the vision graph on a batch with at most one temporal patch of
each camera; one asks the language model, and never holds the others up; one delivers to the broker. The thread that
calls `run` watches over them: what hangs is replaced.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from tvau_edge.devices.host import peak_memory
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.intake import Cut, Intake
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.config import CameraConfig, SiteConfig, TriggerConfig
from tvau_edge.runtime.detection.summary import CameraSummary, Summary
from tvau_edge.runtime.detection.timeline import Timeline
from tvau_edge.runtime.detection.trigger import EventUpdate
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.detection.vision_stage import VisionStage
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.language.explain import Explainer, Explanation
from tvau_edge.runtime.language.prompt_store import PromptsInForce
from tvau_edge.runtime.manifest import Thresholds
from tvau_edge.runtime.service.announce import Announcer
from tvau_edge.runtime.service.explaining import Explaining
from tvau_edge.runtime.service.watched import Watched
from tvau_edge.runtime.verdict import Model, Prompts, State, Verdict, at

log = logging.getLogger(__name__)

_STATE_SECONDS = 1.0  # least time between two states of a camera, unless it changes
_TICK = 0.25  # seconds between two looks at the threads
_JOIN_SECONDS = 5.0  # that the end waits for the cameras' threads
_EXPLAIN_SECONDS = 20.0  # that a stop waits for the explanation that is being made


class Sink(Protocol):
    """Where a pipeline's messages go; `Publisher` is one."""

    def publish_verdict(self, verdict: Verdict) -> None:
        """Take a verdict."""

    def publish_state(self, camera: str, state: State) -> None:
        """Take a camera's state."""

    def publish_heatmap(self, camera: str, jpeg: bytes) -> None:
        """Take the picture of a camera's event with its heatmap over it."""


class Pipeline:
    """Watches the cameras of a configuration until they end or `stop` is called.

    Args:
        config: the site's.
        bundle: opened.
        vision: loaded from it.
        sink: takes the messages.
        make_explainer: makes the explainer, given what takes its explanations; None to publish verdicts without
            text.
        language_type: GGUF type of the language model, for the verdicts.
        on_patch: called after each temporal patch with the camera's name and the patch's stamp in seconds.
        reopen_vision: loads the vision graph anew, when it fails or hangs; None: then the run ends.
        on_tick: called a few times a second by the thread that runs.
        prompts: the class prompts that may change at run time; None for the bundle's.
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
        reopen_vision: Callable[[], Vision] | None = None,
        on_tick: Callable[[], None] | None = None,
        prompts: PromptsInForce | None = None,
    ) -> None:
        self._manifest = manifest = bundle.manifest
        self._config, self._sink = config, sink
        self._on_patch, self._on_tick, self._prompts = on_patch, on_tick, prompts
        self.thresholds = self._thresholds(config.trigger)
        self.intake = Intake([camera.name for camera in config.camera], most=config.vision.batch)
        self._cameras = {camera.name: self._watched(camera) for camera in config.camera}
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
            self.thresholds.close,
            config.language.unsure,
            sink.publish_verdict,
        )
        self.explainer = make_explainer(self._explained) if make_explainer else None
        self._explaining = (
            Explaining(config.language, manifest.geometry.temporal_patches, self.explainer)
            if self.explainer is not None
            else None
        )
        self._lock = threading.RLock()  # over the cameras and what is judged of them
        self._stopping = threading.Event()
        self.vision = VisionStage(
            vision,
            self.intake,
            self._judge,
            self._held,
            self._lock,
            config.vision.stall_seconds,
            reopen_vision,
            self._take_up_prompts,
        )

    def _take_up_prompts(self, vision: Vision) -> None:
        """Use other class prompts from the next pass on, if some were set; called between two passes."""
        if self._prompts is None or (prompts := self._prompts.refresh(vision)) is None:
            return
        self._announcer.set_prompts(prompts)
        with self._lock:
            for camera in self._cameras.values():
                if camera.gate is not None:  # what it holds was seen with the prompts before
                    camera.gate.forget()
            camera.smoothing.forget()

    def _thresholds(self, trigger: TriggerConfig) -> Thresholds:
        given = self._manifest.thresholds
        return Thresholds(
            open=trigger.open or given.open, close=trigger.close or min(given.close, trigger.open or 1)
        )

    def _watched(self, camera: CameraConfig) -> Watched:
        return Watched.make(
            camera, self._manifest.geometry, self.thresholds, self._config.trigger, self.intake
        )

    @property
    def timelines(self) -> dict[str, Timeline]:
        """What each camera saw, by name; of live ones the newest part."""
        return {name: camera.timeline for name, camera in self._cameras.items()}

    @property
    def cameras(self) -> dict[str, Watched]:
        """The cameras by name, as they are now."""
        return dict(self._cameras)

    @property
    def verdicts(self) -> int:
        """Published so far."""
        return self._announcer.published

    @property
    def explained(self) -> int:
        """Events explained so far."""
        return self._explaining.events if self._explaining is not None else 0

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Stop watching; events that are open are closed, and `run` returns. May be called from a signal handler."""
        self._stopping.set()
        self.vision.finished.set()

    def run(self) -> Summary:
        """Watch until every source has ended.

        Raises:
            SourceError: a source could not be opened or read; the others were watched to their end.
            BackendError: the vision graph failed or hung again and again.
        """
        started, cpu = time.perf_counter(), time.process_time()
        if not self._stopping.is_set():
            for camera in self.cameras.values():
                camera.feed.start()
            self.vision.start()
        try:
            while not self.vision.finished.wait(_TICK):
                self._oversee()
        finally:
            self._wind_up()
        if self.vision.failure is not None:
            raise self.vision.failure
        errors = [camera.feed.error for camera in self._cameras.values() if camera.feed.error is not None]
        if errors:
            raise SourceError("\n".join(str(error) for error in errors))
        return self._summary(time.perf_counter() - started, time.process_time() - cpu)

    def _oversee(self) -> None:
        """Replace what hangs."""
        for name, camera in self.cameras.items():
            if camera.feed.overdue:
                log.error("camera %s: its thread hangs; another takes over", name)
                camera.feed.restart()
        self._tell_errors()
        self.vision.oversee()
        if self._on_tick is not None:
            self._on_tick()

    def _tell_errors(self) -> None:
        """Log what ended a camera for good; of a single one that is told when the run ends, which is now."""
        for camera in self.cameras.values() if len(self._cameras) > 1 else ():
            if camera.feed.error is not None and not camera.error_told:
                camera.error_told = True
                log.error("%s", camera.feed.error)

    def _wind_up(self) -> None:
        asked = self._stopping.is_set()
        self._stopping.set()
        self._tell_errors()
        for camera in self._cameras.values():
            camera.feed.stop()
        self.vision.stop()
        with self._lock:
            for camera in self._cameras.values():
                self._close_event(camera)
        if self.explainer is not None:
            # Nobody who sends SIGTERM waits for all that might still be said.
            self.explainer.close(finish=not asked, seconds=_EXPLAIN_SECONDS if asked else None)
        end = time.monotonic() + _JOIN_SECONDS
        for camera in self._cameras.values():
            camera.feed.join(end - time.monotonic())

    def apply(self, config: SiteConfig) -> None:
        """Go on with another configuration's cameras and trigger; cameras that stay as they are notice nothing.

        Everything else of the configuration must be as before.

        Raises:
            ConfigError: a camera's zones leave nothing; nothing has changed then.
        """
        with self._lock:
            thresholds = self._thresholds(config.trigger)
            same_trigger = config.trigger == self._config.trigger
            wanted = {camera.name: camera for camera in config.camera}
            kept = {
                name for name, old in self._cameras.items() if same_trigger and wanted.get(name) == old.config
            }
            before, self._config = self._config, config
            before_thresholds, self.thresholds = self.thresholds, thresholds
            try:
                made = {name: self._watched(camera) for name, camera in wanted.items() if name not in kept}
            except Exception:
                self._config, self.thresholds = before, before_thresholds
                raise
            gone = [name for name in self._cameras if name not in kept]
            for name in gone:
                self._cameras[name].feed.stop()
                self._close_event(self._cameras[name])
            self.intake.change(gone, list(made))
            self._cameras = {name: made.get(name) or self._cameras[name] for name in wanted}
            self._announcer.threshold = thresholds.close
            for camera in made.values():
                camera.feed.start()

    def set_thresholds(self, thresholds: Thresholds, camera: str | None = None) -> None:
        """Use other thresholds from the next temporal patch on.

        Args:
            thresholds: to open and close.
            camera: its name; None: all.

        Raises:
            SourceError: there is no such camera.
        """
        with self._lock:
            for watched in self._cameras.values() if camera is None else [self._named(camera)]:
                watched.trigger.thresholds = thresholds
            if camera is None:
                self.thresholds = thresholds
                self._announcer.threshold = thresholds.close

    def restart_camera(self, camera: str) -> None:
        """Open a camera again, as if it had failed.

        Raises:
            SourceError: there is no such camera.
        """
        self._named(camera).feed.restart()

    def snapshot(self, camera: str) -> bytes:
        """The newest picture of a camera, at the model's size, with its heatmap over it, as JPEG.

        Raises:
            SourceError: there is no such camera, or it has shown nothing yet.
        """
        with self._lock:
            return self._named(camera).picture()

    def _named(self, camera: str) -> Watched:
        watched = self._cameras.get(camera)
        if watched is None:
            raise SourceError(f"there is no camera {camera!r}; known: {', '.join(sorted(self._cameras))}")
        return watched

    def _held(self, patch: TemporalPatch) -> Evidence | None:
        """The evidence of a patch that need not be looked at."""
        camera = self._cameras.get(patch.camera)
        return camera.gate.hold(patch) if camera is not None and camera.gate is not None else None

    def _judge(
        self, item: TemporalPatch | Cut, evidence: Evidence | None, looked: bool, milliseconds: float
    ) -> None:
        """Take what the vision stage has made of an item, in order, under the lock."""
        camera = self._cameras.get(item.camera)
        if camera is None:  # removed meanwhile
            return
        if isinstance(item, Cut) or evidence is None:
            if camera.gate is not None:
                camera.gate.forget()
            self._close_event(camera)
            return
        if looked and camera.gate is not None:
            camera.gate.looked(item, evidence)
        camera.patches += 1
        evidence = camera.smoothing.apply(camera.zones.apply(evidence))
        camera.saw(item, evidence)
        update = camera.trigger.push(evidence)
        if update is not None:
            self._tell(camera, update, {"vision": milliseconds} if looked else {})
        if self._explaining is not None:
            self._explaining.see(camera)
        camera.timeline.add(evidence, camera.event)
        self._state(camera, evidence)
        if self._on_patch is not None:
            self._on_patch(item.camera, evidence.pts)

    def _close_event(self, camera: Watched) -> None:
        if (update := camera.trigger.flush()) is not None:
            self._tell(camera, update, {})
            self._state(camera, update.newest)

    def _tell(self, camera: Watched, update: EventUpdate, latency_ms: dict[str, float]) -> None:
        if update.phase == "start":
            camera.event = update.event
            camera.events += 1
        self._announcer.announce(update, latency_ms)
        if camera.config.heatmap and update.phase != "end":
            self._sink.publish_heatmap(camera.config.name, camera.picture())
        if update.phase == "end":
            camera.event = None
            if self._explaining is not None:
                self._explaining.end(camera, update)

    def _explained(self, explanation: Explanation) -> None:
        if self._explaining is not None:
            self._explaining.explained(explanation)
        self._announcer.explain(explanation)

    def _state(self, camera: Watched, evidence: Evidence) -> None:
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

    def _summary(self, seconds: float, cpu_seconds: float) -> Summary:
        dropped = self.intake.dropped
        return Summary(
            cameras=[
                CameraSummary(
                    name,
                    camera.patches,
                    dropped[name],
                    facts.repeated,
                    camera.events,
                    camera.gate.still if camera.gate is not None else 0,
                    facts.dropped,
                    facts.reconnects,
                )
                for name, camera, facts in ((name, c, c.feed.facts) for name, c in self._cameras.items())
            ],
            seconds=seconds,
            vision_ms=self.vision.seconds * 1e3 / max(self.vision.patches, 1),
            explained=self.explained,
            given_up=self.explainer.given_up if self.explainer else 0,
            verdicts=self._announcer.published,
            peak_memory=peak_memory(),
            cpu_seconds=cpu_seconds,
        )
