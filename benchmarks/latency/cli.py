"""The verb `tvau bench`, and its own: `compare` and `report`."""

import json
from collections import Counter
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from tvau_edge.benchmarks.latency.compare import Comparison, as_json, check, compare
from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.record import Run, read_run
from tvau_edge.benchmarks.latency.report import render
from tvau_edge.benchmarks.latency.runner import check_backend, run_suite
from tvau_edge.benchmarks.latency.stability import reasons
from tvau_edge.benchmarks.latency.suite import choose_suite
from tvau_edge.benchmarks.latency.table import figure, lines, markdown, short
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cli import missing_extra
from tvau_edge.runtime.errors import MissingExtraError
from tvau_edge.runtime.service.watching import check_place

BUNDLES = "tvau.bench.bundles"  # entry points of rooms above that can make a bundle to be measured
console = Console(stderr=True)


class MakeBundle(Protocol):
    """Makes a bundle of random weights; `export` registers one."""

    def __call__(self, name: str, blocks: int | None, folder: Path, language: str) -> tuple[Path, Path]:
        """Make it below `folder`; returns the bundle's folder and the checkpoint's."""


class _Group(TyperGroup):
    """`tvau bench BUNDLE` is `tvau bench run BUNDLE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


bench_verb = typer.Typer(
    cls=_Group,
    help="Measure a bundle on this machine: `tvau bench BUNDLE`; compare runs, and make a page of them.",
    no_args_is_help=True,
)


@bench_verb.command("run")
def bench(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of the bundle.")] = None,
    out: Annotated[Path, typer.Option("--out", "--json", help="Write the run here.")] = Path("bench.json"),
    source: Annotated[Path | None, typer.Option(help="A video to take frames from; drawn without.")] = None,
    suite: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    rounds: Annotated[
        int | None,
        typer.Option(help="Fresh processes per row; the suite's without. Below 3, no intervals.", min=1),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="That the bundle was made from: torch is then measured too, where installed."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Of the graphs that are ours: auto, onnxruntime, openvino, tensorrt.")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of each stage.", min=1)] = None,
    only: Annotated[str, typer.Option(help="Stages, comma between them, such as vision,dialogue.")] = "",
    synthetic: Annotated[
        str | None, typer.Option(help="7b or 3b: random weights of that shape, no bundle needed.")
    ] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Of --synthetic: vision blocks, of 32; the rest in proportion.", min=1)
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="Of --synthetic: GGUF type, such as bf16 or q4_k_m; q8_0 without.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where --synthetic keeps what it makes.")] = Path(
        "build/synthetic"
    ),
) -> None:
    """Measure a bundle on this machine, each stage alone and all together, beside peers and the machine's limits."""
    length = choose_suite(suite)
    if rounds is not None:
        length = replace(length, rounds=rounds)
    check_place("--out", out)
    if (bundle is None) == (synthetic is None):
        raise BenchError("give either the folder of a bundle, or --synthetic 7b or 3b")
    if blocks is not None and synthetic is None:
        raise BenchError("--blocks belongs to --synthetic")
    if llm is not None and synthetic is None:
        raise BenchError("--llm belongs to --synthetic; a bundle has the type that it was exported with")
    if synthetic is not None:
        console.print(
            f"random weights of the {synthetic} shape: times mean something, answers do not", highlight=False
        )
        make = _maker()
        with console.status("making checkpoint and bundle, which is kept for the next time"):
            bundle, checkpoint = make(synthetic, blocks, work, (llm or "q8_0").lower())
    assert bundle is not None
    opened = Bundle.open(bundle)
    check_backend(opened, backend)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        run = run_suite(
            opened,
            length,
            out,
            source=source,
            checkpoint=checkpoint,
            synthetic=synthetic is not None or "random weights" in opened.manifest.provenance.description,
            threads=threads,
            backend=backend,
            only=[name.strip() for name in only.split(",") if name.strip()],
            advance=lambda what, done, total: progress.update(
                task, description=what, completed=done, total=total
            ),
        )
    Console().print(show(run))
    if run.interrupted:
        console.print(f"interrupted; what was measured until then is in {out}", highlight=False)
        raise typer.Exit(130)
    console.print(f"{out} written; `tvau bench report {out}` makes a page of it", highlight=False)


