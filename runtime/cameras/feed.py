"""One camera, kept flowing: opened, sampled, opened again when it fails, closed outside of its hours."""

import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tvau_edge.runtime.cameras.intake import Intake
from tvau_edge.runtime.cameras.latest import LatestFrames
from tvau_edge.runtime.cameras.masks import PrivacyMask
from tvau_edge.runtime.cameras.sampler import Sampler
from tvau_edge.runtime.cameras.schedule import Schedule, local_now
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import CameraConfig
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry

log = logging.getLogger(__name__)

FeedState = Literal["opening", "playing", "waiting", "resting", "ended"]

_FIRST_PAUSE = 1.0  # seconds before the first new attempt
_STEADY_SECONDS = 30.0  # of pictures, after which a failure counts as the first again
_ALLOWANCE = 20.0  # seconds beyond what each step may take by its own limits
_TICK = 1.0  # seconds between two looks at the schedule
_RATED = 5.0  # seconds over which the rate of frames is taken


class Backoff:
    """Pauses that double, each somewhere in its upper half, so that many clients do not come back at once."""

    def __init__(self, first: float, most: float, rng: random.Random | None = None) -> None:
        self._first, self._most = min(first, most), most
        self._next = self._first
        self._rng = rng or random.Random()  # noqa: S311 (no secret)

    def pause(self) -> float:
        """Seconds to wait now."""
        seconds, self._next = self._next, min(2 * self._next, self._most)
        return seconds * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest pause again."""
        self._next = self._first


@dataclass(frozen=True, slots=True)
class FeedFacts:
    """A camera's source in numbers.

    Attributes:
        state: opening; playing; waiting for the next attempt; resting outside of its schedule; ended.
        frames: decoded and taken.
        dropped: decoded frames that gave way to newer ones.
        broken: pictures that could not be decoded.
        repeated: samples that stood for more than one instant.
        reconnects: times that it was opened again.
        restarts: times that its thread had to be replaced.
        fps: frames per second over the last seconds.
        silent_seconds: since the newest frame; None before the first.
        error: why it does not play, in words; None while it does.
        live: whether frames come as they are taken.
    """

    state: FeedState
    frames: int
    dropped: int
    broken: int
    repeated: int
    reconnects: int
    restarts: int
    fps: float
    silent_seconds: float | None
    error: str | None
    live: bool


def open_source(config: CameraConfig) -> Source:
    """Open a camera as its configuration says; the one door for all who look, so that no mask is forgotten.

    Raises:
        SourceError: as `Source`.
    """
    return Source(
        config.source,
        config.name,
        stall_seconds=config.stall_seconds,
        image_rate=config.image_rate,
        mask=PrivacyMask(config.mask) if config.mask else None,
    )


class Feed:
    """Puts one camera's temporal patches into the intake, on a thread of its own.

    A file or folder is played once. A live source that fails is opened again with growing pauses, unless
    `config.reconnect` is false; what watched it is told by `Intake.cut`. A thread that hangs is replaced by
    `restart`; whatever the old one still brings is ignored.

    Args:
        config: of the camera.
        geometry: the bundle's.
        intake: takes the patches.
        now: the moment, for the schedule.
    """

    def __init__(
        self,
        config: CameraConfig,
        geometry: Geometry,
        intake: Intake,
        now: Callable[[], datetime] = local_now,
    ) -> None:
        self.config = config
        self._intake, self._now = intake, now
        self._sampler = Sampler(geometry, upscale=config.upscale)
        self._schedule = Schedule(config.schedule)
        self._backoff = Backoff(_FIRST_PAUSE, config.reconnect_seconds)
        self._leaving = threading.Event()  # of the thread in charge; a new one for each
        self._threads: list[threading.Thread] = []
        self._source: Source | None = None
        self._state: FeedState = "opening"
        self._due = math.inf  # when the next sign of life must have come, by the monotonic clock
        self._arrivals: deque[float] = deque(maxlen=512)
        self._frames = self._dropped = self._broken = self._reconnects = self._restarts = 0
        self._complaint: str | None = None
        self.error: SourceError | None = None  # that ended it for good

    def start(self) -> None:
        """Start watching."""
        self._leaving = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(self._leaving,), name=f"source {self.config.name}", daemon=True
        )
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()

    def stop(self) -> None:
        """Stop watching; returns at once."""
        self._leaving.set()
        source = self._source
        if source is not None:
            source.close()

    def join(self, seconds: float) -> bool:
        """Wait for its threads to end, for so long at most; tells whether they have."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def restart(self) -> None:
        """Leave the thread in charge to itself and start another."""
        self.stop()
        self._intake.cut(self.config.name)
        self._restarts += 1
        self._due = math.inf
        self.start()

    @property
    def overdue(self) -> bool:
        """Whether its thread has shown no sign of life for longer than any step may take, or has died."""
        ended = self._state == "ended" or self._leaving.is_set()
        dead = bool(self._threads) and not self._threads[-1].is_alive()
        return not ended and (dead or time.monotonic() > self._due)

    @property
    def facts(self) -> FeedFacts:
        """The source in numbers."""
        now = time.monotonic()
        arrivals = list(self._arrivals)
        recent = [moment for moment in arrivals if now - moment <= _RATED]
        return FeedFacts(
            self._state,
            self._frames,
            self._dropped,
            self._broken,
            self._sampler.repeated,
            self._reconnects,
            self._restarts,
            (len(recent) - 1) / (recent[-1] - recent[0])
            if len(recent) > 1 and recent[-1] > recent[0]
            else 0.0,
            now - arrivals[-1] if arrivals else None,
            self._complaint,
            Source.is_live(self.config.source),
        )

    def _expect(self, seconds: float) -> None:
        """Promise a sign of life within so many seconds."""
        self._due = time.monotonic() + seconds + _ALLOWANCE

    def _run(self, leaving: threading.Event) -> None:
        name = self.config.name
        live = Source.is_live(self.config.source)
        try:
            while self._rest(leaving):
                try:
                    if self._play(leaving):
                        return
                except SourceError as error:
                    if leaving.is_set():
                        return
                    if not (live and self.config.reconnect):
                        self.error = error
                        return
                    self._complaint = str(error)
                except Exception:
                    if leaving.is_set():
                        return
                    log.exception("camera %s: a fault of this program", name)
                    if not live:
                        self.error = SourceError(f"camera {name}: a fault of this program; see its log")
                        return
                    self._complaint = "a fault of this program"
                self._intake.cut(name)
                if self._complaint is not None:
                    self._pause(leaving)
        finally:
            if not leaving.is_set():
                self._state, self._due = "ended", math.inf
                self._intake.end(name)

    def _rest(self, leaving: threading.Event) -> bool:
        """Wait until the camera's hours; tells whether to go on at all."""
        while not leaving.is_set() and not self._schedule.holds(self._now()):
            self._state, self._complaint = "resting", None
            self._expect(_TICK)
            leaving.wait(_TICK)
        return not leaving.is_set()

    def _pause(self, leaving: threading.Event) -> None:
        seconds = self._backoff.pause()
        log.warning("%s; trying again in %.1f s", self._complaint, seconds)
        self._state = "waiting"
        self._expect(seconds)
        leaving.wait(seconds)
        self._reconnects += 1

    def _play(self, leaving: threading.Event) -> bool:
        """Watch until the source ends, its hours are over, or we leave.

        Returns:
            Whether it ended as files do.

        Raises:
            SourceError: it cannot be opened, stalled, or ended though it is live.
        """
        config = self.config
        self._state = "opening"
        self._expect(config.stall_seconds)
        began = looked = time.monotonic()
        source = open_source(config)
        if leaving.is_set():
            source.close()
            return False
        self._source = source
        latest = LatestFrames(source) if source.live else None
        broken, dropped = self._broken, self._dropped
        try:
            for frame in latest or source:
                if leaving.is_set():
                    return False
                now = time.monotonic()
                self._frames += 1
                self._arrivals.append(now)
                self._broken = broken + source.broken
                if latest is not None:
                    self._dropped = dropped + latest.dropped
                    self._expect(config.stall_seconds)
                    if now - began > _STEADY_SECONDS:
                        self._backoff.reset()
                    if now - looked >= _TICK:
                        looked = now
                        if not self._schedule.holds(self._now()):
                            log.info("camera %s: its hours are over", config.name)
                            return False
                else:
                    self._due = math.inf  # a file waits for the vision graph as long as that takes
                if self._state != "playing":
                    if self._reconnects:
                        log.warning("camera %s: it is back", config.name)
                    self._state, self._complaint = "playing", None
                for patch in self._sampler.push(frame):
                    if not leaving.is_set():
                        self._intake.put(patch, live=source.live)
            return not source.live
        finally:
            if self._source is source:
                self._source = None
            if latest is not None:
                latest.close()
                self._await_reader(latest, leaving)
            source.close()

    def _await_reader(self, latest: LatestFrames, leaving: threading.Event) -> None:
        """Do not open a camera again while a driver still holds the thread that read it."""
        while not latest.ended and not leaving.is_set():
            self._complaint = f"camera {self.config.name}: its driver does not let go of it"
            self._state = "waiting"
            self._expect(_TICK)
            leaving.wait(_TICK)
