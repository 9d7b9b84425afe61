"""The verbs `tvau demo` and `tvau data`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

console = Console(stderr=True)
data_verb = typer.Typer(help="Drawn surveillance clips with their ground truth.", no_args_is_help=True)


@data_verb.callback()
def data() -> None:
    """Drawn surveillance clips with their ground truth."""


@data_verb.command()
def draw(
    out: Annotated[Path, typer.Option(help="Folder for the clips.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the first clip; the others count up.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="Clips; every second one is normal.")] = 10,
    split: Annotated[str, typer.Option(help="train, validation or test: seeds that never meet.")] = "test",
) -> None:
    """Draw clips: H.264 and a JSON of every object beside each."""
    from tvau_edge.reference.clip import Clip
    from tvau_edge.reference.samples import anomaly_of, first_seed
    from tvau_edge.reference.storage import write_clip

    start = first_seed(split) + seed
    for number in track(range(start, start + count), "drawing", console=console):
        write_clip(Clip.draw(number, anomaly_of(number)), out / f"{split}_{number}.mp4")
    console.print(f"{count} clips in {out}", highlight=False)


def demo_verb(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; by default the reference checkpoint.")
    ] = None,
) -> None:
    """Run the main job on this machine: export, watch a drawn clip, receive the verdicts over MQTT."""
    from tvau_edge.reference.demo import run_demo

    run_demo(out, checkpoint)
