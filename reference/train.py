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
from tvau_edge.reference.miniature import Networks, Sequences
from tvau_edge.reference.narration import NARRATE, QUESTIONS, SYSTEM_PROMPT
from tvau_edge.reference.progress import Course
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.reference.samples import Sample, first_seed, samples
from tvau_edge.reference.seen import see
from tvau_edge.reference.thresholds import choose_thresholds, score_patches
from tvau_edge.reference.tokenizer import train_tokenizer
from tvau_edge.reference.written import write_checkpoint, write_settings

console = Console()
STEPS = {"tower": 1400, "narration": 1000, "ahd": 700, "dialogue": 1200}
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


@torch.no_grad()
def class_features(networks: Networks, sequences: Sequences) -> Tensor:
    """Class-prompt features [2, D] of the frozen language model: mean over tokens, then over prompts."""
    language, embed = networks.language.model.language_model, networks.language.get_input_embeddings()
    rows = []
    for prompts in CLASS_PROMPTS.values():
        means = []
        for prompt in prompts:
            ids = torch.tensor([sequences.encode(prompt)], device=embed.weight.device)
            positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
            hidden = language(
                inputs_embeds=embed(ids), position_ids=positions, use_cache=False
            ).last_hidden_state
            means.append(hidden[0].mean(0))
        rows.append(torch.stack(means).mean(0))
    return torch.stack(rows)


def train_all(
    work: Path, cache: Path, clips: int, seed: int, steps: dict[str, int], before: Path | None = None
) -> Networks:
    """Run every stage that has no file in `work` yet, starting from the tower and language model of `before`."""
    work.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json") if before is not None else ():
        shutil.copyfile(before / name, work / name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    drawn = list(track(samples(range(clips), cache), "drawing clips", total=clips, console=console))
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
    features = class_features(networks, sequences)
    stage(
        work,
        "ahd",
        {"ahd": networks.ahd},
        lambda c: heatmaps.train_heatmaps(networks.ahd, features, drawn, seen, c),
        course("ahd"),
    )

    networks.language = dialogues.add_lora(networks.language)

    def converse(c: Course) -> None:
        evidence = [
            dialogues.read_evidence(networks.tower, networks.ahd, features, taps, device)
            for taps in track(seen, "reading maps", console=console)
        ]
        dialogues.train_dialogue(networks.language, networks.rae, drawn, evidence, sequences, c)

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
            said += [window.narration, *window.answers.values()]
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
    clips: Annotated[int, typer.Option(help="Clips to train on.")] = 760,
    validation: Annotated[int, typer.Option(min=20, help="Clips that the thresholds are chosen on.")] = 80,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    quick: Annotated[float, typer.Option(help="Share of the steps to run, for a try.")] = 1.0,
) -> None:
    """Train every stage and write the checkpoint."""
    steps = {name: max(2, round(count * quick)) for name, count in STEPS.items()}
    networks = train_all(work, cache, clips, seed, steps, before)
    write_checkpoint(out, networks, work)
    # On the weights as they were rounded, with clips that no stage has seen.
    start = first_seed("validation")
    drawn = samples(range(start, start + validation), cache)
    judged = track(drawn, "validation", total=validation, console=console)
    opening, closing = choose_thresholds(*score_patches(Checkpoint.open(out), judged))
    write_settings(out, (opening, closing))
    console.print(f"checkpoint written to {out}; an event opens at {opening} and closes at {closing}")


if __name__ == "__main__":
    typer.run(main)
