import pytest

from tvau_edge.benchmarks.latency.record import Readings
from tvau_edge.benchmarks.latency.stability import verdict

CALM = Readings(seconds=1.0, ours=0.5, others=0.02, stolen=0.0, clock_mhz=(2600.0, 2610.0), throttled=0)


def test_a_calm_machine_is_stable(draw_row):
    assert verdict(draw_row(10, machine=CALM)) == "stable"


def test_a_machine_that_tells_nothing_is_judged_by_the_times_alone(draw_row):
    assert verdict(draw_row(10, machine=Readings(seconds=1.0))) == "stable"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"stolen": 0.04}, "CPU stolen, up to 4%"),
        ({"others": 0.31}, "other processes used up to 31% of the CPU"),
        ({"clock_mhz": (1800.0, 2600.0)}, "clocks moved, 1800 to 2600 MHz"),
        ({"throttled": 1}, "throttled 5 times"),
    ],
)
def test_what_the_machine_did_is_said(draw_row, facts, reason):
    assert verdict(draw_row(10, machine=CALM.model_copy(update=facts))) == f"unstable: {reason}"


def test_processes_that_disagree_are_unstable(draw_row):
    row = draw_row(10, noise=0.2)
    assert verdict(row).startswith("unstable: processes differ by ")


def test_two_processes_are_too_few(draw_row):
    assert verdict(draw_row(10, rounds=2)) == "unstable: only 2 of at least 3 processes"


def test_times_that_did_not_settle_are_unstable(draw_row):
    row = draw_row(10)
    rounds = [round_.model_copy(update={"steady": False}) for round_ in row.rounds[:1]] + row.rounds[1:]
    assert verdict(row.model_copy(update={"rounds": rounds})) == "unstable: not settled after warm-up"
