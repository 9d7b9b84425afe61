import numpy as np
import pytest

from tvau_edge.benchmarks.frames import FrameScores, macro_auc, micro_auc, pixel_auc


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
