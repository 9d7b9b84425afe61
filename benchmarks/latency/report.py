"""Runs as one HTML page: self-contained, for a phone as for a desk, numbers with their intervals and their trust."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvau_edge.benchmarks.latency import roofline
from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.record import Run
from tvau_edge.benchmarks.latency.table import LIMIT, Line, figure, lines, short
from tvau_edge.runtime.extras import load

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_MOST_DRAWN = 12
_COLORS = ("#2f5d8a", "#b3541e", "#5b7f3a", "#7a4a8c", "#8a6d1f", "#3d7f7a")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What `tvau eval --json` says of a bundle's graph, beside its latency.

    Attributes:
        run: number of the run, from 1.
        variant: of the vision row.
        milliseconds: its median.
        micro_auc, yes_no: percent, None where they were not measured.
    """

    run: int
    variant: str
    milliseconds: float
    micro_auc: float | None
    yes_no: float | None


def title(run: Run) -> str:
    """What to call a run's machine."""
    facts = run.fingerprint
    name = (
        facts.get("device")
        or facts.get("gpu")
        or facts.get("cpu")
        or facts.get("architecture")
        or "unknown device"
    )
    return f"{name}, {facts.get('cores', '?')} cores"


def render(runs: Sequence[Run], accuracy: Sequence[Path] = ()) -> str:
    """The page.

    Args:
        runs: of one machine or of several.
        accuracy: files of `tvau eval --json`; each stands beside the rows of its bundle (sha256) and graph.

    Raises:
        BenchError: there is no run, or an accuracy file is none.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    if not runs:
        raise BenchError("a report needs at least one run")
    jinja2 = load("jinja2", "tvau bench report", "bench")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "short": short}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    computed = [lines(run) for run in runs]
    points = _accuracy(runs, accuracy)
    return str(
        template.render(
            devices=[
                _device(number, run, found)
                for number, (run, found) in enumerate(zip(runs, computed, strict=True), 1)
            ],
            accuracy=points,
            accuracy_plot=_plot_accuracy(points),
        )
    )


def _device(number: int, run: Run, found: Sequence[Line]) -> dict[str, Any]:
    limit = roofline.limits(run)
    measured = [line for line in found if line.percentiles]
    return {
        "number": number,
        "title": title(run),
        "run": run,
        "facts": _facts(run),
        "lines": [line for line in found if not line.row.key.startswith(LIMIT)],
        "limit_lines": [line for line in found if line.row.key.startswith(LIMIT)],
        "limits": limit,
        "ours": next(
            (line for line in measured if line.row.ours and line.row.scenario == "SingleStream"), None
        ),
        "unstable": sum(bool(line.unstable) for line in measured),
        "measured": len(measured),
        "energy": any(line.joules is not None for line in measured),
        "points": roofline.points(run),
        "roofline": roofline.plot(run),
        "distributions": _plot_distributions(measured),
        "own_memory": _own_memory(run),
    }


def _facts(run: Run) -> dict[str, str]:
    shown: dict[str, str] = {}
    for key, value in run.fingerprint.items():
        if key.endswith("_bytes") and isinstance(value, int):
            shown[key.removesuffix("_bytes")] = (
                f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
            )
        elif isinstance(value, list):
            shown[key] = " ".join(value)
        elif isinstance(value, dict):
            shown[key] = ", ".join(f"{name} {text}" for name, text in value.items())
        elif isinstance(value, bool):
            shown[key] = "yes" if value else "no"
        else:
            shown[key] = str(value)
    return {key.replace("_", " "): value for key, value in shown.items()}


def _own_memory(run: Run) -> int | None:
    bare, runtime = run.memory.get("interpreter with numpy"), run.memory.get("runtime")
    return None if bare is None or runtime is None else runtime - bare


def _plot_distributions(measured: Sequence[Line]) -> str:
    """Every query of the vision rows, per sample, as it came: one strip for each row, a colour for each process."""
    drawn = [line for line in measured if line.row.stage == "vision" and line.row.scenario == "SingleStream"]
    drawn = drawn[:_MOST_DRAWN]
    if not drawn:
        return ""
    chart = load("matplotlib.figure", "the distributions", "bench").Figure(
        figsize=(5, 0.9 + 0.55 * len(drawn)), layout="constrained"
    )
    axes = chart.add_subplot()
    for place, line in enumerate(drawn):
        for number, times in enumerate(line.row.times):
            shift = 0.5 * ((number + 0.5) / len(line.row.rounds) - 0.5)
            axes.scatter(
                times,
                np.full(len(times), place + shift),
                s=5,
                alpha=0.5,
                color=_COLORS[number % len(_COLORS)],
                linewidths=0,
            )
        axes.plot(
            [line.percentiles[50].value] * 2, [place - 0.35, place + 0.35], color="black", linewidth=1.5
        )
        axes.plot(
            [line.percentiles[99].value] * 2, [place - 0.35, place + 0.35], color="black", linestyle=":"
        )
    axes.set_yticks(range(len(drawn)), [line.row.variant for line in drawn])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms per temporal patch; bar: median, dots: p99")
    axes.grid(visible=True, axis="x", which="both", alpha=0.25)
    return roofline.svg(chart)


def _accuracy(runs: Sequence[Run], files: Sequence[Path]) -> list[Accuracy]:
    found = []
    for file in files:
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            sha256, variant = table["sha256"], table["vision"]
            micro_auc, yes_no = table["detection"]["micro_auc"], table["answers"]["yes_no"]
        except OSError as error:
            raise BenchError(f"--accuracy {file}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"--accuracy {file} is no file of `tvau eval --json`: {error!r}") from error
        for number, run in enumerate(runs, 1):
            row = run.row(f"vision · {variant} · SingleStream")
            # Random weights have no accuracy, whatever a file says.
            if run.bundle.sha256 == sha256 and row is not None and row.rounds and not row.synthetic:
                seconds = roofline.median_seconds(row)
                found.append(Accuracy(number, variant, seconds * 1e3, micro_auc, yes_no))
    return found


def _plot_accuracy(points: Sequence[Accuracy]) -> str:
    drawn = [point for point in points if point.micro_auc is not None]
    if not drawn:
        return ""
    chart = load("matplotlib.figure", "the plot of accuracy", "bench").Figure(
        figsize=(5, 3.2), layout="constrained"
    )
    axes = chart.add_subplot()
    for point in drawn:
        axes.plot(point.milliseconds, point.micro_auc, "o", color=_COLORS[(point.run - 1) % len(_COLORS)])
        axes.annotate(
            f"{point.run}: {point.variant}",
            (point.milliseconds, point.micro_auc),
            (6, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_xlabel("ms per temporal patch, median")
    axes.set_ylabel("micro-AUC, percent")
    axes.grid(visible=True, alpha=0.25)
    return roofline.svg(chart)
