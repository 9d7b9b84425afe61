import pytest

from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.readme import BEGIN, END, refresh
from tvau_edge.benchmarks.latency.record import write_run


def test_the_table_is_replaced_and_nothing_else(tmp_path, draw_run, draw_row):
    run = draw_run(
        [
            draw_row(10, ours=True, group="v", variant="onnxruntime int8"),
            draw_row(25, seed=1, group="v"),
            draw_row(3, stage="decode", variant="PyAV", scenario=None),
        ]
    )
    write_run(run, tmp_path / "run.json")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    refresh(readme, [tmp_path / "run.json"])
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| vision · onnxruntime int8 |" in text
    assert "decode" not in text  # the README has the few rows that its reader asks for
    assert "Some CPU, 2 cores; bundle tvau-drawn, 252x140, 2026-01-01, suite quick:" in text
    refresh(readme, [tmp_path / "run.json"])
    assert readme.read_text() == text


@pytest.mark.parametrize("text", ["no marks", f"{END} {BEGIN}"])
def test_a_readme_without_marks_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(BenchError, match="has no place for the table"):
        refresh(readme, [])
    assert readme.read_text() == text
