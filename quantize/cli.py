"""The verb `tvau quantize`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.quantize.steps import ShownSteps
from tvau_edge.runtime.errors import TvauError

console = Console(stderr=True)


def quantize_verb(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle with its float graphs.")],
    calibration: Annotated[
        list[str],
        typer.Option(
            help="A video, a folder of videos or images, or rtsp://… of your scene; may be repeated."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new bundle; BUNDLE-int8 by default.")
    ] = None,
    target: Annotated[str, typer.Option(help="Of onnx, openvino, tensorrt; or none.")] = "onnx",
    llm: Annotated[str, typer.Option(help="GGUF types: f16, q8_0, q6_k, q5_k_m, q4_k_m; or none.")] = "none",
    frames: Annotated[int, typer.Option(min=8, help="Temporal patches to calibrate on.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="For which a live source is watched.")] = 120.0,
    agreement: Annotated[
        float,
        typer.Option(min=0, max=1, help="Least cosine of outputs; layers stay in float until it is met."),
    ] = 0.995,
    floating: Annotated[
        Literal["f32", "bf16"], typer.Option("--float", help="What stays in float, in OpenVINO.")
    ] = "f32",
    data: Annotated[Path | None, typer.Option(help="Labelled data, for the gate.")] = None,
    max_disagreement: Annotated[
        float, typer.Option(min=0, max=100, help="Percent of patches on which events may disagree.")
    ] = 2.0,
    min_correlation: Annotated[float, typer.Option(min=0, max=1, help="Of the heatmaps' cells.")] = 0.98,
    max_auc_loss: Annotated[float, typer.Option(min=0, help="Points of micro-AUC, with --data.")] = 0.5,
    max_region_loss: Annotated[float, typer.Option(min=0, help="Points of RBDC, TBDC, with --data.")] = 1.0,
    max_bleu_loss: Annotated[float, typer.Option(min=0, help="Points of BLEU-4, with --data.")] = 1.0,
    max_yes_no_loss: Annotated[float, typer.Option(min=0, help="Points of Yes/No, with --data.")] = 0.5,
    accept: Annotated[bool, typer.Option("--accept", help="Write what the gate refuses; recorded.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here as well.")] = None,
) -> None:
    """Quantize a bundle on your own footage, and refuse it when it lost too much."""
    from tvau_edge.quantize.bundle import Options, quantize_bundle
    from tvau_edge.quantize.gate import Limits

    limits = Limits(
        min_correlation,
        max_disagreement / 100,
        max_auc_loss,
        max_region_loss,
        max_bleu_loss,
        max_yes_no_loss,
    )
    options = Options(
        tuple(calibration),
        _names(target),
        _names(llm.lower()),
        frames,
        seconds,
        agreement,
        floating,
        limits,
        data,
        accept,
    )
    place = out or bundle.with_name(f"{bundle.resolve().name}-int8")
    with ShownSteps(console) as steps:
        outcome = quantize_bundle(bundle, place, options, steps)
    if outcome.failures:
        console.print("[yellow]accepted although the gate refuses it:[/]")
        for text in outcome.failures:
            console.print(f"  {text}", markup=False, highlight=False)
    if outcome.report["graphs"]:
        Console().print(table(place, outcome.report))
    if outcome.report["language"]:
        Console().print(types_table(outcome.report))
    console.print(f"report: {place / 'quantization.html'} and {place / 'quantization.txt'}", highlight=False)
    if json_file:
        try:
            json_file.write_text(json.dumps(outcome.report, indent=2) + "\n")
        except OSError as error:
            raise TvauError(f"--json {json_file}: cannot be written: {error.strerror}") from error


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names


def table(place: Path, report: dict) -> Table:
    """What was made, and how alike it is to the float graph."""
    shown = Table(title=str(place), box=None, padding=(0, 1, 0, 0))
    headers = ("cosine", "layers\nin float", "heatmap\ncorrelation", "events\nfloat / new", "disagree")
    shown.add_column("graph", no_wrap=True)
    for name in headers:
        shown.add_column(name, justify="right")
    compared = {entry["graph"]: entry for entry in report["comparisons"]}
    for name, record in report["graphs"].items():
        left = f"{len(record['left_in_float'])} of {len(record['layers'])}" if record.get("curve") else ""
        row = compared.get(record.get("graph", ""))
        cells = ["", "", ""]
        if row:
            value = row["correlation"]
            cells = [
                "undefined" if value is None else f"{value:.5f}",
                f"{row['events']} / {row['quantized_events']}",
                f"{100 * row['disagreement']:.2f} %",
            ]
        shown.add_row(name, f"{record['agreement']:.5f}", left, *cells)
    return shown


def types_table(report: dict) -> Table:
    """What each GGUF type costs and keeps."""
    from tvau_edge.quantize.labelled import ANSWERS, choosing

    answers = tuple(ANSWERS) if report["labelled"] else ()
    shown = Table(title="language model", box=None, padding=(0, 1, 0, 0))
    headers = [name.replace("bleu4_", "BLEU-4\n").replace("yes_no", "Yes/No\n%") for name in answers]
    for name in ("type", "MiB", "tokens\n/s", "KL\nnats", "same\nchoice", *headers):
        shown.add_column(name, justify="left" if name == "type" else "right")
    for entry in choosing(report["language"], report["labelled"]):
        figures = [entry["answers"][name] for name in answers]
        shown.add_row(
            entry["type"],
            f"{entry['bytes'] / 2**20:.1f}",
            f"{entry['tokens_per_second']:.0f}",
            f"{entry['divergence']:.1e}",
            f"{100 * entry['same_choice']:.1f} %",
            *("-" if value is None else f"{value:.2f}" for value in figures),
        )
    return shown
