import numpy as np
import pytest

from tvau_edge.reference.thresholds import choose_thresholds


def test_separable_scores_open_at_the_first_abnormal_one():
    labels = np.array([False] * 10 + [True] * 10)
    scores = np.concatenate([np.linspace(0.05, 0.3, 10), np.linspace(0.6, 0.9, 10)])
    opening, closing = choose_thresholds(labels, scores)
    assert opening == 0.6
    assert 0.2 < closing < 0.3


def test_closing_never_exceeds_opening():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, scores = rng.random(50) < 0.5, rng.random(50)
        opening, closing = choose_thresholds(labels, scores)
        assert 0 < closing <= opening < 1


def test_one_class_alone_is_refused():
    with pytest.raises(ValueError, match="normal and abnormal"):
        choose_thresholds(np.zeros(4, bool), np.linspace(0, 1, 4))
