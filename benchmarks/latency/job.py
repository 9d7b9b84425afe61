"""What a worker is told to measure, and how it names what it found."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tvau_edge.benchmarks.latency.record import Part, Row, Scenario

Facts = dict[str, bool | int | float | str]


class Case(Part):
    """One row to be measured.

    Attributes:
        measure: name of the function that measures it, in `worker.MEASURES` or registered as a peer.
        stage, variant, scenario, unit, samples, group, ours, file: as in `Row`.
        backend, precision: of the vision graph, as for `Vision.open`.
        size: of what is measured, where that has a size: width of a matrix.
        once: measured once per process, without warm-up, such as a start.
    """

    measure: str
    stage: str
    variant: str
    scenario: Scenario | None = None
    unit: str = "temporal patch"
    samples: int = 1
    group: str = ""
    ours: bool = False
    file: str = ""
    backend: str = "auto"
    precision: str = "auto"
    size: int = 0
    once: bool = False

    def row(self, synthetic: bool, missing: str = "") -> Row:
        """The row of this case, without rounds."""
        fields = set(Row.model_fields) & set(Case.model_fields)
        return Row(**self.model_dump(include=fields), synthetic=synthetic, missing=missing)


class Job(Part):
    """A case with everything a fresh process needs to measure it.

    Attributes:
        case: what.
        bundle: folder, already verified.
        source: video that frames come from.
        checkpoint: that the bundle was made from, for peers that need it.
        threads: CPU threads of each stage; None leaves it to the runtime.
        queries: after which a round ends.
        seconds: after which it ends as well, but never before the second query.
        warm_up: seconds after which warming up ends, settled or not.
        spawned: when the process was started, seconds of the monotonic clock.
    """

    case: Case
    bundle: Path
    source: Path
    checkpoint: Path | None = None
    threads: int | None = None
    queries: int
    seconds: float
    warm_up: float
    spawned: float = 0.0


# Yields the seconds of one query after another, for as long as it is asked; closes what it opened when it is closed.
Measure = Callable[[Job, Facts], Iterator[float]]
