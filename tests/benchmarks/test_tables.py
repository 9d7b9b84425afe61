import io

import pytest
from rich.console import Console

from tvau_edge.benchmarks.clips import LabelledClip, Stretch
from tvau_edge.benchmarks.figures import NO_AHD, NO_RAE, EvaluationFile, Figures, summarize
from tvau_edge.benchmarks.frames import FrameScores
from tvau_edge.benchmarks.records import ClipRecord, Measured, Turn
from tvau_edge.benchmarks.regions import VideoRegions
from tvau_edge.benchmarks.tables import tables

YES = {
    "anomaly": "Yes.",
    "target": "a red car drives by",
    "motion": "it is fast now",
    "from": "from the far left",
}


def clip(name, labels, *anomalies):
    return LabelledClip(
        name, "test", None, (100, 50), 8.0, FrameScores(labels, labels).labels > 0, anomalies=anomalies
    )


def record(name, labels, scores, turns, *anomalies):
    truth = [(0, frame, 0, 0, 9, 9) for frame, label in enumerate(labels) if label]
    found = [(frame, 0, 0, 9, 9, score) for frame, score in enumerate(scores) if score > 0.5]
    return ClipRecord(
        clip(name, labels, *anomalies),
        FrameScores(labels, scores),
        VideoRegions(len(labels), truth, found),
        tuple(turns),
        without_rae=tuple(Turn(turn.truth, 0.1, turn.answers) for turn in turns),
        frames_by_dialogue=FrameScores(labels, [0.1] * len(labels)),
    )


def turn(abnormal, p_yes, said=None, right=None):
    answers = {key: (text,) for key, text in (right or {}).items()}
    return Turn(Stretch(0, 3, abnormal, answers), p_yes, said or YES)


@pytest.fixture
def measured():
    """Two abnormal clips, of which the model finds one; a normal clip; an unclear window."""
    records = [
        record("a", [0, 1, 1, 0], [0.1, 0.9, 0.9, 0.1], [turn(True, 0.9, right=YES), turn(None, 0.9)], "run"),
        record("b", [1, 1, 1, 0], [0.2, 0.2, 0.2, 0.2], [turn(True, 0.3)], "fall"),
        record("c", [0, 0, 0, 0], [0.2, 0.2, 0.2, 0.2], [turn(False, 0.1)]),
    ]
    return Measured("bundle", "0" * 64, "onnxruntime fp32", "q8_0", records)


def test_figures_by_hand(measured):
    figures = summarize(measured)
    assert (figures.clips, figures.frames, figures.abnormal_frames) == (3, 12, 5)
    assert (figures.regions, figures.tracks) == (5, 2)
    # Of 5 x 7 pairs, the two found frames win all 14; the other three beat two frames each and tie with five.
    assert figures.detection.micro_auc == pytest.approx(100 * (14 + 3 * (2 + 5 / 2)) / 35)
    assert figures.detection.rbdc == pytest.approx(40)
    assert figures.detection.tbdc == pytest.approx(50)
    assert figures.detection.pixel_auc is None
    answers = figures.answers
    assert (answers.asked, answers.described, answers.unclear) == (3, 1, 1)
    assert answers.yes_no == pytest.approx(200 / 3)
    assert (answers.bleu4_target, answers.bleu4_trajectory) == (pytest.approx(100), pytest.approx(100))


def test_types_stand_beside_all_normal_clips(measured):
    types = summarize(measured).per_type
    assert list(types) == ["fall", "run"]
    # Three abnormal frames against one of their own clip and four normal ones, all of them tied.
    assert (types["run"].micro_auc, types["fall"].micro_auc) == (100, 50)
    assert (types["run"].rbdc, types["fall"].rbdc) == (100, 0)
    assert (types["run"].yes, types["fall"].yes) == (100, 0)


def test_ablations(measured):
    figures = summarize(measured)
    assert figures.ablations[NO_RAE].answers.yes_no == pytest.approx(100 / 3)
    assert figures.ablations[NO_RAE].detection == figures.detection
    assert figures.ablations[NO_AHD].detection.micro_auc == 50


def test_figures_go_through_json(measured):
    report = EvaluationFile(data="streets", split="test", figures=[summarize(measured)])
    text = report.model_dump_json()
    assert text.startswith('{"schema":"tvau.evaluation/1"')
    assert EvaluationFile.model_validate_json(text) == report
    assert isinstance(report.figures[0], Figures)


def test_nothing_measured_is_refused():
    with pytest.raises(ValueError, match="no clip"):
        summarize(Measured("bundle", "0" * 64, "onnxruntime fp32", None))


def test_several_bundles_stand_in_one_table(measured):
    measured.bundle = "float"
    first = summarize(measured)
    out = io.StringIO()
    for table in tables([first, first.model_copy(update={"bundle": "small"})], "streets, test"):
        Console(file=out, width=160).print(table)
    lines = out.getvalue().splitlines()
    (row, other) = (
        next(line for line in lines if f"{name} onnxruntime" in line) for name in ("float", "small")
    )
    assert row.replace("float", "small") == other
    assert "40.00" in row
    assert "50.00" in row
    assert any("3 clips, 12 frames, 5 of them abnormal, 2 tracks" in line for line in lines)
    assert any("3 windows, 1 of them for BLEU, 1 unclear ones left out" in line for line in lines)
    # RAE has no part in what the heatmap finds: that row is only among the answers.
    assert sum(NO_RAE in line for line in lines) == 2
    assert sum(NO_AHD in line for line in lines) == 4


def test_without_a_language_model_there_are_no_answers(measured):
    measured.language = None
    for kept in measured.records:
        object.__setattr__(kept, "turns", ())
    titles = [str(table.title) for table in tables([summarize(measured)], "streets")]
    assert not any("Answers" in title for title in titles)
