"""Float beside INT8 on labelled data: what quantization costs in the figures that count."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvau_edge.benchmarks.clips import LabelledClip
from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.evaluation import evaluate
from tvau_edge.quantize.gate import Limits
from tvau_edge.quantize.steps import Steps
from tvau_edge.quantize.targets import Made
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.extras import require

# Figure -> the limit that it falls under.
DETECTION = {"micro_auc": "micro_auc", "rbdc": "regions", "tbdc": "regions"}
ANSWERS = {
    "yes_no": "yes_no",
    "bleu4_target": "bleu4",
    "bleu4_motion": "bleu4",
    "bleu4_trajectory": "bleu4",
}
Row = dict[str, Any]  # graph, precision: str, language: str or None, figures: dict of percent or None


def labelled_figures(
    bundle: Bundle,
    made: Sequence[Made],
    languages: Sequence[dict[str, Any]],
    data: Path,
    limits: Limits,
    work: Work,
    steps: Steps,
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate the new bundle's float graph, its INT8 graphs, and its language models, on the test split.

    Detection is that of each vision graph. The dialogue is held over the float graph's evidence with the language
    model that was quantized from and with each type, so that a loss is the type's own; and over the first INT8 graph
    with the first type, as the device will.

    Returns:
        The rows for the report, the float row first, and what is beyond the limits.

    Raises:
        DataError: the data cannot be read.
        MissingExtraError: the extra `bench` is not installed.
    """
    require("--data", ["bench"])
    clips = read_dataset(data)
    base = languages[0]["source"] if languages else _kind(bundle)
    run = _Runner(bundle, clips, str(data), work, steps)
    rows = [run.row("float", "onnxruntime", "fp32", base)]
    for entry in languages:
        if entry["type"] != base:
            rows.append(run.row(f"language model {entry['type']}", "onnxruntime", "fp32", entry["type"]))
    graphs = [graph for graph in made if graph.kind == "vision" and graph.runs_here]
    for number, graph in enumerate(graphs):
        # All together only once, as the device will run it; the others are looked at without the dialogue.
        language = (languages[0]["type"] if languages else base) if number == 0 else None
        name = f"{graph.file.backend} {graph.file.precision}" + (f" with {language}" if language else "")
        rows.append(run.row(name, graph.file.backend, graph.file.precision, language))
    worse = [text for row in rows[1:] for text in losses(rows[0], row, limits)]
    return {"data": f"{data}, {len(clips)} clips of the test split", "rows": rows}, worse


def losses(expected: Row, row: Row, limits: Limits) -> list[str]:
    """What a row loses beyond the limits, each as a sentence; a figure that one of the two lacks is passed over."""
    found = []
    for figure, limit in {**DETECTION, **ANSWERS}.items():
        before, after = expected["figures"].get(figure), row["figures"].get(figure)
        most = getattr(limits, limit)
        if before is not None and after is not None and before - after > most:
            found.append(
                f"{row['graph']}: {figure} {after:.2f} %, {before - after:.2f} points below the float bundle's "
                f"{before:.2f}, limit {most:g}"
            )
    return found


def choosing(language: Mapping[str, dict[str, Any]], labelled: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a person chooses a GGUF type by: its record, with its answers over the float graph's evidence.

    Args:
        language: records of `gguf_types.make_types`, by type.
        labelled: of `labelled_figures`; empty where no labelled data was given.

    Returns:
        The records in the same order, each with `answers`: percent or None, by the names of `ANSWERS`.
    """
    figures = {
        row["language"]: row["figures"]
        for row in labelled.get("rows", ())
        if row["precision"] == "fp32" and row["language"] is not None
    }
    return [
        {**entry, "answers": {name: figures.get(kind, {}).get(name) for name in ANSWERS}}
        for kind, entry in language.items()
    ]


def _kind(bundle: Bundle) -> str | None:
    file = bundle.language()
    return file.type if file else None


class _Runner:
    """Evaluates one bundle on the same clips again and again."""

    def __init__(
        self, bundle: Bundle, clips: Sequence[LabelledClip], data: str, work: Work, steps: Steps
    ) -> None:
        self._bundle, self._clips, self._data, self._work, self._steps = bundle, clips, data, work, steps

    def row(self, name: str, backend: str, precision: str, language: str | None) -> Row:
        """Figures of one graph with one language model, or without a dialogue; done once, as any other step."""
        step = f"{self._data}, {len(self._clips)} clips: {name}"
        return self._work.step(step, [], lambda: self._evaluate(name, backend, precision, language))

    def _evaluate(self, name: str, backend: str, precision: str, language: str | None) -> Row:
        self._steps.begin(f"labelled data: {name}")
        advance: Callable[[int, int], None] = self._steps.advance
        figures = evaluate(
            self._bundle,
            self._clips,
            backend=backend,
            precision=precision,
            language=language,
            dialogue=language is not None,
            advance=advance,
        )
        values = {figure: getattr(figures.detection, figure) for figure in DETECTION}
        values |= {figure: getattr(figures.answers, figure) for figure in ANSWERS}
        return {"graph": name, "precision": precision, "language": language, "figures": values}
