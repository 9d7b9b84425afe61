"""The verbs `tvau demo` and `tvau data draw`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

console = Console(stderr=True)


def draw(
    out: Annotated[Path, typer.Option(help="Folder of the data set, in UBnormal's layout.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip; the others count up.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Clips; every second one is normal.")] = 10,
    split: Annotated[
        str,
        typer.Option(
            help="train, validation or test, whose anomalies differ; familiar: those of train on other streets."
        ),
    ] = "test",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Draw surveillance clips with masks, tracks and a JSON of every object."""
    from tvau_edge.reference.samples import first_seed
    from tvau_edge.reference.storage import write_split

    start = first_seed(split) + seed
    seeds = range(start, start + count)
    for _ in track(write_split(out, split, seeds, workers), "drawing", total=count, console=console):
        pass
    console.print(f"{count} clips of the {split} split in {out}", highlight=False)


def demo_verb(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; by default the reference checkpoint.")
    ] = None,
) -> None:
    """Run the main job on this machine: export, watch a drawn clip, receive the verdicts over MQTT."""
    from tvau_edge.reference.demo import run_demo

    run_demo(out, checkpoint)
