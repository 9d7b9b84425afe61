from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.runtime.cameras.stamps import Stamps


def run(stamps, rate=10.0, live=False, came=None):
    clock = Stamps(rate, live)
    return [clock.next(stamp, came[number] if came else float(number)) for number, stamp in enumerate(stamps)]


def test_counts_from_the_first_frame():
    assert run([5.0, 5.1, 5.3]) == pytest.approx([0, 0.1, 0.3])


def test_missing_stamps_take_the_announced_rate():
    assert run([None, None, 7.0, 7.1]) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert run([3.0, None, 3.2]) == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("rate", [0.0, -1.0, 90000.0, float("inf")])
def test_a_rate_that_makes_no_sense_is_not_used(rate):
    assert Stamps(rate, live=False).period == pytest.approx(0.04)


def test_missing_stamps_of_a_live_source_take_the_time_that_passed():
    assert run([None, None, None], live=True, came=[100, 100.5, 102]) == pytest.approx([0, 0.5, 2])


def test_one_wrong_stamp_leaves_the_others_alone():
    assert run([0, 0.1, -7.0, 0.3, 0.4]) == pytest.approx([0, 0.1, 0.101, 0.3, 0.4])


def test_a_repeated_stamp_moves_on_a_little():
    assert run([0, 0.1, 0.1, 0.2]) == pytest.approx([0, 0.1, 0.101, 0.2])


def test_a_clock_that_starts_again_is_followed():
    assert run([50, 50.1, 0, 0.1, 0.2]) == pytest.approx([0, 0.1, 0.101, 0.201, 0.301])


def test_a_clock_that_stands_still_goes_at_the_announced_rate():
    assert run([4.0] * 5) == pytest.approx([0, 0.001, 0.101, 0.201, 0.301])


def test_a_pause_in_a_file_is_kept():
    assert run([0, 0.1, 60.1]) == pytest.approx([0, 0.1, 60.1])


def test_a_live_clock_that_is_set_forward_is_not_followed():
    came = [0, 0.1, 0.2, 0.3]
    assert run([0, 0.1, 3600.2, 3600.3], live=True, came=came) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_frames_that_a_live_source_lost_are_a_pause():
    assert run([0, 0.1, 30], live=True, came=[0, 0.1, 30]) == pytest.approx([0, 0.1, 30])


@given(
    st.lists(st.none() | st.floats(-1e6, 1e6), min_size=2, max_size=40),
    st.sampled_from([0.0, 1.0, 29.97]),
    st.booleans(),
)
def test_always_rises(stamps, rate, live):
    out = run(stamps, rate, live, came=[number / 25 for number in range(len(stamps))])
    assert out[0] == 0
    assert all(earlier < later for earlier, later in pairwise(out))
