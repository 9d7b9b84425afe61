import pytest

from tvau_edge.benchmarks.errors import DataError
from tvau_edge.quantize.bundle import Options, quantize_bundle
from tvau_edge.quantize.cli import types_table
from tvau_edge.quantize.gate import Limits
from tvau_edge.quantize.labelled import choosing, labelled_figures, losses
from tvau_edge.quantize.steps import Silent
from tvau_edge.quantize.targets import Made
from tvau_edge.quantize.work import Work
from tvau_edge.reference.samples import first_seed
from tvau_edge.reference.storage import write_split
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.manifest import GraphFile


def row(name="onnxruntime int8", **figures):
    return {"graph": name, "figures": figures}


def test_a_loss_beyond_its_limit_is_named():
    before = row("float", micro_auc=95.0, rbdc=70.0, tbdc=76.0, yes_no=98.0, bleu4_target=63.0)
    after = row(micro_auc=94.6, rbdc=68.5, tbdc=77.0, yes_no=97.4, bleu4_target=62.5)
    assert losses(before, after, Limits()) == [
        "onnxruntime int8: rbdc 68.50 %, 1.50 points below the float bundle's 70.00, limit 1",
        "onnxruntime int8: yes_no 97.40 %, 0.60 points below the float bundle's 98.00, limit 0.5",
    ]
    assert losses(before, after, Limits(regions=2, yes_no=1)) == []


def test_what_one_of_them_lacks_is_passed_over():
    before = row("float", micro_auc=None, rbdc=70.0, yes_no=98.0)
    assert losses(before, row(micro_auc=50.0, rbdc=None), Limits()) == []


def test_a_type_stands_beside_its_answers_over_float_evidence():
    language = {"q8_0": {"type": "q8_0", "bytes": 8}, "q4_k_m": {"type": "q4_k_m", "bytes": 4}}
    rows = [
        {"precision": "fp32", "language": "q8_0", "figures": {"yes_no": 98.0, "bleu4_target": None}},
        {"precision": "int8", "language": "q8_0", "figures": {"yes_no": 50.0}},
        {"precision": "fp32", "language": None, "figures": {"yes_no": 1.0}},
    ]
    first, second = choosing(language, {"rows": rows})
    assert (first["bytes"], first["answers"]["yes_no"], first["answers"]["bleu4_target"]) == (8, 98.0, None)
    assert set(second["answers"].values()) == {None}
    assert {value for entry in choosing(language, {}) for value in entry["answers"].values()} == {None}


def test_the_table_has_answers_only_where_there_are_labels():
    entry = {
        "type": "q8_0",
        "bytes": 3 << 20,
        "tokens_per_second": 50.0,
        "divergence": 0.01,
        "same_choice": 0.98,
    }
    rows = [{"precision": "fp32", "language": "q8_0", "figures": {"yes_no": 98.0, "bleu4_target": None}}]
    report = {"language": {"q8_0": entry}, "labelled": {"rows": rows}}
    with_answers = types_table(report)
    assert [next(column.cells) for column in with_answers.columns][1:7] == [
        *("3.0", "50", "1.0e-02", "98.0 %"),
        *("98.00", "-"),
    ]
    assert len(types_table({**report, "labelled": {}}).columns) == 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "drawn"
    start = first_seed("test")
    for _ in write_split(folder, "test", range(start, start + 2), 1):
        pass
    return folder


def test_the_graphs_of_a_bundle_on_drawn_clips(float_bundle, data, tmp_path):
    bundle = Bundle.open(float_bundle)
    file = GraphFile(backend="onnxruntime", precision="int8", file="vision.int8.onnx")
    work = Work(tmp_path / "out", {})
    begun = []

    class Told(Silent):
        def begin(self, step):
            begun.append(step)

    made = [Made("vision", file, (file.file,), {})]
    arguments = (bundle, made, (), data, Limits(100, 1, 100, 100, 100, 100), work, Told())
    found, worse = labelled_figures(*arguments)
    assert [entry["graph"] for entry in found["rows"]] == ["float", "onnxruntime int8 with f16"]
    assert found["rows"][0]["figures"].keys() == found["rows"][1]["figures"].keys()
    assert isinstance(found["rows"][0]["figures"]["micro_auc"], float)
    assert "2 clips" in found["data"]
    assert worse == []
    count = len(begun)
    assert labelled_figures(*arguments)[0] == found  # done once
    assert len(begun) == count
    work.close(remove=True)


def test_data_that_is_none_is_said_before_anything_is_done(float_bundle, tmp_path):
    (tmp_path / "nothing").mkdir()
    options = Options(("video.mp4",), data=tmp_path / "nothing")
    with pytest.raises(DataError, match="no data set that is known"):
        quantize_bundle(float_bundle, tmp_path / "out", options)
    assert [path.name for path in tmp_path.iterdir()] == ["nothing"]
