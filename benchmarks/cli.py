"""The verbs `tvau eval`, `tvau data check` and `tvau data sheet`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tvau_edge.runtime.cli import add_verbs

if TYPE_CHECKING:
    from tvau_edge.benchmarks.check import Report

console = Console(stderr=True)


class Bar:
    """A progress bar that is told (done, total)."""

    def __init__(self, what: str) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task(what, total=None)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=done, total=total)


def check(
    path: Annotated[Path, typer.Argument(help="Folder of the data set: UBnormal, ShanghaiTech, or drawn.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Say everything that is wrong with a folder of labelled clips; status 1 when a clip cannot be measured."""
    from tvau_edge.benchmarks.check import check_dataset
    from tvau_edge.runtime.service.watching import check_place

    if json_file:
        check_place("--json", json_file)
    with Bar("reading") as bar:
        report = check_dataset(path, bar)
    if json_file:
        json_file.write_text(report.model_dump_json(indent=2) + "\n")
    _show(report)
    if not report.sound:
        raise typer.Exit(1)


def sheet(
    path: Annotated[Path, typer.Argument(help="Folder of the data set: UBnormal, ShanghaiTech, or drawn.")],
    out: Annotated[Path, typer.Option(help="The .png file.")],
    split: Annotated[str, typer.Option(help="train, validation, test, or all.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Clips in the picture.")] = 30,
) -> None:
    """Draw a contact sheet of a data set: a frame of each clip, what is abnormal in it framed in green."""
    from tvau_edge.benchmarks.dataset import read_dataset
    from tvau_edge.benchmarks.pictures import write_contact_sheet
    from tvau_edge.runtime.service.watching import check_place

    check_place("--out", out)
    write_contact_sheet(read_dataset(path, split), out, count)
    console.print(f"{out} written", highlight=False)


def _show(report: "Report") -> None:
    table = Table(title=f"{report.path}: {report.layout}")
    for column in ("split", "clips", "with anomalies", "frames", "abnormal"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, count in report.splits.items():
        numbers = count.clips, count.abnormal_clips, count.frames, count.abnormal_frames
        table.add_row(name, *(f"{number:,}" for number in numbers))
    out = Console(soft_wrap=True)
    out.print(table)
    for finding in report.findings:
        mark = "[bold red]wrong[/]" if finding.blocking else "[yellow]note[/]"
        out.print(f"{mark} {escape(finding.file)}: {escape(finding.problem)}", highlight=False)
    if not report.findings:
        out.print("nothing is wrong")


def eval_verb(
    bundle: Annotated[list[Path], typer.Option(help="Folder of a bundle; several stand in one table.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set: UBnormal, ShanghaiTech, or drawn.")],
    split: Annotated[str, typer.Option(help="train, validation, test, or all.")] = "test",
    backend: Annotated[str, typer.Option(help="auto, onnxruntime or openvino.")] = "auto",
    precision: Annotated[
        list[str] | None, typer.Option(help="auto, fp32, fp16 or int8; several stand in one table.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="GGUF type; by default the bundle's first.")] = None,
    dialogue: Annotated[bool, typer.Option(help="Ask the language model as well.")] = True,
    ablations: Annotated[bool, typer.Option(help="Measure without RAE, and without AHD and RAE.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for pictures of hits and misses.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure bundles on labelled clips, through the runtime's own stages."""
    from tvau_edge.benchmarks.dataset import read_dataset
    from tvau_edge.benchmarks.evaluation import evaluate_all
    from tvau_edge.benchmarks.figures import EvaluationFile
    from tvau_edge.benchmarks.tables import tables
    from tvau_edge.runtime.bundle import Bundle
    from tvau_edge.runtime.service.watching import check_place

    for option, place in (("--json", json_file), ("--pictures", pictures and pictures / "hits.png")):
        if place:
            check_place(option, place)
    figures = evaluate_all(
        [Bundle.open(path) for path in bundle],
        read_dataset(data, split),
        precisions=precision or ["auto"],
        backend=backend,
        language=llm,
        dialogue=dialogue,
        ablations=ablations,
        threads=threads,
        pictures=pictures,
        progress=Bar,
    )
    if json_file:
        report = EvaluationFile(data=str(data), split=split, figures=figures)
        json_file.write_text(report.model_dump_json(indent=2) + "\n")
    for table in tables(figures, f"{data}, {split}"):
        Console().print(table)


data_verb = typer.Typer(help="Labelled clips: draw them, check a folder of them.", no_args_is_help=True)


@data_verb.callback()
def data() -> None:
    """Labelled clips: draw them, check a folder of them."""


add_verbs(data_verb, "tvau.data", "tvau data")
