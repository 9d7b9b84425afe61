"""The verb `tvau doctor`: what is wrong with a graph, before a device says it."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.quantize.errors import QuantizeError
from tvau_edge.runtime.errors import TvauError

_COLOURS = {"refused": "red", "slow": "yellow", "note": "dim"}
_NAMED = 3  # nodes that are named of those with the same finding


def doctor_verb(
    tensorrt: Annotated[
        Path,
        typer.Option(help="An ONNX graph: tell what TensorRT would refuse or not fuse, without TensorRT."),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the findings here as well.")] = None,
) -> None:
    """Examine a graph; ends with an error when TensorRT would refuse it."""
    from tvau_edge.quantize.tensorrt_check import check

    if not tensorrt.is_file():
        raise QuantizeError(
            f"--tensorrt {tensorrt}: no such file; give the .onnx of a bundle, not its folder"
        )
    findings = check(tensorrt)
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for finding in findings:
        groups[finding.severity, finding.message, finding.source].append(finding.node)
    table = Table(title=f"{tensorrt} and TensorRT's rules")
    for name in ("", "finding", "where", "source of the rule"):
        table.add_column(name)
    for (severity, message, source), nodes in groups.items():
        more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        where = ", ".join(nodes[:_NAMED]) + more
        table.add_row(f"[{_COLOURS[severity]}]{severity}[/]", message, where, source)
    console = Console()
    if groups:
        console.print(table)
    refused = sum(finding.severity == "refused" for finding in findings)
    slow = sum(finding.severity == "slow" for finding in findings)
    console.print(
        f"{refused} refused, {slow} slow; read from the graph alone, TensorRT was not asked", highlight=False
    )
    if json_file:
        try:
            json_file.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
        except OSError as error:
            raise TvauError(f"--json {json_file}: cannot be written: {error.strerror}") from error
    if refused:
        raise QuantizeError(
            f"TensorRT would refuse {tensorrt}; `tvau quantize --target tensorrt` makes one it takes"
        )
