"""Two runs or more: what differs beyond noise, and whether that is more than is allowed."""

from dataclasses import dataclass
from typing import Any

from tvau_edge.benchmarks.latency.errors import BenchError, RegressionError
from tvau_edge.benchmarks.latency.record import Row, Run
from tvau_edge.benchmarks.latency.stability import reasons
from tvau_edge.benchmarks.latency.statistics import Times, differences
from tvau_edge.benchmarks.latency.table import LIMIT

ALPHA = 0.05
LEAST = 0.05  # a smaller difference is of no interest, however sure
# Facts of the fingerprint without which two runs are of two machines.
_MACHINE = ("device", "cpu", "cpu_features", "cores", "memory_bytes", "gpu", "governor", "power_mode")


@dataclass(frozen=True, slots=True)
class Change:
    """One row in two runs.

    Attributes:
        key: of the row.
        ratio: the later run's time over the first's; above 1 is slower.
        p: that chance made it, corrected for all rows; None with fewer than three processes.
        real: it exceeds noise.
        unstable: reasons of either run.
    """

    key: str
    ratio: float
    p: float | None
    real: bool
    unstable: tuple[str, ...]

    @property
    def word(self) -> str:
        """What to call it."""
        if not self.real:
            return "equal within noise" if self.p is not None else "too few processes to tell"
        return "slower" if self.ratio > 1 else "faster"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A later run beside the first.

    Attributes:
        changes: rows that both have.
        only_first, only_second: keys of rows that one alone measured.
        machines: facts of the fingerprint that differ: what is compared is then devices, not code.
        yardstick: times were divided by those of the run's own matrix product first.
    """

    changes: tuple[Change, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    machines: tuple[str, ...]
    yardstick: bool = False


def compare(first: Run, second: Run, *, yardstick: bool = False) -> Comparison:
    """Compare two runs.

    Args:
        first: the one to be measured by.
        second: the later one.
        yardstick: divide each round by its run's fp32 product in ONNX Runtime, measured in the same turn: on a
            machine that others use as well, this takes out what slows everything alike.

    Raises:
        BenchError: they share no row, or a yardstick is missing.
    """
    ours = {row.key: row for row in first.measured()}
    theirs = {row.key: row for row in second.measured()}
    keys = [key for key in ours if key in theirs and not key.startswith(LIMIT)]
    if not keys:
        raise BenchError("the runs have no row in common: they are of other suites or bundles")
    times = [(_times(first, ours[key], yardstick), _times(second, theirs[key], yardstick)) for key in keys]
    changes = tuple(
        Change(
            key,
            difference.ratio,
            difference.p,
            difference.real(ALPHA, LEAST),
            tuple(dict.fromkeys([*reasons(ours[key]).values(), *reasons(theirs[key]).values()])),
        )
        for key, difference in zip(keys, differences(times), strict=True)
    )
    return Comparison(
        changes,
        tuple(key for key in ours if key not in theirs),
        tuple(key for key in theirs if key not in ours),
        tuple(name for name in _MACHINE if first.fingerprint.get(name) != second.fingerprint.get(name)),
        yardstick,
    )


def _times(run: Run, row: Row, yardstick: bool) -> Times:
    """Milliseconds per sample, by process."""
    times = [[time / row.samples for time in one] for one in row.times]
    if not yardstick:
        return times
    measure = run.row(f"{LIMIT}matrix product · onnxruntime fp32")
    if measure is None or len(measure.rounds) < len(times):
        raise BenchError(
            "--yardstick: a run has no fp32 product in ONNX Runtime to divide by; it was cut short"
        )
    lengths = [sorted(one)[len(one) // 2] for one in measure.times]
    return [[time / length for time in one] for one, length in zip(times, lengths, strict=False)]


def check(comparison: Comparison, most: float) -> None:
    """The gate for CI.

    Raises:
        RegressionError: a row is really slower, by more than `most` times.
    """
    slow = [change for change in comparison.changes if change.real and change.ratio > most]
    if slow:
        named = "; ".join(f"{change.key}: {change.ratio:.2f} times" for change in slow)
        raise RegressionError(f"slower than {most:g} times allows: {named}")


def as_json(comparison: Comparison) -> dict[str, Any]:
    """For --json."""
    return {
        "schema": "tvau.bench-comparison/1",
        "changes": [
            {
                "row": change.key,
                "ratio": change.ratio,
                "p": change.p,
                "verdict": change.word,
                "unstable": list(change.unstable),
            }
            for change in comparison.changes
        ],
        "only_first": list(comparison.only_first),
        "only_second": list(comparison.only_second),
        "machines_differ_in": list(comparison.machines),
        "yardstick": comparison.yardstick,
    }
