"""How good a bundle is on drawn clips that nobody trained on: `python -m tvau_edge.reference.evaluate`.

Clips are drawn, written as H.264 files, and go through the runtime's own stages: source, sampler, vision, RAE and
dialogue. Figures are of drawn scenes; they say nothing of real ones.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tvau_edge.benchmarks.answers import accuracy, bleu4
from tvau_edge.benchmarks.frames import FrameScores, macro_auc, micro_auc, pixel_auc
from tvau_edge.benchmarks.regions import VideoRegions, region_scores
from tvau_edge.reference.clip import FRAMES_PER_SECOND, Clip, DrawnFrame
from tvau_edge.reference.narration import MIN_AREA, answers, is_abnormal, tracks
from tvau_edge.reference.samples import anomaly_of, first_seed
from tvau_edge.reference.scene import HEIGHT, WIDTH
from tvau_edge.reference.storage import write_clip
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.dialogue import Dialogue, DialogueResult, context_needed
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.llama import LanguageModel
from tvau_edge.runtime.manifest import Geometry
from tvau_edge.runtime.rae import Rae
from tvau_edge.runtime.regions import find_regions
from tvau_edge.runtime.sampler import Sampler
from tvau_edge.runtime.source import Source
from tvau_edge.runtime.vision import Evidence, Vision

console = Console(stderr=True)
_CELL = 0.10  # share of a cell from which it counts as abnormal
_FAINT = 0.05  # heat from which a region is a detection; its score ranks it


@dataclass
class Collected:
    """What was seen of all clips, beside the truth."""

    frames: dict[str | None, list[FrameScores]] = field(default_factory=lambda: defaultdict(list))
    cells: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = field(default_factory=list)
    regions: list[VideoRegions] = field(default_factory=list)
    said_yes: list[bool] = field(default_factory=list)
    is_yes: list[bool] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    right: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unclear: int = 0  # windows in which nobody could tell


def evaluate(
    bundle: Bundle, seeds: Sequence[int], backend: str = "auto", precision: str = "auto"
) -> dict[str, float | int | str | dict[str, float]]:
    """Evaluate a bundle with a language model on the drawn clips of `seeds`.

    Returns:
        Figures in percent, by name; `per_anomaly` holds the micro-AUC of each anomaly's clips.

    Raises:
        LanguageModelError: the bundle has no language model.
    """
    manifest, file = bundle.manifest, bundle.language()
    if file is None or manifest.language is None:
        raise LanguageModelError(f"{bundle.path} has no language model, so its answers cannot be evaluated")
    vision, rae = Vision.open(bundle, backend, precision), Rae.open(bundle)
    collected = Collected()
    context = context_needed(manifest.language, manifest.geometry, manifest.base_tokens)
    with (
        LanguageModel(bundle.file(file.file), context=context) as model,
        tempfile.TemporaryDirectory() as folder,
    ):
        dialogue = Dialogue(model, manifest.language, manifest.geometry)
        for seed in track(seeds, "evaluating", console=console):
            clip = Clip.draw(seed, anomaly_of(seed))
            path = Path(folder) / "clip.mp4"
            write_clip(clip, path)
            drawn = list(clip.frames())
            evidence = look(path, vision, manifest.geometry)
            _collect_frames(collected, clip, drawn, evidence, manifest.geometry)
            _collect_answers(collected, clip, drawn, evidence, manifest.geometry, rae, dialogue)
    return {
        "data": f"drawn clips, seeds {seeds[0]} to {seeds[-1]}",
        "clips": len(seeds),
        "vision": f"{vision.file.backend} {vision.file.precision}",
        "language": file.type,
        **_figures(collected),
    }


def look(path: Path, vision: Vision, geometry: Geometry) -> list[Evidence]:
    """Run a video through source, sampler and vision."""
    sampler = Sampler(geometry)
    with Source(str(path), "evaluation") as source:
        return [item for frame in source for patch in sampler.push(frame) for item in vision.run([patch])]


def _collect_frames(
    collected: Collected,
    clip: Clip,
    drawn: Sequence[DrawnFrame],
    evidence: Sequence[Evidence],
    geometry: Geometry,
) -> None:
    per_patch = round(geometry.seconds_per_patch * FRAMES_PER_SECOND)
    rows, columns = geometry.grid
    labels, scores, truth, detections = [], [], [], []
    for index, frame in enumerate(drawn[: len(evidence) * per_patch]):
        seen = evidence[index // per_patch]
        abnormal = [thing for thing in frame.objects if thing.state.abnormal]
        labels.append(sum(thing.area for thing in abnormal) >= MIN_AREA)
        scores.append(seen.score)
        truth += [(thing.number, index, *thing.box) for thing in abnormal if thing.area >= MIN_AREA]
        for region in find_regions(seen.heatmap, _FAINT):
            x1, y1, x2, y2 = region.box
            box = (x1 * WIDTH, y1 * HEIGHT, x2 * WIDTH - 1, y2 * HEIGHT - 1)
            detections.append((index, *box, region.score))
        if index % per_patch == per_patch // 2:
            mask = np.isin(frame.mask, [thing.number for thing in abnormal]).astype(np.float32)
            share = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
            collected.cells.append((share >= _CELL, seen.heatmap))
    collected.frames[clip.anomaly].append(FrameScores(np.array(labels), np.array(scores)))
    collected.regions.append(VideoRegions(len(labels), np.array(truth), np.array(detections)))


def _collect_answers(
    collected: Collected,
    clip: Clip,
    drawn: Sequence[DrawnFrame],
    evidence: Sequence[Evidence],
    geometry: Geometry,
    rae: Rae,
    dialogue: Dialogue,
) -> None:
    """Ask about the window in the middle of the clip."""
    patches = geometry.temporal_patches
    start = (len(evidence) - patches) // 2
    per_patch = round(geometry.seconds_per_patch * FRAMES_PER_SECOND)
    stretch = drawn[start * per_patch : (start + patches) * per_patch]
    found = tracks(clip, stretch)
    abnormal = is_abnormal(found, len(stretch))
    if abnormal is None:
        collected.unclear += 1
        return
    window = evidence[start : start + patches]
    p_an = rae.run(np.stack([item.h_c for item in window]))
    result: DialogueResult = dialogue.run(np.stack([item.p_v for item in window]), p_an)
    collected.said_yes.append(result.p_yes > 0.5)
    collected.is_yes.append(abnormal)
    if abnormal:
        for key, right in answers(found).items():
            collected.said[key].append(result.answers[key])
            collected.right[key].append(right)


def _figures(collected: Collected) -> dict[str, float | int | dict[str, float]]:
    videos = [video for group in collected.frames.values() for video in group]
    labels, heat = (
        np.concatenate([part.ravel() for part in column]) for column in zip(*collected.cells, strict=True)
    )
    regions = region_scores(collected.regions)
    normal = collected.frames.get(None, [])
    trajectory_said = collected.said["from"] + collected.said["to"]
    trajectory_right = collected.right["from"] + collected.right["to"]
    return {
        "micro_auc": 100 * micro_auc(videos),
        "macro_auc": 100 * macro_auc(videos),
        "pixel_auc": 100 * pixel_auc(labels, heat),
        "rbdc": 100 * regions.rbdc,
        "tbdc": 100 * regions.tbdc,
        "yes_no": 100 * accuracy(collected.said_yes, collected.is_yes),
        "bleu4_target": bleu4(collected.said["target"], [[right] for right in collected.right["target"]]),
        "bleu4_motion": bleu4(collected.said["motion"], [[right] for right in collected.right["motion"]]),
        "bleu4_trajectory": bleu4(trajectory_said, [[right] for right in trajectory_right]),
        "windows_asked": len(collected.is_yes),
        "windows_unclear": collected.unclear,
        "per_anomaly": {
            name: 100 * micro_auc([*group, *normal])
            for name, group in collected.frames.items()
            if name is not None
        },
    }


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    count: Annotated[int, typer.Option(min=2, help="Clips; every second one is normal.")] = 120,
    backend: Annotated[str, typer.Option(help="auto, onnxruntime or openvino.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or int8.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Evaluate a bundle on drawn clips."""
    start = first_seed(split)
    figures = evaluate(Bundle.open(bundle), range(start, start + count), backend, precision)
    table = Table(title=f"{bundle}: {figures['clips']} {figures['data']}")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, value in figures.items():
        if isinstance(value, dict):
            for inner, number in value.items():
                table.add_row(f"  {inner}", f"{number:.1f}")
        else:
            table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
