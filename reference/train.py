"""Train the reference checkpoint in the paper's order, in miniature: `python -m tvau_edge.reference.train`.

Stage 0 (tower, narration) makes a small Qwen2.5-VL that sees and tells; it is then frozen. Stage 1 (ahd) trains the
anomaly heatmap decoder from masks. Stage 2 (dialogue) trains the region-aware encoder and a LoRA on the paper's
questions. Each stage leaves a safetensors file in the work folder; a run that was interrupted goes on after the last
one that is there.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.reference import dialogues, heatmaps, pretrain
from tvau_edge.reference.curves import draw_curves
from tvau_edge.reference.miniature import Networks, Sequences
from tvau_edge.reference.named_features import ClassFeatures
from tvau_edge.reference.narration import NARRATE, QUESTIONS, SYSTEM_PROMPT
from tvau_edge.reference.progress import Course
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.reference.samples import GEOMETRY, Sample, first_seed, samples
from tvau_edge.reference.seen import see
from tvau_edge.reference.thresholds import choose_thresholds, score_patches
from tvau_edge.reference.tokenizer import train_tokenizer
from tvau_edge.reference.written import write_checkpoint, write_settings

console = Console()
STEPS = {"tower": 1100, "narration": 900, "ahd": 800, "dialogue": 1500}
_SPLITS = ("train", "pretrain")
_WARM = ("tower", "narration")  # the stages that may start from weights of an earlier run


def stage(
    work: Path,
    name: str,
    modules: dict[str, nn.Module],
    train: Callable[[Course], None],
    course: Course,
    before: Path | None = None,
) -> None:
    """Run a stage, or take its weights from the file that an earlier run left; `before` is where it starts from."""
    path = work / f"{name}.safetensors"
    if path.exists():
        console.print(f"{name}: taken from {path}")
        _load(path, modules, course.device)
        return
    if before is not None and name in _WARM:
        console.print(f"{name}: starts from {before}")
        _load(before / path.name, modules, course.device)
    started = time.monotonic()
    train(course)
    save_file(
        {
            f"{prefix}.{key}": value.contiguous().cpu()
            for prefix, module in modules.items()
            for key, value in module.state_dict().items()
        },
        path,
    )
    seconds = round(time.monotonic() - started)
    record = {"stage": name, "steps": course.length, "seconds": seconds, "losses": course.losses}
    (work / f"{name}.json").write_text(json.dumps(record))
    console.print(f"{name}: {course.length} steps in {seconds} s, loss {np.mean(course.losses[-100:]):.4f}")


def _load(path: Path, modules: dict[str, nn.Module], device: torch.device) -> None:
    weights = load_file(path, device=str(device))
    for prefix, module in modules.items():
        start = f"{prefix}."
        own = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
        module.load_state_dict(own)


def train_all(
    work: Path,
    cache: Path,
    clips: tuple[int, int],
    seed: int,
    steps: dict[str, int],
    before: Path | None = None,
) -> Networks:
    """Run every stage that has no file in `work` yet.

    Args:
        work: folder of the stages' weights.
        cache: folder of drawn clips.
        clips: of the training split, and of the pre-training split, which only stage 0 sees.
        seed: of weights and batches.
        steps: of each stage.
        before: work folder of an earlier run, whose tower and language model go on.
    """
    work.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json") if before is not None else ():
        shutil.copyfile(before / name, work / name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seeds = [
        first_seed(split) + index
        for split, count in zip(_SPLITS, clips, strict=True)
        for index in range(count)
    ]
    drawn = list(track(samples(seeds, cache), "drawing clips", total=len(seeds), console=console))
    own = drawn[: clips[0]]
    tokenizer = (
        Tokenizer.from_file(str(work / "tokenizer.json")) if (work / "tokenizer.json").exists() else None
    )
    tokenizer = tokenizer or train_tokenizer(texts(drawn), work)
    networks = Networks.build(tokenizer, seed).to(device)
    sequences = Sequences(tokenizer)
    language = networks.language.model.language_model

    def course(name: str) -> Course:
        return Course(steps[name], seed, device)

    tower = {"tower": networks.tower}
    stage(
        work,
        "tower",
        tower,
        lambda c: pretrain.train_tower(networks.tower, drawn, c),
        course("tower"),
        before,
    )

    seen = see(networks.tower, drawn, work / "seen.npy", device)

    def narrate(c: Course) -> None:
        pretrain.train_narration(networks.language, networks.tower, drawn, seen, sequences, c)

    told = {"merger": networks.tower.merger, "language": language}
    stage(work, "narration", told, narrate, course("narration"), before)
    for frozen in (networks.tower, networks.language):
        frozen.requires_grad_(False)
    features = ClassFeatures.read(networks, sequences)
    stage(
        work,
        "ahd",
        {"ahd": networks.ahd},
        lambda c: heatmaps.train_heatmaps(networks.ahd, features, own, seen, c),
        course("ahd"),
    )

    networks.language = dialogues.add_lora(networks.language)

    def converse(c: Course) -> None:
        evidence = [
            dialogues.read_evidence(networks.tower, networks.ahd, features.all(), taps, device)
            for taps in track(seen[: len(own)], "reading maps", console=console)
        ]

        def other_maps(clip: int, start: int, named: Sequence[int]) -> Tensor:
            taps = seen[clip, start : start + GEOMETRY.temporal_patches]
            values = torch.from_numpy(np.array(taps)).to(device).float().transpose(0, 1)
            return heatmaps.maps(networks.ahd, features.of(named), values).half()

        dialogues.train_dialogue(networks.language, networks.rae, own, evidence, other_maps, sequences, c)

    adapted = {"rae": networks.rae, "lora": language}
    stage(work, "dialogue", adapted, converse, course("dialogue"))
    return networks


def texts(drawn: Sequence[Sample]) -> list[str]:
    """What the tokenizer is trained on."""
    said = [
        NARRATE,
        SYSTEM_PROMPT,
        "system",
        "user",
        "assistant",
        *(question.text for question in QUESTIONS),
    ] * 50
    for sample in drawn:
        for window in sample.windows:
            said += [window.narration, *chain.from_iterable(window.answers.values())]
    for prompts in CLASS_PROMPTS.values():
        said += prompts * 20
    return said


def main(
    out: Annotated[Path, typer.Option(help="Folder of the checkpoint.")] = Path("reference/checkpoint"),
    work: Annotated[Path, typer.Option(help="Folder for the stages' weights; may be large.")] = Path(
        "build/reference"
    ),
    cache: Annotated[Path, typer.Option(help="Folder for drawn clips; may be large.")] = Path(
        "build/reference/clips"
    ),
    before: Annotated[
        Path | None, typer.Option(help="Work folder of an earlier run, whose tower and language model go on.")
    ] = None,
    clips: Annotated[int, typer.Option(help="Clips of the training split.")] = 800,
    pretraining: Annotated[int, typer.Option(help="Clips that only tower and language model see.")] = 700,
    validation: Annotated[int, typer.Option(min=20, help="Clips that the thresholds are chosen on.")] = 80,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    quick: Annotated[float, typer.Option(help="Share of the steps to run, for a try.")] = 1.0,
) -> None:
    """Train every stage and write the checkpoint."""
    steps = {name: max(2, round(count * quick)) for name, count in STEPS.items()}
    networks = train_all(work, cache, (clips, pretraining), seed, steps, before)
    write_checkpoint(out, networks, work)
    draw_curves(work, work / "curves.png")
    # On the weights as they were rounded, with clips that no stage has seen.
    start = first_seed("validation")
    drawn = samples(range(start, start + validation), cache)
    judged = track(drawn, "validation", total=validation, console=console)
    opening, closing = choose_thresholds(*score_patches(Checkpoint.open(out), judged))
    write_settings(out, (opening, closing))
    console.print(f"checkpoint written to {out}; an event opens at {opening} and closes at {closing}")


if __name__ == "__main__":
    typer.run(main)
