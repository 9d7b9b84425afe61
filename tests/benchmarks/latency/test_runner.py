import json
import os
import shutil
import signal
import sys
from itertools import islice
from pathlib import Path

import pytest

from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.footage import draw_footage
from tvau_edge.benchmarks.latency.job import Case, Job
from tvau_edge.benchmarks.latency.record import read_run
from tvau_edge.benchmarks.latency.runner import check_backend, run_suite, run_worker
from tvau_edge.benchmarks.latency.suite import SUITES, Suite, cases, choose_suite
from tvau_edge.benchmarks.latency.worker import MEASURES, find_measure, measure_round
from tvau_edge.runtime.bundle import Bundle

SHORT = Suite("short", rounds=2, queries=12, seconds=0.2, warm_up=0.2, matrix=64, cameras=0)
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    path = tmp_path_factory.mktemp("footage") / "drawn.mp4"
    draw_footage(path, 168, 112)
    return path


@pytest.fixture
def job(bright_bundle, footage):
    """Makes a job that measures a few queries of a case in this process."""

    def make(measure: str, bundle: Bundle = bright_bundle, **fields: object) -> Job:
        run = {"queries": 4, "seconds": 0.5, "warm_up": 0.1} | {
            k: fields.pop(k) for k in ("queries",) if k in fields
        }
        case = Case(**({"measure": measure, "stage": "x", "variant": "y"} | fields))
        return Job(case=case, bundle=bundle.path, source=footage, threads=1, **run)

    return make


def test_a_run_is_measured_in_fresh_processes_and_written(red_bundle, tmp_path):
    seen = []
    only = ["decode", "window of T' patches", "RAE"]
    out = tmp_path / "run.json"
    run = run_suite(
        Bundle.open(red_bundle), SHORT, out, threads=1, only=only, advance=lambda *step: seen.append(step)
    )
    assert read_run(out) == run
    assert {row.stage for row in run.rows} == set(only)
    for row in run.rows:
        assert not row.missing
        assert len(row.rounds) == 2
        for round_ in row.rounds:
            assert 2 <= len(round_.milliseconds) <= 6  # of twelve queries, half in each process
            assert min(round_.milliseconds) > 0
            assert round_.memory_peak > 10**7
    window = next(row for row in run.rows if row.stage.startswith("window"))
    assert window.rounds[0].facts["bit_equal"] is True
    # The second turn goes backwards.
    order = [what for what, _, _ in seen]
    assert order == order[::-1]
    assert not run.interrupted
    assert run.source.startswith("drawn, h264 640x360")
    assert "rae.onnx" in run.work


@pytest.mark.parametrize("stop", ["ctrl-c", "sigterm"])
def test_an_interrupted_run_keeps_what_was_measured(red_bundle, tmp_path, stop):
    def advance(what: str, done: int, total: int) -> None:
        if done == 1:
            if stop == "ctrl-c":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    out = tmp_path / "run.json"
    run = run_suite(Bundle.open(red_bundle), SHORT, out, threads=1, only=["decode", "RAE"], advance=advance)
    assert run.interrupted
    assert read_run(out) == run
    assert [len(row.rounds) for row in run.rows] == [1, 0]
    assert run.rows[1].missing == "the run was interrupted before"


def test_what_cannot_be_measured_says_why_and_the_rest_goes_on(job, tmp_path):
    assert run_worker(job("nothing"), tmp_path) == "nothing measures 'nothing'"
    reason = run_worker(job("vision", backend="openvino"), tmp_path)
    assert reason.startswith("the bundle has no graph for back end openvino")


def test_a_process_that_dies_is_a_row_that_says_so(job, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert run_worker(job("decode"), tmp_path) == "its process ended with status 1: it said nothing"


def test_a_process_that_hangs_is_given_up(job, tmp_path):
    assert run_worker(job("decode"), tmp_path, limit=0.01) == "gave no result within 0.01 s"


@pytest.mark.parametrize("measure", ["decode", "sample", "beside", "rae", "matmul", "bandwidth"])
def test_stages_give_times(job, measure, monkeypatch):
    monkeypatch.setattr("tvau_edge.benchmarks.latency.limits._MOST", 1 << 20)
    found = measure_round(job(measure, backend="onnxruntime", precision="fp32", size=32))
    assert len(found.milliseconds) == 4
    assert all(time > 0 for time in found.milliseconds)
    assert found.warm_up >= 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_products_are_measured_at_their_precision(job, backend, precision):
    found = measure_round(job("matmul", backend=backend, precision=precision, size=32))
    assert found.facts["operations"] == 2 * 32**3


def test_a_batch_goes_through_in_one_query(job):
    measure = find_measure("vision")
    assert all(seconds > 0 for seconds in islice(measure(job("vision", samples=5), {}), 2))


def test_loading_and_starting_are_measured_once_per_process(job, tmp_path):
    found = run_worker(job("load", once=True), tmp_path)
    assert len(found.milliseconds) == 1
    assert found.steady is None
    found = measure_round(job("start", once=True))
    assert len(found.milliseconds) == 1


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed: apt-get install mosquitto")
@pytest.mark.parametrize(
    ("measure", "samples"), [("publish", 1), ("glass_to_mqtt", 1), ("outbox", 40), ("paho", 40)]
)
def test_delivery_is_measured_with_a_real_broker(job, measure, samples):
    found = measure_round(job(measure, samples=samples, queries=2))
    assert len(found.milliseconds) == 2


def test_dialogue_and_naive_loop_give_the_same_first_answer(job, talking_bundle):
    pytest.importorskip("llama_cpp")
    answers = {}
    for measure in ("dialogue", "naive_dialogue"):
        facts = {}
        queries = find_measure(measure)(job(measure, talking_bundle), facts)
        assert next(queries) > 0
        queries.close()
        answers[measure] = str(facts["answers"]).split(" | ")[0]
    # Random weights: from the second question on, an answer that is tokenized again may be other tokens.
    assert answers["dialogue"].split() == answers["naive_dialogue"].split()


@pytest.mark.parametrize("measure", ["prefill", "tokens"])
def test_the_language_model_is_measured(job, talking_bundle, measure):
    pytest.importorskip("llama_cpp")
    found = measure_round(job(measure, talking_bundle, queries=2))
    assert len(found.milliseconds) == 2


def test_every_case_of_a_suite_can_be_measured(talking_bundle):
    found = cases(talking_bundle, SUITES["quick"], checkpoint=Path("checkpoint"))
    peers = {case.measure for case in found} - set(MEASURES)
    assert peers <= {"torch"}
    keys = [case.row(False).key for case in found]
    assert len(set(keys)) == len(keys)
    groups = {case.group for case in found if case.group}
    assert all(sum(case.ours for case in found if case.group == group) == 1 for group in groups)
    scenarios = {case.scenario for case in found if case.stage == "vision"}
    assert scenarios == {"SingleStream", "MultiStream", "Offline"}


def test_a_bundle_for_another_device_is_refused(bright_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(bright_bundle.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["vision"] = [manifest["vision"][0] | {"backend": "tensorrt"}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BenchError, match=r"the runtime cannot load it on this machine: .*TensorRT"):
        check_backend(Bundle.open(folder), "tensorrt")


def test_an_unknown_stage_is_refused(bright_bundle):
    with pytest.raises(BenchError, match="--only visoin: there is no such stage; known: vision, "):
        run_suite(bright_bundle, SHORT, None, only=["visoin"])


def test_an_unknown_suite_is_refused():
    with pytest.raises(BenchError, match="--suite huge: there is no such suite; known: quick, full"):
        choose_suite("huge")
