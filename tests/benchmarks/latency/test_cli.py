import io
import json

import pytest
from rich.console import Console

from tvau_edge.benchmarks.latency.record import Readings, write_run
from tvau_edge.runtime import cli
from tvau_edge.runtime.extras import installed

pytestmark = pytest.mark.skipif(not installed("bench"), reason="needs the extra bench")


@pytest.fixture
def tvau(monkeypatch, capsys):
    """Runs `tvau` in this process; returns exit code and what was said."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tvau", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def runs(tmp_path, draw_run, draw_row):
    for name, level, seed in (("a", 10, 0), ("b", 10, 1), ("slow", 14, 2)):
        write_run(
            draw_run([draw_row(level, seed=seed), draw_row(3, seed=seed + 9, stage="decode")]),
            tmp_path / f"{name}.json",
        )
    return tmp_path


def test_a_bundle_needs_no_word_before_it(tvau, tmp_path):
    code, said = tvau("bench", tmp_path / "absent", "--out", tmp_path / "run.json")
    assert code == 1
    assert "no such bundle" in said
    code, said = tvau("bench", "--suite", "huge", tmp_path)
    assert "--suite huge: there is no such suite" in said


def test_bundle_and_synthetic_exclude_each_other(tvau, tmp_path):
    out = ("--out", tmp_path / "run.json")
    assert "give either the folder of a bundle" in tvau("bench", "--suite", "quick", *out)[1]
    assert "give either the folder of a bundle" in tvau("bench", tmp_path, "--synthetic", "7b", *out)[1]
    assert "--blocks belongs to --synthetic" in tvau("bench", tmp_path, "--blocks", "2", *out)[1]
    assert "--llm belongs to --synthetic" in tvau("bench", tmp_path, "--llm", "bf16", *out)[1]


def test_a_shape_that_does_not_exist_is_told(tvau, tmp_path):
    code, said = tvau("bench", "--synthetic", "70b", "--out", tmp_path / "run.json")
    assert code == 1
    assert "--synthetic 70b: there is no such shape; known: 7b, 3b" in said


def test_a_bundle_is_measured_shown_and_written(tvau, red_bundle, tmp_path):
    out = tmp_path / "run.json"
    code, said = tvau("bench", red_bundle, "--only", "decode", "--threads", "1", "--out", out)
    assert code == 0
    assert "decode · PyAV" in said
    assert json.loads(out.read_text())["schema"] == "tvau.bench/1"


def test_equal_runs_pass_the_gate_and_a_slow_one_fails_it(tvau, runs):
    code, said = tvau("bench", "compare", runs / "a.json", runs / "b.json", "--fail-above", "1.1")
    assert code == 0
    assert said.count("equal within noise") == 2
    code, said = tvau(
        "bench",
        "compare",
        runs / "a.json",
        runs / "slow.json",
        "--fail-above",
        "1.1",
        "--json",
        runs / "c.json",
    )
    assert code == 3
    assert "slower than 1.1 times allows" in said
    (found,) = json.loads((runs / "c.json").read_text())
    assert [change["verdict"] for change in found["changes"]] == ["slower", "equal within noise"]


def test_one_run_cannot_be_compared(tvau, runs):
    assert "at least two runs" in tvau("bench", "compare", runs / "a.json")[1]


def test_a_report_is_made_with_its_markdown(tvau, runs):
    code, _ = tvau(
        "bench",
        "report",
        runs / "a.json",
        runs / "slow.json",
        "--out",
        runs / "p.html",
        "--markdown",
        runs / "t.md",
    )
    assert code == 0
    assert (runs / "p.html").read_text().startswith("<!doctype html>")
    assert "| decode · PyAV" not in (runs / "t.md").read_text()
    assert "| decode · onnxruntime fp32" in (runs / "t.md").read_text()


def test_json_of_another_version_is_told(tvau, runs):
    (runs / "a.json").write_text('{"schema": "tvau.bench/2"}')
    code, said = tvau("bench", "report", runs / "a.json")
    assert code == 1
    assert "schema 'tvau.bench/2'" in said


def test_the_terminal_counts_what_makes_rows_unstable_and_names_what_is_missing(draw_run, draw_row):
    from tvau_edge.benchmarks.latency.cli import show

    stolen = Readings(seconds=1.0, stolen=0.07)
    rows = [
        draw_row(10, machine=stolen),
        draw_row(20, machine=stolen, variant="onnxruntime int8", noise=0.5),
        draw_row(30, variant="openvino fp32"),
        draw_row(1, rounds=0, variant="tensorrt int8", missing="no TensorRT here"),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(show(draw_run(rows)))
    said = " ".join(console.export_text().split())
    assert "CPU stolen (2), processes differ (1)" in said
    assert said.count(" unstable ") == 3  # two rows and the note
    assert "not measured: vision · tensorrt int8 · SingleStream: no TensorRT here" in said
