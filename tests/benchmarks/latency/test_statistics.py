import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.benchmarks.latency.statistics import differences, percentiles, ratio, settled, spread

Positive = st.floats(0.01, 1e5)


def drawn(level: float, rounds: int, noise: float, seed: int) -> list[list[float]]:
    random = np.random.default_rng(seed)
    return [
        (level * random.lognormal(0, noise) * random.lognormal(0, 0.02, 30)).tolist() for _ in range(rounds)
    ]


@given(st.lists(st.lists(Positive, min_size=1, max_size=8), min_size=1, max_size=5))
def test_percentiles_lie_within_the_times_and_in_order(times):
    found = percentiles(times)
    everything = [value for one in times for value in one]
    values = [found[p].value for p in (50, 90, 99)]
    assert values == sorted(values)
    assert min(everything) <= values[0] <= values[-1] <= max(everything) * (1 + 1e-9)
    assert (found[50].low is None) == (len(times) < 3)


def test_the_interval_comes_from_processes_not_from_queries():
    # 1000 queries that agree within each process, and processes that do not agree: the interval must span them.
    found = percentiles([[10.0] * 1000, [11.0] * 1000, [12.0] * 1000])[50]
    assert found.low == 10.0
    assert found.high == 12.0


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        found = percentiles(drawn(10, 8, 0.05, seed))[50]
        hits += found.low <= 10 <= found.high
    assert 48 <= hits <= 60  # 95 % is 57; eight processes are few, and the interval then a little short


def test_a_ratio_is_untouched_by_drift_that_hits_both():
    drift = np.array([1.0, 1.7, 0.8, 2.5])
    ours = [[10.0 * d] * 5 for d in drift]
    theirs = [[25.0 * d] * 5 for d in drift]
    found = ratio(theirs, ours)
    assert found.value == pytest.approx(2.5)
    assert (found.low, found.high) == pytest.approx((2.5, 2.5))


def test_equal_measurements_are_seldom_told_apart():
    false = 0
    for seed in range(100):
        pairs = [
            (drawn(10, 5, 0.08, 1000 * seed + k), drawn(10, 5, 0.08, 1000 * seed + 500 + k))
            for k in range(10)
        ]
        false += any(difference.real(0.05, 0.05) for difference in differences(pairs))
    assert false <= 10  # of a hundred comparisons of ten rows each


def test_one_slow_row_among_many_is_found():
    pairs = [(drawn(10, 5, 0.02, k), drawn(10, 5, 0.02, 100 + k)) for k in range(20)]
    pairs[7] = (pairs[7][0], drawn(13, 5, 0.02, 77))
    found = [number for number, one in enumerate(differences(pairs)) if one.real(0.05, 0.05)]
    assert found == [7]


def test_a_difference_too_small_to_matter_is_not_called_real():
    (found,) = differences([([[10.0] * 5] * 5, [[10.2] * 5] * 5)])
    assert found.p == 0.0
    assert not found.real(0.05, 0.05)


def test_with_two_processes_nothing_is_claimed():
    (found,) = differences([(drawn(10, 2, 0.01, 0), drawn(30, 2, 0.01, 1))])
    assert found.p is None
    assert not found.real(0.05, 0.05)


def test_times_settle_when_their_level_stays():
    assert not settled([1.0] * 9)
    assert settled([1.0] * 10)
    assert not settled([5.0] * 5 + [1.0] * 5)
    assert settled([5.0] * 5 + [1.0] * 10)


def test_spread_is_between_processes():
    assert spread([[1.0, 99.0, 1.0], [1.2, 1.2, 50.0], [1.1]]) == pytest.approx(0.2 / 1.1)
