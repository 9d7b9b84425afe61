"""Refreshes the table of a README from the runs in `benchmarks/results`.

    python -m tvau_edge.benchmarks.latency.readme README.md benchmarks/results/*.json

What stands between the two marks is replaced; everything else stays. Run twice, it changes nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from tvau_edge.benchmarks.latency.errors import BenchError, TvauError
from tvau_edge.benchmarks.latency.record import Run, read_run
from tvau_edge.benchmarks.latency.report import title
from tvau_edge.benchmarks.latency.table import figure, lines, short

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
_STAGES = ("vision", "window of T' patches", "answer", "dialogue", "glass to MQTT", "start")


def brief(run: Run) -> str:
    """The rows that a reader of a README asks for, as Markdown."""
    rows = ["| what | median, ms | times ours | trust |", "| --- | ---: | ---: | --- |"]
    for line in lines(run):
        if (
            line.row.stage not in _STAGES
            or not line.percentiles
            or line.row.scenario not in (None, "SingleStream")
        ):
            continue
        ratio = "ours" if line.row.ours else figure(line.ratio)
        name = line.row.key.replace(" · SingleStream", "")
        rows.append(f"| {name} | {short(line.percentiles[50].value)} | {ratio} | {line.verdict} |")
    weights = ", random weights" if run.bundle.synthetic else ""
    head = (
        f"{title(run)}; bundle {run.bundle.name}{weights}, {run.bundle.width}x{run.bundle.height}, "
        f"{run.created[:10]}, suite {run.suite}:"
    )
    return head + "\n\n" + "\n".join(rows) + "\n"


def refresh(readme: Path, runs: Sequence[Path]) -> None:
    """Replace the table.

    Raises:
        BenchError: the README cannot be read or has no marks, or a run cannot be read.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{readme} cannot be read: {error.strerror}") from error
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{readme} has no place for the table: put {BEGIN} and {END} where it belongs")
    tables = "\n".join(brief(read_run(path)) for path in sorted(runs))
    readme.write_text(f"{head}{BEGIN}\n\n{tables}\n{END}{tail}", encoding="utf-8")


def main() -> None:
    """Refresh the README of the command line."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m tvau_edge.benchmarks.latency.readme README.md RUN.json…")
    try:
        refresh(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
    except TvauError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