def _maker() -> MakeBundle:
    for entry in entry_points(group=BUNDLES, name="synthetic"):
        extra = missing_extra(entry)
        if extra is not None:
            raise MissingExtraError("--synthetic", extra)
        made: MakeBundle = entry.load()
        return made
    raise MissingExtraError("--synthetic", "export")


def show(run: Run) -> Group:
    """A run for the terminal: a table that fits into 80 columns, and below it what it has no room for."""
    table = Table(
        title=f"{run.bundle.name}{', random weights' if run.bundle.synthetic else ''}, suite {run.suite}",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("what", overflow="fold")
    for name in ("p50 ms", "p99", "times ours", "limit"):
        table.add_column(name, justify="right")
    table.add_column("trust", no_wrap=True)
    notes: list[str] = []
    why: Counter[str] = Counter()
    for line in lines(run):
        if not line.percentiles:
            notes.append(f"not measured: {line.row.key}: {line.row.missing}")
            continue
        why.update(reasons(line.row).keys())
        table.add_row(
            line.row.key,
            *(short(line.percentiles[percent].value) for percent in (50, 99)),
            "ours" if line.row.ours else figure(line.ratio),
            f"{line.share:.0%}" if line.share is not None else "",
            "unstable" if line.unstable else line.verdict,
        )
    if why:
        counted = ", ".join(f"{reason} ({count})" for reason, count in why.most_common())
        notes.append(f"unstable rows: {counted}; the report says which. Compare ratios, not times")
    return Group(table, *(Text(note) for note in notes))


@bench_verb.command("compare")
def compare_verb(
    runs: Annotated[list[Path], typer.Argument(help="Runs; the first is what the others are measured by.")],
    fail_above: Annotated[
        float | None,
        typer.Option(help="Exit with 3 if a row is really slower than this many times.", min=1.0),
    ] = None,
    yardstick: Annotated[
        bool,
        typer.Option(
            "--yardstick", help="Divide by each run's own matrix product: for machines shared with others."
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the comparisons here.")] = None,
) -> None:
    """Say which rows differ beyond noise."""
    if len(runs) < 2:
        raise BenchError("compare needs at least two runs")
    if json_file is not None:
        check_place("--json", json_file)
    first, *others = [read_run(path) for path in runs]
    comparisons = [compare(first, other, yardstick=yardstick) for other in others]
    for path, comparison in zip(runs[1:], comparisons, strict=True):
        Console().print(show_comparison(f"{path} beside {runs[0]}", comparison))
        if comparison.machines:
            console.print(f"two machines: they differ in {', '.join(comparison.machines)}", highlight=False)
        for word, keys in ((runs[0], comparison.only_first), (path, comparison.only_second)):
            if keys:
                console.print(f"only in {word}: {'; '.join(keys)}", highlight=False)
    if json_file is not None:
        json_file.write_text(
            json.dumps([as_json(one) for one in comparisons], indent=2) + "\n", encoding="utf-8"
        )
    if fail_above is not None:
        for comparison in comparisons:
            check(comparison, fail_above)


def show_comparison(title: str, comparison: Comparison) -> Table:
    """A comparison for the terminal."""
    table = Table(title=title)
    table.add_column("what", overflow="fold")
    table.add_column("times", justify="right")
    table.add_column("p", justify="right")
    table.add_column("verdict", overflow="fold")
    for change in comparison.changes:
        note = f" (unstable: {', '.join(change.unstable)})" if change.unstable else ""
        p = "" if change.p is None else f"{change.p:.3f}"
        table.add_row(change.key, f"{change.ratio:.3f}", p, change.word + note)
    return table


@bench_verb.command("report")
def report_verb(
    runs: Annotated[list[Path], typer.Argument(help="Runs, of one device or several.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("bench.html"),
    accuracy: Annotated[
        list[Path] | None, typer.Option(help="A file of `tvau eval --json`; may be given several times.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table of the last run here as well.")
    ] = None,
) -> None:
    """Make one self-contained HTML page."""
    check_place("--out", out)
    read = [read_run(path) for path in runs]
    out.write_text(render(read, accuracy or []), encoding="utf-8")
    if markdown_file is not None:
        check_place("--markdown", markdown_file)
        markdown_file.write_text(markdown(read[-1]), encoding="utf-8")
    console.print(f"{out} written", highlight=False)
