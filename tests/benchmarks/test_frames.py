import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tvau_edge.benchmarks.frames import FrameScores, PixelScores, macro_auc, micro_auc, pixel_auc


def test_micro_by_hand():
    # Of the four pairs of an abnormal and a normal frame, three are in order: 3/4.
    videos = [FrameScores([0, 1], [0.1, 0.9]), FrameScores([0, 1], [0.6, 0.5])]
    assert micro_auc(videos) == pytest.approx(0.75)


def test_micro_counts_ties_as_half():
    assert micro_auc([FrameScores([0, 1], [0.5, 0.5])]) == pytest.approx(0.5)


def test_macro_extends_each_video_by_two_pairs():
    # Labels 0 1 0 1 and scores 0 1 0.6 0.5: of four pairs, one is out of order.
    assert macro_auc([FrameScores([0, 1], [0.6, 0.5])]) == pytest.approx(0.75)


@pytest.mark.parametrize("label", [0, 1])
def test_macro_of_a_video_of_one_class(label):
    video = FrameScores([label] * 3, [0.2, 0.3, 0.4])
    assert macro_auc([video]) == pytest.approx(1.0)
    assert np.isnan(micro_auc([video]))


def test_pixels_of_any_shape():
    labels = np.zeros((2, 3, 4))
    labels[0, 1, 2] = 1
    assert pixel_auc(labels, labels * 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("labels", "scores"), [([0, 1], [0.5]), ([], []), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan])]
)
def test_refuses_what_is_no_score_per_frame(labels, scores):
    with pytest.raises(ValueError, match="must be"):
        FrameScores(labels, scores)


@pytest.mark.parametrize("seed", range(3))
def test_a_histogram_of_pixels_gives_the_auc_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    pixels, labels, scores = PixelScores(), [], []
    for _ in range(5):
        labels.append(rng.random((20, 30)) < 0.1)
        scores.append((1 / (1 + np.exp(-rng.normal(2.0 * labels[-1] - 4, 1.5)))).astype(np.float32))
        pixels.add(labels[-1], scores[-1])
    assert pixels.auc() == pytest.approx(pixel_auc(np.array(labels), np.array(scores)), abs=1e-4)


def test_a_histogram_ties_are_half_and_ends_are_kept_apart():
    pixels = PixelScores()
    pixels.add(np.array([True, False, True, False]), np.array([0.3, 0.3, 1.0, 0.0], np.float32))
    assert pixels.auc() == pytest.approx((0.5 + 1 + 1 + 1) / 4)


@pytest.mark.parametrize("label", [True, False])
def test_a_histogram_of_one_class_is_not_a_number(label):
    pixels = PixelScores()
    pixels.add(np.full((2, 2), label), np.full((2, 2), 0.5, np.float32))
    assert np.isnan(pixels.auc())


def test_a_histogram_refuses_what_does_not_pair():
    with pytest.raises(ValueError, match="one value per pixel"):
        PixelScores().add(np.zeros((2, 2), bool), np.zeros((2, 3), np.float32))


def test_all_frames_abnormal_in_every_video():
    videos = [FrameScores([1, 1], [0.2, 0.8]), FrameScores([1], [0.1])]
    assert np.isnan(micro_auc(videos))
    assert macro_auc(videos) == pytest.approx(1.0)


def test_macro_as_ubnormals_script_computes_it():
    # compute_auc_score.py extends labels and scores by (0, 0) in front and (1, 1) behind.
    rng = np.random.default_rng(7)
    videos = [FrameScores(rng.random(50) < 0.3, rng.random(50)) for _ in range(6)]
    extended = [
        roc_auc_score(np.concatenate(([0], v.labels, [1])), np.concatenate(([0], v.scores, [1])))
        for v in videos
    ]
    assert macro_auc(videos) == pytest.approx(np.mean(extended), abs=1e-12)
