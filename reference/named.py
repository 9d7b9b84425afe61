"""What naming one behaviour does to the scores of all: `python -m tvau_edge.reference.named`.

The prompts are read by the bundle's language model as on a device; the figures are of drawn clips.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.metrics import roc_auc_score

from tvau_edge.reference.anomalies import ABNORMAL
from tvau_edge.reference.samples import SHOWN, first_seed, samples
from tvau_edge.reference.windows import speaking
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.language.class_prompts import CONTEXT, nested, read_checked
from tvau_edge.runtime.language.llama import LanguageModel

console = Console(stderr=True)
_ALL, _DEVICE = "as exported", "read on the device"
_COLUMNS = tuple(f"{name}{when}" for name in ("auc", "own", "others", "normal") for when in ("", "_before"))


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    split: Annotated[str, typer.Option(help="train, validation, test or familiar.")] = "familiar",
    count: Annotated[int, typer.Option(min=20, help="Clips; every second one is normal.")] = 40,
    kind: Annotated[str | None, typer.Option("--type", help="GGUF type; none: the first.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder of drawn clips.")] = Path("build/reference/clips"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Name each behaviour alone, and compare the scores of its patches with those of the other anomalies."""
    start, (opened, _, file) = first_seed(split), speaking(bundle, kind)
    own = opened.manifest.class_prompts
    behaviours = SHOWN[split]
    with LanguageModel(opened.file(file.file), context=CONTEXT) as model:
        device, cosine = read_checked(model, opened, own.normal, own.abnormal)
        named = [read_checked(model, opened, own.normal, nested(ABNORMAL[name]))[0][1] for name in behaviours]
    # Rows of class features, and which two of them each set of prompts is made of.
    rows = np.stack([*opened.class_features(), *device, *named])
    pairs = {_ALL: (0, 1), _DEVICE: (2, 3)} | {name: (2, 4 + k) for k, name in enumerate(behaviours)}
    vision = Vision.open(opened, precision="fp32")
    scores: dict[str, list[float]] = {name: [] for name in pairs}
    labels: list[bool] = []
    shown: dict[str, list[bool]] = {name: [] for name in behaviours}
    for clip in track(
        samples(range(start, start + count), cache, 1), "looking", total=count, console=console
    ):
        maps = similarities(vision, clip.frames, rows)
        for name, pair in pairs.items():
            scores[name] += [patch_score(heat) for heat in heatmap(maps[:, list(pair)])]
        labels += list(clip.labels)
        for name in behaviours:
            shown[name] += list((clip.behaviour == 1 + list(ABNORMAL).index(name)).any((1, 2)))
    vision.close()
    figures: dict[str, dict[str, float]] = {"cosine of the device's reading": {"value": cosine}}
    seen = np.array(labels)
    for name in (_ALL, _DEVICE):
        figures[f"micro-AUC, {name}"] = {"value": 100 * float(roc_auc_score(seen, scores[name]))}
    for name in behaviours:
        own = seen & np.array(shown[name])
        figures[name] = change(np.array(scores[name]), np.array(scores[_ALL]), own, seen)
    table = Table(
        box=None,
        title=f"{opened.manifest.name} {file.type}: {count} drawn clips; scores when one behaviour is named",
    )
    for column in ("", *_COLUMNS):
        table.add_column(column.replace("_", "\n"), justify="right" if column else "left")
    for name, row in figures.items():
        if "value" in row:
            console.print(f"{name}: {row['value']:.3f}", highlight=False)
        else:
            table.add_row(name, *(f"{row[column]:.3f}" for column in _COLUMNS))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def similarities(vision: Vision, frames: NDArray[np.uint8], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarity of each cell to each row of class features: frames [K, 2, H, W, 3], rows [n, D] -> [K, n, H', W'].

    The graph takes two rows at a time; n is even.
    """
    patches = [TemporalPatch("drawn", k, pair, (k, k), float(k)) for k, pair in enumerate(frames)]
    parts = []
    for start in range(0, len(rows), 2):
        vision.set_class_features(rows[start : start + 2])
        parts.append(np.stack([item.h_c for item in vision.run(patches)]))
    return np.concatenate(parts, axis=1)


def change(
    now: NDArray[np.float64], before: NDArray[np.float64], own: NDArray[np.bool_], seen: NDArray[np.bool_]
) -> dict[str, float]:
    """What naming a behaviour changes, over temporal patches: [K] scores, those that show it, those with any anomaly.

    Returns:
        Mean scores of the patches that show what is named, of those that show another anomaly, and of the normal; and
        `auc`, how well the first are told from the normal: means alone do not tell, since all scores may fall.
    """
    others, told = seen & ~own, own | ~seen
    figures = {}
    for name, scores in (("", now), ("_before", before)):
        figures[f"auc{name}"] = float(roc_auc_score(own[told], scores[told]))
        for kind, patches in (("own", own), ("others", others), ("normal", ~seen)):
            figures[f"{kind}{name}"] = float(scores[patches].mean())
    return figures


if __name__ == "__main__":
    typer.run(main)
