"""Keeps the temporal patches that differ most, out of a stream of any length, in bounded memory.

The first frames of a video are a poor sample of it: an empty road at one time of day. A patch is described by what it
looks like in the coarse and by where something moves; patches with motion and still ones are kept apart, so that
neither crowds out the other, and of each kind those are kept that lie farthest from one another.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 6, 8  # cells of the description
_MOTION = 3.0  # weight of motion beside colour
MOVES = 0.02  # of 0..1: a cell whose mean changes by more holds motion; sensor noise averages out


@dataclass(frozen=True, eq=False)
class Candidate:
    """A temporal patch that may be calibrated on.

    Attributes:
        source: name of the footage that it comes from.
        seconds: of its newer frame in that footage.
        index: its number among all patches that were seen.
        frames: [2, H, W, 3] uint8.
        description: as `describe` makes it.
    """

    source: str
    seconds: float
    index: int
    frames: NDArray[np.uint8]
    description: NDArray[np.float32]

    @property
    def brightness(self) -> float:
        """Mean over all pixels, 0..1."""
        return float(self.description[: 3 * _ROWS * _COLUMNS].mean())

    @property
    def motion(self) -> float:
        """Largest change of a cell's mean between the two frames, 0..1."""
        return float(self.description[3 * _ROWS * _COLUMNS :].max() / _MOTION)

    @property
    def moves(self) -> bool:
        """Whether it holds motion."""
        return self.motion > MOVES


def describe(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean colour of each cell, and how much each cell changes: frames [2, H, W, 3] -> [4 rows columns], 0..1 each."""
    _, height, width, _ = frames.shape
    ys = np.linspace(0, height, _ROWS + 1).astype(int)
    xs = np.linspace(0, width, _COLUMNS + 1).astype(int)
    sums = np.add.reduceat(frames.astype(np.float32), ys[:-1], axis=1)
    sums = np.add.reduceat(sums, xs[:-1], axis=2)  # [2, rows, columns, 3]
    means = sums / (np.diff(ys)[None, :, None, None] * np.diff(xs)[None, None, :, None] * 255)
    change = np.abs(means[1] - means[0]).mean(axis=-1)  # [rows, columns]
    return np.concatenate([means.mean(axis=0).ravel(), _MOTION * change.ravel()])


class Pool:
    """Holds at most `size` candidates, as far from one another as a single pass can have them.

    A candidate replaces one of the two held that are closest to each other, if it is farther from all than they are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.held: list[Candidate] = []
        self._distance = np.full((size, size), np.inf, np.float32)

    def offer(self, candidate: Candidate) -> None:
        """Take a candidate in, or leave it."""
        place = len(self.held)
        distance = self._distances(candidate)
        if place == self._size:
            one, other = np.unravel_index(self._distance.argmin(), self._distance.shape)
            if distance.min() <= self._distance[one, other]:
                return
            # The one of the two goes that has another neighbour closer by.
            second = [np.partition(self._distance[k], 1)[1] for k in (one, other)]
            place = int((one, other)[int(second[1] < second[0])])
            self.held[place] = candidate
        else:
            self.held.append(candidate)
        self._distance[place, : len(distance)] = self._distance[: len(distance), place] = distance
        self._distance[place, place] = np.inf

    def _distances(self, candidate: Candidate) -> NDArray[np.float32]:
        if not self.held:
            return np.empty(0, np.float32)
        held = np.stack([other.description for other in self.held])
        return np.linalg.norm(held - candidate.description, axis=1)


def choose(candidates: list[Candidate], count: int) -> list[Candidate]:
    """At most `count` candidates, farthest first: begins at the one nearest the mean, and adds what is least alike."""
    if len(candidates) <= count:
        return list(candidates)
    if count < 1:
        return []
    descriptions = np.stack([candidate.description for candidate in candidates])
    chosen = [int(np.linalg.norm(descriptions - descriptions.mean(axis=0), axis=1).argmin())]
    nearest = np.linalg.norm(descriptions - descriptions[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(descriptions - descriptions[chosen[-1]], axis=1))
    return [candidates[index] for index in chosen]
