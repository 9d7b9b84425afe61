from pathlib import Path

import pytest

from tvau_edge.benchmarks.latency.compare import as_json, check, compare
from tvau_edge.benchmarks.latency.errors import BenchError, RegressionError
from tvau_edge.benchmarks.latency.record import Run, read_run

STICK = {"stage": "limit: matrix product", "variant": "onnxruntime fp32", "scenario": None}


def rows(draw_row, seed: int, slow: float = 1.0, load: float = 1.0, noise: float = 0.01):
    return [
        draw_row(10 * load, seed=seed, noise=noise),
        draw_row(5 * slow * load, seed=seed + 1, variant="onnxruntime int8", noise=noise),
        draw_row(1 * load, seed=seed + 2, noise=noise, facts={"operations": 1.0}, **STICK),
    ]


def test_two_runs_of_one_thing_are_equal_within_noise(draw_run, draw_row):
    found = compare(draw_run(rows(draw_row, 0)), draw_run(rows(draw_row, 10)))
    assert [change.word for change in found.changes] == ["equal within noise"] * 2  # limits are not compared
    check(found, 1.1)


def test_one_slowdown_is_found_and_fails_the_gate(draw_run, draw_row):
    found = compare(draw_run(rows(draw_row, 0)), draw_run(rows(draw_row, 10, slow=1.3)))
    words = {change.key: change.word for change in found.changes}
    assert words["vision · onnxruntime int8 · SingleStream"] == "slower"
    assert words["vision · onnxruntime fp32 · SingleStream"] == "equal within noise"
    with pytest.raises(
        RegressionError, match=r"slower than 1.1 times .*int8 · SingleStream: 1\.(29|3\d?) times"
    ) as error:
        check(found, 1.1)
    assert error.value.exit_code == 3
    check(found, 1.5)
    assert as_json(found)["changes"][1]["verdict"] == "slower"


def test_a_busier_machine_is_taken_out_by_the_yardstick(draw_run, draw_row):
    first, second = draw_run(rows(draw_row, 0)), draw_run(rows(draw_row, 10, load=2.0))
    assert {change.word for change in compare(first, second).changes} == {"slower"}
    assert {change.word for change in compare(first, second, yardstick=True).changes} == {
        "equal within noise"
    }


def test_a_run_without_the_yardstick_says_so(draw_run, draw_row):
    one = draw_run(rows(draw_row, 0)[:2])
    with pytest.raises(BenchError, match="--yardstick"):
        compare(one, one, yardstick=True)


def test_queries_of_several_samples_are_compared_per_sample(draw_run, draw_row):
    first = draw_run([draw_row(80, samples=8, noise=0.001)])
    second = draw_run([draw_row(160, samples=16, noise=0.001)])
    assert compare(first, second).changes[0].ratio == pytest.approx(1, rel=0.01)


def test_runs_without_a_common_row_are_refused(draw_run, draw_row):
    with pytest.raises(BenchError, match="no row in common"):
        compare(draw_run([draw_row(1)]), draw_run([draw_row(1, stage="decode")]))


def test_rows_of_one_run_and_other_machines_are_told(draw_run, draw_row):
    first = draw_run(rows(draw_row, 0))
    second = draw_run(rows(draw_row, 0)[:1], fingerprint={"cpu": "Another CPU", "cores": 2})
    found = compare(first, second)
    assert found.machines == ("cpu",)
    assert "vision · onnxruntime int8 · SingleStream" in found.only_first


def recorded() -> Run:
    """A whole run of this project's own, with the noise that a real machine has."""
    return read_run(Path(__file__).parents[3] / "benchmarks/results/xeon-amx-2-cores.json")


def every_other(run: Run, start: int) -> Run:
    """Half of the queries of each process, from the first or from the second; of stages whose queries are all alike.

    Those of decoding are not: what a frame takes follows the coder's pattern.
    """
    rows = []
    for row in run.measured():
        if row.stage not in ("vision", "RAE", "prefill", "answer", "dialogue"):
            continue
        rounds = [
            round_.model_copy(update={"milliseconds": round_.milliseconds[start::2]})
            for round_ in row.rounds
            if len(round_.milliseconds) > 1
        ]
        rows += [row.model_copy(update={"rounds": rounds})] if rounds else []
    return run.model_copy(update={"rows": rows})


def test_two_halves_of_a_recorded_run_are_equal_within_noise():
    found = compare(every_other(recorded(), 0), every_other(recorded(), 1))
    assert len(found.changes) > 10
    assert {change.word for change in found.changes} == {"equal within noise"}


def test_a_row_that_lost_its_bf16_is_found_in_a_recorded_run():
    """What fp32 took on that machine stands in for what a build without bf16 would take."""
    first, later = every_other(recorded(), 0), every_other(recorded(), 1)
    slow, lost = "vision · openvino fp32 · SingleStream", "vision · openvino bf16 · SingleStream"
    times = later.row(slow).rounds
    rows = [row.model_copy(update={"rounds": times}) if row.key == lost else row for row in later.rows]
    found = compare(first, later.model_copy(update={"rows": rows}))
    assert {change.key for change in found.changes if change.real} == {lost}
    with pytest.raises(RegressionError, match="openvino bf16 · SingleStream: "):
        check(found, 1.05)
