"""Opens and closes events on the patches' scores, with hysteresis, and keeps the evidence of the last T' patches."""

from collections import deque
from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid4

from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.manifest import Thresholds

Phase = Literal["start", "update", "end"]


@dataclass(frozen=True, slots=True)
class Window:
    """Evidence of the last T' temporal patches, oldest first; the first is repeated while there are fewer."""

    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class EventUpdate:
    """What the trigger has to say about an event.

    Attributes:
        camera: name of the camera.
        event: id of the event.
        phase: start, update or end.
        started: epoch seconds of the first of the patches that opened it.
        ended: epoch seconds of the patch that closed it, at its end; never before `started`.
        peak: highest score so far, 0..1.
        patches: temporal patches since its start, from 1.
        window: the evidence behind it.
        quiet: patches at the window's end, T' at most, that are below the closing threshold.
        shown: the evidence of the T' patches before those, in which the event still shows.
    """

    camera: str
    event: UUID
    phase: Phase
    started: float
    ended: float | None
    peak: float
    patches: int
    window: Window
    quiet: int
    shown: Window

    @property
    def newest(self) -> Evidence:
        """The newest evidence."""
        return self.window.evidence[-1]


class Trigger:
    """Watches one camera.

    An event opens after `open_after` patches in a row at or above `thresholds.open` and closes after `close_after`
    in a row below `thresholds.close`.

    Args:
        thresholds: open and close, 0..1.
        window: T', temporal patches that a window holds.
        open_after: patches in a row.
        close_after: patches in a row.
        update_seconds: least time between two updates.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        window: int,
        *,
        open_after: int = 1,
        close_after: int = 4,
        update_seconds: float = 5.0,
    ) -> None:
        self._thresholds = thresholds
        self._open_after, self._close_after, self._update_seconds = open_after, close_after, update_seconds
        self._window = window
        self._most_quiet = min(close_after, window)
        self._evidence: deque[Evidence] = deque(maxlen=window + self._most_quiet)
        self._above = self._below = 0
        self._event: UUID | None = None
        # Of the event, or of the patches in a row that may become one.
        self._started = self._peak = self._told = 0.0
        self._patches = 0

    @property
    def thresholds(self) -> Thresholds:
        """Of the scores; others hold from the next patch on."""
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds

    def push(self, evidence: Evidence) -> EventUpdate | None:
        """Take the evidence of the next patch; returns news of an event, if there is any."""
        self._evidence.append(evidence)
        self._above = self._above + 1 if evidence.score >= self._thresholds.open else 0
        # A score that is no number is below: it can close an event, but not hold one open for ever.
        self._below = 0 if evidence.score >= self._thresholds.close else self._below + 1
        if self._event is None:
            if self._above <= 1:
                self._started, self._peak, self._patches = evidence.time, 0.0, 0
            self._count(evidence)
            if self._above < self._open_after:
                return None
            self._event = uuid4()
            return self._tell("start", evidence)
        self._count(evidence)
        if self._below >= self._close_after:
            return self._close(evidence)
        # A clock that was set back must not silence the updates.
        if not 0 <= evidence.time - self._told < self._update_seconds:
            return self._tell("update", evidence)
        return None

    def flush(self) -> EventUpdate | None:
        """Close the event that is open and forget the evidence, as a source does that ends."""
        update = self._close(self._evidence[-1]) if self._event is not None else None
        self._evidence.clear()
        self._above = self._below = 0
        return update

    @property
    def current(self) -> EventUpdate | None:
        """The open event as it stands, as an update that nobody is told."""
        return self._news("update", None) if self._event is not None else None

    def _count(self, evidence: Evidence) -> None:
        self._patches += 1
        if evidence.score > self._peak:
            self._peak = evidence.score

    def _close(self, evidence: Evidence) -> EventUpdate:
        update = self._tell("end", evidence)
        self._event, self._above, self._below = None, 0, 0
        return update

    def _tell(self, phase: Phase, evidence: Evidence) -> EventUpdate:
        self._told = evidence.time
        return self._news(phase, max(evidence.time, self._started) if phase == "end" else None)

    def _news(self, phase: Phase, ended: float | None) -> EventUpdate:
        assert self._event is not None  # only called while one is open
        quiet = min(self._below, self._most_quiet)
        return EventUpdate(
            self._evidence[-1].camera,
            self._event,
            phase,
            self._started,
            ended,
            self._peak,
            self._patches,
            self._last(0),
            quiet,
            self._last(quiet),
        )

    def _last(self, but: int) -> Window:
        """The newest T' patches but so many; the first is repeated while there are fewer."""
        held = tuple(self._evidence)[: len(self._evidence) - but][-self._window :]
        return Window((held[0],) * (self._window - len(held)) + held)
