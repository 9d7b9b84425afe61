import pytest

from tvau_edge.benchmarks.answers import accuracy, bleu4


def test_the_same_words_are_100():
    text = "a person in a red jacket"
    assert bleu4([text], [[text]]) == pytest.approx(100)


def test_the_best_of_several_wordings_counts():
    answers = ["the person runs from left to right", "a car on the footpath stands"]
    assert bleu4(answers, [["something else entirely", answers[0]], [answers[1]]]) == pytest.approx(100)


def test_by_hand():
    # One word of six differs: precisions 5/6, 3/5, 1/4 and a smoothed 1/2/3 of four-grams.
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    assert bleu4(["a dog in the red car"], [["a dog in a red car"]]) == pytest.approx(expected, abs=1e-6)


def test_accuracy():
    assert accuracy([True, False, True, True], [True, True, True, True]) == 0.75


@pytest.mark.parametrize(
    "call", [lambda: bleu4([], []), lambda: bleu4(["a"], [[]]), lambda: accuracy([], [])]
)
def test_refuses_what_does_not_pair(call):
    with pytest.raises(ValueError, match=r"pair|questions"):
        call()
