"""Figures of times: percentiles, their confidence intervals, ratios, and whether two runs differ.

Times within one process are alike (same memory layout, same neighbours), so they are no independent samples. Every
interval resamples processes first and queries within them after; every test compares processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Times = Sequence[Sequence[float]]  # milliseconds by process

RESAMPLES = 1000
CONFIDENCE = 0.95
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its confidence interval; the interval is None with fewer than three processes."""

    value: float
    low: float | None = None
    high: float | None = None


def percentiles(times: Times, seed: int = 0) -> dict[int, Figure]:
    """The `PERCENTILES` of all times, with bootstrap intervals.

    Raises:
        ValueError: there are no times.
    """
    flat = np.concatenate([np.asarray(one, float) for one in times])
    values = np.percentile(flat, PERCENTILES)
    if len(times) < 3:
        return {p: Figure(float(v)) for p, v in zip(PERCENTILES, values, strict=True)}
    drawn = np.percentile(_resampled(times, seed), PERCENTILES, axis=1)  # [percentiles, resamples]
    low, high = _interval(drawn)
    return {p: Figure(*map(float, row)) for p, *row in zip(PERCENTILES, values, low, high, strict=True)}


def _resampled(times: Times, seed: int) -> NDArray[np.float64]:
    """Bootstrap samples of processes, then of queries within each: [resamples, queries]."""
    random = np.random.default_rng(seed)
    length = min(len(one) for one in times)
    rounds = [np.asarray(one, float) for one in times]
    chosen = random.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    drawn = np.empty((RESAMPLES, len(rounds), length))
    for number, one in enumerate(rounds):
        places = np.nonzero(chosen == number)
        drawn[places] = one[random.integers(len(one), size=(len(places[0]), length))]
    return drawn.reshape(RESAMPLES, -1)


def _interval(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
    tail = 50 * (1 - CONFIDENCE)
    return np.percentile(drawn, [tail, 100 - tail], axis=-1)


def ratio(times: Times, ours: Times, seed: int = 0) -> Figure:
    """How many times longer than ours: the median over rounds of the ratio of their medians.

    Rounds of both were measured in turns, so each ratio is of neighbours, and what drifts hits both.
    """
    pairs = [np.median(one) / np.median(other) for one, other in zip(times, ours, strict=False)]
    value = float(np.median(pairs))
    if len(pairs) < 3:
        return Figure(value)
    random = np.random.default_rng(seed)
    drawn = np.median(random.choice(pairs, (RESAMPLES, len(pairs))), axis=1)
    low, high = _interval(drawn)
    return Figure(value, float(low), float(high))


def spread(times: Times) -> float:
    """How far the processes' medians lie apart: largest minus smallest, over their median."""
    medians = [float(np.median(one)) for one in times]
    return (max(medians) - min(medians)) / float(np.median(medians))


@dataclass(frozen=True, slots=True)
class Difference:
    """Two measurements of one thing.

    Attributes:
        ratio: the second's time over the first's, of medians over processes.
        p: that a difference this large comes by chance (Welch's t-test on the logarithms of the processes'
            medians, corrected by Holm for all that were compared); None with fewer than three processes.
    """

    ratio: float
    p: float | None

    def real(self, alpha: float, least: float) -> bool:
        """Whether it exceeds noise: significant, and larger than `least` (0.05: five percent) either way."""
        return self.p is not None and self.p < alpha and abs(np.log(self.ratio)) > np.log1p(least)


def differences(pairs: Sequence[tuple[Times, Times]]) -> list[Difference]:
    """Compare pairs of measurements, first and second."""
    ratios, chances = [], []
    for first, second in pairs:
        a, b = (np.log([np.median(one) for one in times]) for times in (first, second))
        ratios.append(float(np.exp(np.median(b) - np.median(a))))
        chances.append(_welch(a, b))
    known = [p for p in chances if p is not None]
    corrected = iter(_holm(known))
    return [
        Difference(r, None if p is None else next(corrected)) for r, p in zip(ratios, chances, strict=True)
    ]


def _welch(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    if min(len(a), len(b)) < 3:
        return None
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return 1.0 if a[0] == b[0] else 0.0
    from scipy import stats  # here: a second of imports, and the workers need none of it

    return float(stats.ttest_ind(a, b, equal_var=False).pvalue)


def _holm(chances: Sequence[float]) -> list[float]:
    order = np.argsort(chances)
    corrected = np.empty(len(chances))
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, chances[index] * (len(chances) - rank)))
        corrected[index] = worst
    return corrected.tolist()


def settled(times: Sequence[float], block: int = 5, tolerance: float = 0.05) -> bool:
    """Whether the last `block` times have a median within `tolerance` of the block before."""
    if len(times) < 2 * block:
        return False
    last, before = np.median(times[-block:]), np.median(times[-2 * block : -block])
    return bool(abs(last / before - 1) <= tolerance)
