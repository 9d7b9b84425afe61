"""The verb `tvau export`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.devices.errors import TvauError
from tvau_edge.quantize.steps import ShownSteps
from tvau_edge.runtime.bundle import Bundle

console = Console(stderr=True)


def export_verb(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    frames: Annotated[
        Path,
        typer.Option(help="Video that the graphs are compared, and INT8 is calibrated, on: best your own."),
    ],
    size: Annotated[str | None, typer.Option(help="WxH of the model's input, multiples of 28.")] = None,
    backends: Annotated[str, typer.Option(help="Of onnxruntime, openvino.")] = "onnxruntime,openvino",
    int8: Annotated[bool, typer.Option(help="Add an INT8 vision graph.")] = True,
    llm: Annotated[
        str, typer.Option(help="GGUF type: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, or none.")
    ] = "q8_0",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the manifest here as well.")] = None,
) -> None:
    """Turn a checkpoint into a bundle: ONNX, OpenVINO and GGUF, each compared with torch."""
    from tvau_edge.export.bundle import Options, export_bundle

    names = tuple(name.strip() for name in backends.split(",") if name.strip())
    language = None if llm.lower() == "none" else llm.lower()
    options = Options(frames, _size(size), names, int8, language)
    with ShownSteps(console) as steps:
        bundle, made = export_bundle(checkpoint, out, options, steps)
    console.print(f"licence of the checkpoint: {bundle.manifest.licence}", highlight=False)
    console.print(f"{out}: {'made' if made else 'unchanged, from the same checkpoint and options'}")
    Console().print(report(bundle))
    if json_file:
        json_file.write_text(json.dumps(bundle.manifest.model_dump(mode="json"), indent=2) + "\n")


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise TvauError(f"--size {text}: expected width and height as WxH, such as 252x140")
    return int(parts[0]), int(parts[1])


def report(bundle: Bundle) -> Table:
    """The bundle's files, and how far each is from the checkpoint."""
    table = Table(title=str(bundle.path))
    for name, justify in (("file", "left"), ("KiB", "right"), ("compared", "left")):
        table.add_column(name, justify=justify)
    for name, entry in bundle.manifest.files.items():
        checks = [
            f"{check.tensor}: {check.metric} {check.value:.6g} (limit {check.limit:g})"
            for check in bundle.manifest.checks
            if check.artifact == name
        ]
        table.add_row(name, f"{entry.size / 1024:,.0f}", "\n".join(checks))
    return table
