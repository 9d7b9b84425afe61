"""From what was measured of each clip to figures in percent."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tvau_edge.benchmarks.answers import accuracy, bleu4
from tvau_edge.benchmarks.frames import macro_auc, micro_auc
from tvau_edge.benchmarks.records import ClipRecord, Measured, Turn
from tvau_edge.benchmarks.regions import region_scores

NO_RAE, NO_AHD = "without RAE", "without AHD and RAE"

Percent = Annotated[float | None, Field(ge=0, le=100)]


class Part(BaseModel):
    """Base of the tables; a figure that the data do not allow is None."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Detection(Part):
    """How well anomalies are found."""

    micro_auc: Percent = None
    macro_auc: Percent = None
    pixel_auc: Percent = None
    rbdc: Percent = None
    tbdc: Percent = None


class Answers(Part):
    """How good the dialogue's answers are. BLEU is of the windows that show an anomaly and are described."""

    yes_no: Percent = None
    bleu4_target: Percent = None
    bleu4_motion: Percent = None
    bleu4_trajectory: Annotated[Percent, Field(description="of the answers to `from` and `to` together")] = (
        None
    )
    asked: Annotated[int, Field(description="windows that count for yes_no")] = 0
    described: Annotated[int, Field(description="windows that count for BLEU")] = 0
    unclear: Annotated[int, Field(description="windows that show an anomaly too briefly to count")] = 0


class TypeFigures(Part):
    """Of the clips of one type of anomaly; frame and region figures together with all normal clips."""

    clips: int
    micro_auc: Percent
    rbdc: Percent
    tbdc: Percent
    yes: Annotated[Percent, Field(description="of its windows with an anomaly, those answered with yes")]


class Ablation(Part):
    """The figures with parts left out."""

    detection: Detection
    answers: Answers


class Figures(Part):
    """All figures of one bundle on one data set."""

    bundle: str
    sha256: str
    vision: Annotated[str, Field(description="back end and precision of the vision graph")]
    language: Annotated[str | None, Field(description="GGUF type, or none")]
    clips: int
    frames: int
    abnormal_frames: int
    regions: int
    tracks: int
    detection: Detection
    answers: Answers
    per_type: dict[str, TypeFigures] = {}
    ablations: dict[str, Ablation] = {}


class EvaluationFile(Part):
    """What `tvau eval --json` writes."""

    schema_: Annotated[Literal["tvau.evaluation/1"], Field(alias="schema")] = "tvau.evaluation/1"
    data: str
    split: str
    figures: list[Figures]

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


def summarize(measured: Measured) -> Figures:
    """Compute all figures of what was measured.

    Raises:
        ValueError: nothing was measured.
    """
    records = measured.records
    if not records:
        raise ValueError("no clip was measured")
    detection = _detection(records).model_copy(update={"pixel_auc": _percent(measured.pixels.auc())})
    return Figures(
        bundle=measured.bundle,
        sha256=measured.sha256,
        vision=measured.vision,
        language=measured.language,
        clips=len(records),
        frames=sum(len(record.clip) for record in records),
        abnormal_frames=sum(int(record.clip.labels.sum()) for record in records),
        regions=sum(len(record.regions.truth) for record in records),
        tracks=sum(len(np.unique(record.regions.truth[:, 0])) for record in records),
        detection=detection,
        answers=_answers([turn for record in records for turn in record.turns]),
        per_type=_per_type(records),
        ablations=_ablations(records, detection),
    )


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else 100 * float(share)


def _detection(records: Sequence[ClipRecord]) -> Detection:
    frames = [record.frames for record in records]
    regions = region_scores([record.regions for record in records])
    return Detection(
        micro_auc=_percent(micro_auc(frames)),
        macro_auc=_percent(macro_auc(frames)),
        rbdc=_percent(regions.rbdc),
        tbdc=_percent(regions.tbdc),
    )


def _answers(turns: Sequence[Turn]) -> Answers:
    clear = [turn for turn in turns if turn.truth.abnormal is not None]
    described = [turn for turn in clear if turn.truth.abnormal and turn.truth.answers]
    judged = [(turn.p_yes > 0.5, bool(turn.truth.abnormal)) for turn in clear if turn.p_yes is not None]
    return Answers(
        yes_no=100 * accuracy(*zip(*judged, strict=True)) if judged else None,
        bleu4_target=_bleu(described, "target"),
        bleu4_motion=_bleu(described, "motion"),
        bleu4_trajectory=_bleu(described, "from", "to"),
        asked=len(judged),
        described=len(described),
        unclear=len(turns) - len(clear),
    )


def _bleu(turns: Sequence[Turn], *keys: str) -> float | None:
    pairs = [
        (turn.answers[key], turn.truth.answers[key])
        for key in keys
        for turn in turns
        if key in turn.answers and key in turn.truth.answers
    ]
    # sacrebleu's 100 may be a little more.
    return min(bleu4(*zip(*pairs, strict=True)), 100.0) if pairs else None


def _per_type(records: Sequence[ClipRecord]) -> dict[str, TypeFigures]:
    normal = [record for record in records if not record.clip.labels.any()]
    figures = {}
    for name in sorted({name for record in records for name in record.clip.anomalies}):
        clips = [record for record in records if name in record.clip.anomalies]
        found = _detection([*clips, *normal])
        asked = [turn for record in clips for turn in record.turns if turn.truth.abnormal]
        yes = [turn.p_yes > 0.5 for turn in asked if turn.p_yes is not None]
        figures[name] = TypeFigures(
            clips=len(clips),
            micro_auc=found.micro_auc,
            rbdc=found.rbdc,
            tbdc=found.tbdc,
            yes=100 * sum(yes) / len(yes) if yes else None,
        )
    return figures


def _ablations(records: Sequence[ClipRecord], detection: Detection) -> dict[str, Ablation]:
    blind = [record.frames_by_dialogue for record in records if record.frames_by_dialogue is not None]
    if len(blind) < len(records):
        return {}
    answers = _answers([turn for record in records for turn in record.without_rae])
    by_dialogue = Detection(micro_auc=_percent(micro_auc(blind)), macro_auc=_percent(macro_auc(blind)))
    return {
        NO_RAE: Ablation(detection=detection, answers=answers),
        NO_AHD: Ablation(detection=by_dialogue, answers=answers),
    }
