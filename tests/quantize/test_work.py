import json

import pytest

from tvau_edge.quantize.errors import QuantizeError
from tvau_edge.quantize.work import Work


def step(work, text, calls):
    def make():
        calls.append(text)
        work.path("part.onnx").write_text(text)
        work.path("part.onnx.data").write_text(text)
        return {"text": text}

    return work.step("part", ["part.onnx"], make)


def test_a_step_is_done_once(tmp_path):
    calls = []
    work = Work(tmp_path / "out", {"a": 1})
    assert step(work, "one", calls) == {"text": "one"}
    work.close(remove=False)
    again = Work(tmp_path / "out", {"a": 1})
    assert again.resumed == ["part"]
    assert step(again, "two", calls) == {"text": "one"}
    assert sorted(again.files("part")) == ["part.onnx", "part.onnx.data"]
    assert calls == ["one"]
    again.close(remove=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["missing", "torn", "facts", "state"])
def test_what_is_not_whole_or_not_ours_is_done_again(tmp_path, change):
    calls = []
    work = Work(tmp_path / "out", {"a": 1})
    step(work, "one", calls)
    work.close(remove=False)
    if change == "missing":
        work.path("part.onnx.data").unlink()
    elif change == "torn":
        work.path("part.onnx").write_text("on")
    elif change == "state":
        work.path("steps.json").write_text(json.dumps([1]))
    again = Work(tmp_path / "out", {"a": 2 if change == "facts" else 1})
    assert step(again, "two", calls) == {"text": "two"}
    assert calls == ["one", "two"]
    again.close(remove=True)


def test_two_at_once(tmp_path):
    work = Work(tmp_path / "out", {})
    with pytest.raises(QuantizeError, match="another `tvau quantize` is at work"):
        Work(tmp_path / "out", {})
    work.close(remove=True)
    Work(tmp_path / "out", {}).close(remove=True)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantizeError, match="cannot write"):
        Work(tmp_path / "file" / "out", {})
