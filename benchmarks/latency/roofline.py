"""How near each stage comes to what the machine can do: limits of the same run, shares of them, the roofline."""

from dataclasses import dataclass
from io import StringIO

import numpy as np

from tvau_edge.benchmarks.latency.record import Row, Run
from tvau_edge.runtime.extras import load

PRECISIONS = ("int8", "bf16", "fp32")
_PRODUCT, _MEMORY = "limit: matrix product", "limit: memory"
_COLORS = {"int8": "#b3541e", "bf16": "#5b7f3a", "fp32": "#2f5d8a"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine reached in this run; medians, as everything that is set beside them.

    Attributes:
        peaks: operations per second by precision, of the best back end.
        by: which back end that was.
        bandwidth: bytes read per second, None where it was not measured.
        cache: bytes of the largest cache, 0 where unknown.
        cached: the bytes that were read fit into it, so memory itself may be slower.
    """

    peaks: dict[str, float]
    by: dict[str, str]
    bandwidth: float | None
    cache: float
    cached: bool


@dataclass(frozen=True, slots=True)
class Reached:
    """How a row stands to the limits.

    Attributes:
        key: of the row.
        seconds: of one sample.
        share: of the limit, 0..1 and a little more where noise or a better kernel helps.
        bound: "compute" or "memory": which limit is the nearer.
        rate: operations per second, 0 where bytes alone count.
        intensity: operations per byte that must move.
        precision: the one most of its operations have.
    """

    key: str
    seconds: float
    share: float
    bound: str
    rate: float
    intensity: float
    precision: str


def median_seconds(row: Row) -> float:
    """Median over processes of the median time of one sample."""
    return float(np.median([np.median(times) for times in row.times])) / 1e3 / row.samples


def limits(run: Run) -> Limits:
    """The limits that a run measured."""
    peaks: dict[str, float] = {}
    by: dict[str, str] = {}
    bandwidth, cache, cached = None, 0.0, False
    for row in run.measured():
        facts = row.rounds[0].facts
        if row.stage == _PRODUCT:
            backend, precision = row.variant.split()
            rate = float(facts["operations"]) / median_seconds(row)
            if rate > peaks.get(precision, 0.0):
                peaks[precision], by[precision] = rate, backend
        elif row.stage == _MEMORY:
            bandwidth = float(facts["bytes"]) / median_seconds(row)
            cache = float(facts["cache"])
            cached = float(facts["bytes"]) < cache
    return Limits(peaks, by, bandwidth, cache, cached)


def reached(run: Run, row: Row, limit: Limits) -> Reached | None:
    """A row beside the limits; None where its work was not counted, or the limit is missing or another.

    A language model that fits into the caches is not read from memory for each token, and no limit is known of it.
    """
    work = run.work.get(row.file)
    if work is None or not row.rounds or limit.bandwidth is None:
        return None
    seconds = median_seconds(row)
    moving = work.least / limit.bandwidth
    if "weights" in work.operations:  # a token: as many operations as weights, far below any peak
        if work.least < limit.cache:
            return None
        rate = work.operations["weights"]
        return Reached(
            row.key, seconds, moving / seconds, "memory", rate / seconds, rate / work.least, "int8"
        )
    operations = dict(work.operations)
    if "bf16" in row.variant.split():
        operations = {"bf16": sum(operations.values())}
    if any(precision not in limit.peaks for precision in operations):
        return None
    computing = sum(count / limit.peaks[precision] for precision, count in operations.items())
    total = sum(operations.values())
    return Reached(
        row.key,
        seconds,
        max(computing, moving) / seconds,
        "compute" if computing >= moving else "memory",
        total / seconds,
        total / work.least,
        max(operations, key=operations.__getitem__, default="fp32"),
    )


def points(run: Run) -> list[Reached]:
    """The rows that the roofline shows, one sample at a time: more of them at once lie on the same place or above."""
    limit = limits(run)
    alone = [row for row in run.measured() if row.scenario in (None, "SingleStream")]
    return [point for row in alone if (point := reached(run, row, limit)) is not None]


def plot(run: Run) -> str:
    """The roofline as SVG, or an empty text where there is nothing to draw.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    limit, shown = limits(run), points(run)
    if limit.bandwidth is None or not limit.peaks or not shown:
        return ""
    figure_module = load("matplotlib.figure", "the roofline", "bench")
    figure = figure_module.Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    intensity = np.geomspace(0.5, 4 * max(point.intensity for point in shown), 200)
    for precision in PRECISIONS:
        if precision in limit.peaks:
            roof = np.minimum(limit.peaks[precision], intensity * limit.bandwidth)
            label = f"{precision}, {limit.peaks[precision] / 1e9:,.0f} GOP/s"
            axes.loglog(intensity, roof / 1e9, color=_COLORS[precision], label=label)
    for number, point in enumerate(shown, 1):
        axes.loglog(point.intensity, point.rate / 1e9, "o", color=_COLORS[point.precision], markersize=6)
        axes.annotate(str(number), (point.intensity, point.rate / 1e9), (5, 4), textcoords="offset points")
    axes.set_xlabel("operations per byte that must move")
    axes.set_ylabel("GOP/s")
    axes.set_title(f"memory {limit.bandwidth / 1e9:.1f} GB/s", fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return svg(figure)


def svg(figure: object) -> str:
    """A figure as an SVG element that scales with the page."""
    text = StringIO()
    # Text stays text: it is small, and can be read aloud and searched.
    with load("matplotlib", "a plot", "bench").rc_context(
        {"svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(text, format="svg", metadata={"Date": None})  # type: ignore[attr-defined]
    return text.getvalue()[text.getvalue().index("<svg") :]
