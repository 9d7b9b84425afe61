from dataclasses import replace

import numpy as np
import pytest

from tvau_edge.benchmarks.dataset import read_dataset
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.evaluation import evaluate, measure
from tvau_edge.benchmarks.figures import NO_AHD, NO_RAE, summarize
from tvau_edge.benchmarks.stages import Stages
from tvau_edge.runtime.errors import BackendError, LanguageModelError


def test_a_model_that_sees_what_is_abnormal_gets_all(squares, bright_bundle):
    told = []
    figures = evaluate(
        bright_bundle,
        read_dataset(squares),
        dialogue=False,
        advance=lambda done, total: told.append((done, total)),
    )
    assert (figures.clips, figures.frames, figures.abnormal_frames) == (2, 64, 16)
    assert (figures.regions, figures.tracks) == (16, 1)
    assert figures.vision == "onnxruntime fp32"
    found = figures.detection
    assert (found.micro_auc, found.macro_auc, found.rbdc, found.tbdc) == (100, 100, 100, 100)
    assert found.pixel_auc == pytest.approx(100, abs=0.5)  # the heatmap's cells are coarser than the square
    assert figures.answers.yes_no is None
    assert told == [(1, 2), (2, 2)]


def test_a_model_that_sees_nothing_is_at_half(tmp_path, write_squares, square, bright_bundle):
    write_squares(tmp_path, 1, 32, square(3, 16, 31, bright=False))
    write_squares(tmp_path, 2, 32)
    found = evaluate(bright_bundle, read_dataset(tmp_path), dialogue=False).detection
    assert found.micro_auc == pytest.approx(50)
    assert (found.rbdc, found.tbdc) == (0, 0)


def test_a_false_alarm_costs(tmp_path, write_squares, square, bright_bundle):
    write_squares(tmp_path, 1, 32, square(3, 0, 15))
    # Half of the frames of the data set hold one bright square too many, ranked as the true ones are.
    write_squares(tmp_path, 2, 32, square(5, 0, 31, corner=(210, 98), abnormal=False))
    found = evaluate(bright_bundle, read_dataset(tmp_path), dialogue=False).detection
    # Of 16 abnormal frames each ties with 32 normal ones and beats 16: 16 + 32 / 2 of 48.
    assert found.micro_auc == pytest.approx(100 * 32 / 48, abs=1)


def test_without_any_anomaly_there_are_no_figures(tmp_path, write_squares, bright_bundle):
    write_squares(tmp_path, 1, 16)
    figures = evaluate(bright_bundle, read_dataset(tmp_path), dialogue=False)
    assert figures.detection.micro_auc is figures.detection.rbdc is figures.detection.pixel_auc is None
    assert figures.detection.macro_auc == pytest.approx(100)
    assert figures.model_dump_json()  # no NaN, which JSON does not know


def test_every_frame_counts(tmp_path, write_squares, square, bright_bundle):
    # 4.5 s and one frame: eight patches of half a second, and five frames that fill none.
    write_squares(tmp_path, 1, 37, square(3, 30, 36))
    record = measure(Stages(bright_bundle, dialogue=False), read_dataset(tmp_path)).records[0]
    assert len(record.frames.scores) == 37
    assert (record.frames.scores[32:] > 0.6).all()  # the mean with the patch before, half of which is quiet
    assert record.regions.detections[:, 0].max() == 36
    assert (record.best.frame >= 30, record.alarm.frame < 30) == (True, True)


def test_dialogues_of_a_real_language_model(squares, talking_bundle):
    clips = read_dataset(squares)
    with Stages(talking_bundle, threads=1) as stages:
        measured = measure(stages, clips, ablations=True)
    figures = summarize(measured)
    assert figures.language == "f32"
    # Of 4 s, windows of 1.5 s: from 0, 1.5 and 2.5 s. The first of the abnormal clip is before the square.
    assert [turn.truth.abnormal for turn in measured.records[0].turns] == [False, True, True]
    assert [turn.truth.abnormal for turn in measured.records[1].turns] == [False] * 3
    assert figures.answers.asked == 6
    right = [(turn.p_yes > 0.5) == turn.truth.abnormal for r in measured.records for turn in r.turns]
    assert figures.answers.yes_no == pytest.approx(100 * np.mean(right))
    assert figures.answers.bleu4_target is None  # squares have no description
    assert set(figures.ablations) == {NO_RAE, NO_AHD}
    assert figures.ablations[NO_RAE].detection == figures.detection
    assert figures.ablations[NO_AHD].detection.rbdc is None
    p_yes = [
        (a.p_yes, b.p_yes) for r in measured.records for a, b in zip(r.turns, r.without_rae, strict=True)
    ]
    assert np.isfinite(p_yes).all()
    assert all(a != b for a, b in p_yes)  # P_An reaches the language model


def test_a_dialogue_needs_a_language_model(squares, bright_bundle):
    with pytest.raises(LanguageModelError, match="--no-dialogue"):
        evaluate(bright_bundle, read_dataset(squares))


def test_ablations_need_the_dialogue(squares, bright_bundle):
    with pytest.raises(LanguageModelError, match="do without --ablations"):
        evaluate(bright_bundle, read_dataset(squares), dialogue=False, ablations=True)


def test_heat_that_is_no_number_is_named(squares, bright_bundle):
    with Stages(bright_bundle, dialogue=False) as stages:
        run = stages.vision.run

        def overflow(patches):
            (item,) = run(patches)
            return [replace(item, heatmap=item.heatmap * np.nan if item.index == 5 else item.heatmap)]

        stages.vision.run = overflow
        with pytest.raises(BackendError, match=r"scenario_1.mp4: .* 1 temporal patches .* first of patch 5"):
            measure(stages, read_dataset(squares))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_logits_that_are_no_numbers_are_named(squares, talking_bundle):
    with Stages(talking_bundle, threads=1) as stages:
        # llama.cpp gives NaN where every embedding of the clip is zero.
        stages.rae.run = lambda h_c: np.zeros((24, 64), np.float32)
        with pytest.raises(
            LanguageModelError, match="scenario_1: the language model's logits are no numbers"
        ):
            measure(stages, read_dataset(squares))


def test_a_video_that_is_not_its_ground_truth_is_named(squares, bright_bundle, write_squares, tmp_path):
    clips = read_dataset(squares)
    video = clips[0].video
    write_squares(tmp_path / "other", 1, 8)
    video.write_bytes(next((tmp_path / "other").rglob("*.mp4")).read_bytes())
    with pytest.raises(DataError, match=rf"{video.name}: 8 frames can be decoded .* its ground truth has 32"):
        evaluate(bright_bundle, clips, dialogue=False)


def test_a_clip_shorter_than_a_patch_is_named(tmp_path, write_squares, bright_bundle):
    name = write_squares(tmp_path, 1, 2)
    with pytest.raises(DataError, match=rf"{name}.mp4: lasts 0.12 s, less than one temporal patch \(0.5 s\)"):
        evaluate(bright_bundle, read_dataset(tmp_path), dialogue=False)
