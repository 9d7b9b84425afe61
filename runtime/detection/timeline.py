"""What a run saw of a camera over time, small enough to keep: for the overlay, the contact sheet and evaluation."""

import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.detection.vision import Evidence


@dataclass(frozen=True, slots=True)
class Moment:
    """One temporal patch, without its P_V.

    Attributes:
        pts: seconds of its newer frame.
        heatmap: [H', W'] in 0..1.
        score: 0..1.
        event: the event that was open then, if one was.
    """

    pts: float
    heatmap: NDArray[np.float32]
    score: float
    event: UUID | None


@dataclass
class Timeline:
    """The moments of one camera, and the answers that its events were given.

    Attributes:
        camera: its name.
        most: moments and answers that are kept, the newest; None: all.
    """

    camera: str
    most: int | None = None
    moments: list[Moment] = field(default_factory=list)
    answers: dict[UUID, dict[str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, evidence: Evidence, event: UUID | None) -> None:
        """Note a temporal patch."""
        with self._lock:
            self.moments.append(Moment(evidence.pts, evidence.heatmap, evidence.score, event))
            if self.most is not None and len(self.moments) > self.most:
                del self.moments[0]

    def explain(self, event: UUID, answers: dict[str, str]) -> None:
        """Note the answers about an event."""
        with self._lock:
            self.answers[event] = answers
            if self.most is not None and len(self.answers) > self.most:
                del self.answers[next(iter(self.answers))]

    def at(self, pts: float) -> Moment | None:
        """The temporal patch that a frame belongs to: the first that ends at or after it, else the last."""
        with self._lock:
            if not self.moments:
                return None
            index = bisect_left(self.moments, pts, key=lambda moment: moment.pts)
            return self.moments[min(index, len(self.moments) - 1)]
