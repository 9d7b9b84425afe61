"""A run's rows as figures to be read: one table for terminal, Markdown and page alike."""

from dataclasses import dataclass

from tvau_edge.benchmarks.latency.record import Row, Run
from tvau_edge.benchmarks.latency.roofline import Limits, limits, reached
from tvau_edge.benchmarks.latency.stability import STABLE, reasons
from tvau_edge.benchmarks.latency.statistics import Figure, percentiles, ratio

LIMIT = "limit: "


@dataclass(frozen=True, slots=True)
class Line:
    """One row, computed.

    Attributes:
        row: it.
        percentiles: p50, p90, p99 of a query in milliseconds; empty when it was not measured.
        rate: samples per second, from the median.
        ratio: times longer per sample than ours, where it has a group.
        share: of the machine's limit.
        bound: what limits it, "compute" or "memory"; empty when unknown.
        joules: of one sample, whole package or board; None where the machine does not tell.
        memory: peak resident bytes of the process.
        unstable: why its numbers are not to be trusted; empty when they are.
    """

    row: Row
    percentiles: dict[int, Figure]
    rate: float | None = None
    ratio: Figure | None = None
    share: float | None = None
    bound: str = ""
    joules: float | None = None
    memory: int | None = None
    unstable: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`stable`, or why not."""
        return ", ".join(self.unstable) if self.unstable else STABLE


def lines(run: Run) -> list[Line]:
    """All rows of a run, those that are missing as well."""
    limit = limits(run)
    return [_line(run, row, limit) if row.rounds else Line(row, {}) for row in run.rows]


def _line(run: Run, row: Row, limit: Limits) -> Line:
    found = percentiles(row.times)
    against = reached(run, row, limit)
    return Line(
        row=row,
        percentiles=found,
        rate=1e3 * row.samples / found[50].value,
        ratio=_ratio(run, row),
        share=against.share if against else None,
        bound=against.bound if against else "",
        joules=_joules(row),
        memory=max((r.memory_peak for r in row.rounds if r.memory_peak), default=None),
        unstable=tuple(reasons(row).values()),
    )


def _ratio(run: Run, row: Row) -> Figure | None:
    if not row.group or row.ours:
        return None
    ours = next((other for other in run.measured() if other.group == row.group and other.ours), None)
    if ours is None:
        return None
    return ratio(_per_sample(row), _per_sample(ours))


def _per_sample(row: Row) -> list[list[float]]:
    return [[time / row.samples for time in times] for times in row.times]


def _joules(row: Row) -> float | None:
    rounds = [round_ for round_ in row.rounds if round_.machine.joules]
    if not rounds:
        return None
    queries = sum(len(round_.milliseconds) for round_ in rounds)
    return sum(sum(round_.machine.joules.values()) for round_ in rounds) / (queries * row.samples)


def figure(value: Figure | None, digits: int = 3) -> str:
    """A value with its interval: `12.3 [11.9, 12.8]`."""
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return short(value.value, digits)
    return f"{short(value.value, digits)} [{short(value.low, digits)}, {short(value.high, digits)}]"


def short(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def markdown(run: Run) -> str:
    """The table of a README; a cell that nothing is known of is blank."""
    head = ("what", "p50 ms", "p90", "p99", "per s", "times ours", "of the limit", "mJ each", "trust")
    rows = [head, ("---", *["---:"] * 7, "---")]
    for line in lines(run):
        name = line.row.key + (" (random weights)" if line.row.synthetic else "")
        if not line.percentiles:
            rows.append((name, *[""] * 7, f"not measured: {line.row.missing}"))
            continue
        rows.append(
            (
                name,
                figure(line.percentiles[50]),
                short(line.percentiles[90].value),
                short(line.percentiles[99].value),
                short(line.rate or 0),
                "ours" if line.row.ours else figure(line.ratio),
                f"{line.share:.0%} ({line.bound})" if line.share is not None else "",
                short(line.joules * 1e3) if line.joules is not None else "",
                line.verdict,
            )
        )
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
