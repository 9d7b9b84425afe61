"""What a dialogue costs, and says, by what its questions see of each other: `python -m tvau_edge.reference.histories`.

Beside the three histories stands a naive chat loop, which evaluates the whole conversation for each question.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.benchmarks.answers import bleu4
from tvau_edge.reference.samples import first_seed
from tvau_edge.reference.windows import SeenWindow, seen_windows, speaking
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.llama import LanguageModel

console = Console(stderr=True)
HISTORIES = ("naive", "all", "first", "none")


def naive(
    model: LanguageModel, dialogue: Dialogue, questions: dict[str, str], window: SeenWindow
) -> dict[str, str]:
    """Ask as a chat program does that keeps nothing: everything is evaluated again for each question."""
    for key, text in questions.items():
        said = dialogue.turns if key != next(iter(questions)) else ()
        model.clear()
        dialogue.begin(window.p_v, window.p_an)
        for turn in said:
            dialogue.recall(turn.key, turn.question, turn.text, turn.said)
        dialogue.ask(text, key)
    return {turn.key: turn.text for turn in dialogue.turns}


def main(
    bundle: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    split: Annotated[str, typer.Option(help="train, validation, test or familiar.")] = "validation",
    count: Annotated[int, typer.Option(min=2, help="Clips; every second one is normal.")] = 20,
    kind: Annotated[str | None, typer.Option("--type", help="GGUF type; none: the first.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of llama.cpp.")] = 1,
    exact: Annotated[
        bool, typer.Option(help="Keys and values in f32: the difference of the ways alone.")
    ] = False,
    cache: Annotated[Path, typer.Option(help="Folder of drawn clips.")] = Path("build/reference/clips"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare the ways to ask on drawn windows."""
    start, (opened, language, file) = first_seed(split), speaking(bundle, kind)
    manifest, geometry = opened.manifest, opened.manifest.geometry
    questions = {question.key: question.text for question in language.questions}
    windows = list(seen_windows(opened, range(start, start + count), cache, per_clip=1))
    figures: dict[str, dict[str, float]] = {}
    answers: dict[str, list[dict[str, str]]] = {}
    with LanguageModel(
        opened.file(file.file),
        context=context_needed(language, geometry, manifest.base_tokens),
        branches=len(questions),
        threads=threads,
        exact_cache=exact,
    ) as model:
        for history in HISTORIES:
            dialogue = Dialogue(model, language, geometry, history="all" if history == "naive" else history)
            times, answers[history], yes = [], [], []
            for window in windows:
                began = time.perf_counter()
                if history == "naive":
                    said = naive(model, dialogue, questions, window)
                    yes.append(said.get("anomaly", "").startswith("Yes"))
                else:
                    result = dialogue.run(window.p_v, window.p_an)
                    said = result.answers
                    yes.append(result.p_yes is not None and result.p_yes > 0.5)
                times.append(time.perf_counter() - began)
                answers[history].append(said)
            dialogue.close()
            # The fastest: of a busy machine the median tells of its load.
            figures[history] = {"ms": 1e3 * min(times), "median_ms": 1e3 * float(np.median(times))}
            figures[history] |= judged(answers[history], yes, windows)
            same = [
                ours[key] == theirs[key]
                for ours, theirs in zip(answers[history], answers["naive"], strict=True)
                for key in questions
            ]
            figures[history]["same_answers_as_naive"] = 100 * float(np.mean(same))
            figures[history]["times_naive"] = figures["naive"]["ms"] / figures[history]["ms"]
    table = Table(
        title=f"{manifest.name} {file.type}: {len(windows)} windows of drawn clips, {threads} threads"
    )
    table.add_column("")
    for history in HISTORIES:
        table.add_column(history, justify="right")
    for name in figures["naive"]:
        table.add_row(name, *(f"{figures[history][name]:.1f}" for history in HISTORIES))
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


def judged(said: list[dict[str, str]], yes: list[bool], windows: list[SeenWindow]) -> dict[str, float]:
    """Accuracy of yes and no, and BLEU-4 of the answers about windows with an anomaly, percent."""
    found = {"yes_no": 100 * float(np.mean([a == w.abnormal for a, w in zip(yes, windows, strict=True)]))}
    abnormal = [(answers, window) for answers, window in zip(said, windows, strict=True) if window.abnormal]
    for key in said[0]:
        if key != "anomaly" and abnormal:
            found[f"bleu4_{key}"] = bleu4(
                [a[key] for a, _ in abnormal], [w.answers[key] for _, w in abnormal]
            )
    return found


if __name__ == "__main__":
    typer.run(main)
