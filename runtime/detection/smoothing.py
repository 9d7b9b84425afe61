"""The score of a camera over its last temporal patches: one hot patch alone is often noise."""

from collections import deque
from dataclasses import replace

from tvau_edge.runtime.detection.vision import Evidence


class Smoothing:
    """Replaces each score by the mean of it and of those just before it; the heatmap stays as it is.

    Args:
        patches: temporal patches that the mean goes over; 1 leaves scores alone.
    """

    def __init__(self, patches: int) -> None:
        self._scores: deque[float] = deque(maxlen=patches)

    def add(self, score: float) -> float:
        """The smoothed score of the next patch, 0..1, given its own."""
        self._scores.append(score)
        return sum(self._scores) / len(self._scores)

    def apply(self, evidence: Evidence) -> Evidence:
        """The evidence of the next patch with its smoothed score."""
        return replace(evidence, score=self.add(evidence.score))

    def forget(self) -> None:
        """Begin anew, as after a gap."""
        self._scores.clear()
