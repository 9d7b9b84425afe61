"""Figures as the paper prints them: detection, answers, and each type of anomaly; several bundles side by side."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from tvau_edge.benchmarks.figures import Answers, Detection, Figures

_DETECTION = {
    "micro_auc": "micro-AUC",
    "macro_auc": "macro-AUC",
    "pixel_auc": "pixel AUC",
    "rbdc": "RBDC",
    "tbdc": "TBDC",
}
_ANSWERS = {
    "bleu4_target": "target BLEU-4",
    "bleu4_motion": "motion BLEU-4",
    "bleu4_trajectory": "trajectory BLEU-4",
    "yes_no": "Yes/No",
}


def tables(figures: Sequence[Figures], data: str) -> list[Table]:
    """The tables of one or several bundles that were measured on the same data, in percent."""
    first = figures[0]
    size = f"{first.clips} clips, {first.frames:,} frames, {first.abnormal_frames:,} of them abnormal"
    found = Table(title=f"Anomalies found, %\n{data}: {size}, {first.tracks} tracks")
    asked = first.answers
    said = Table(
        title=f"Answers, %\n{data}: {asked.asked} windows, {asked.described} of them for BLEU, "
        f"{asked.unclear} unclear ones left out"
    )
    for table, columns in ((found, _DETECTION), (said, _ANSWERS)):
        table.add_column("")
        for title in columns.values():
            table.add_column(title, justify="right")
    for one in figures:
        for name, detection, answers in _rows(one):
            if detection != one.detection or answers == one.answers:  # RAE has no part in detection
                found.add_row(name, *_cells(detection, _DETECTION))
            if one.language:
                said.add_row(name, *_cells(answers, _ANSWERS))
    shown = [found, said] if said.rows else [found]
    return [*shown, *(_per_type(one) for one in figures if one.per_type)]


def title_of(figures: Figures) -> str:
    """How a bundle is named in tables."""
    return " ".join(part for part in (figures.bundle, figures.vision, figures.language) if part)


def _rows(figures: Figures) -> Iterator[tuple[str, Detection, Answers]]:
    yield title_of(figures), figures.detection, figures.answers
    for name, ablation in figures.ablations.items():
        yield f"  {name}", ablation.detection, ablation.answers


def _cells(part: Detection | Answers, columns: dict[str, str]) -> list[str]:
    return [_number(getattr(part, name)) for name in columns]


def _per_type(figures: Figures) -> Table:
    table = Table(title=f"Each type of anomaly, with all normal clips, %\n{title_of(figures)}")
    table.add_column("")
    for column in ("clips", "micro-AUC", "RBDC", "TBDC", "said yes"):
        table.add_column(column, justify="right")
    for name, one in figures.per_type.items():
        table.add_row(name, str(one.clips), *map(_number, (one.micro_auc, one.rbdc, one.tbdc, one.yes)))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
