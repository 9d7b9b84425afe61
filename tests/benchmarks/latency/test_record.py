import json

import pytest

from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.record import Cameras, Work, read_run, write_run


def test_what_is_written_is_read(tmp_path, draw_run, draw_row):
    run = draw_run(
        [draw_row(10, facts={"bit_equal": True, "bytes": 3, "answers": "Yes."})],
        work={"vision.onnx": Work(operations={"fp32": 2.0}, weights=1, least=2, most=3)},
        cameras=Cameras(variant="onnxruntime fp32", seconds=1, rate=2, dropped={1: 0, 2: 3}, most=1),
    )
    write_run(run, tmp_path / "run.json")
    again = read_run(tmp_path / "run.json")
    assert again == run
    assert again.rows[0].rounds[0].facts["bit_equal"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_another_version_is_told(tmp_path):
    (tmp_path / "run.json").write_text('{"schema": "tvau.bench/9"}')
    with pytest.raises(
        BenchError, match=r"run\.json has schema 'tvau.bench/9'; .* reads 'tvau.bench/1'.*again"
    ):
        read_run(tmp_path / "run.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", '"tvau"', "[" * 100_000])
def test_what_is_no_run_is_told(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(BenchError, match=r"run\.json"):
        read_run(tmp_path / "run.json")


def test_an_altered_run_names_the_place(tmp_path, draw_run, draw_row):
    write_run(draw_run([draw_row(10)]), tmp_path / "run.json")
    table = json.loads((tmp_path / "run.json").read_text())
    table["rows"][0]["rounds"][1]["milliseconds"] = []
    (tmp_path / "run.json").write_text(json.dumps(table))
    with pytest.raises(BenchError, match=r"rows\.0\.rounds\.1\.milliseconds: .*at least 1"):
        read_run(tmp_path / "run.json")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BenchError, match="cannot be read: No such file"):
        read_run(tmp_path / "run.json")


def test_a_place_that_cannot_be_written_is_told(tmp_path, draw_run, draw_row):
    with pytest.raises(BenchError, match=r"--out .*cannot be written"):
        write_run(draw_run([draw_row(10)]), tmp_path / "absent" / "run.json")
