import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tvau_edge.quantize import bundle as quantizing
from tvau_edge.quantize.bundle import KEY, Options, quantize_bundle
from tvau_edge.quantize.errors import GateError, QuantizeError
from tvau_edge.quantize.gate import Limits
from tvau_edge.quantize.tensorrt_check import check
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import runs_on
from tvau_edge.runtime.detection.vision import Vision

IMPOSSIBLE = Limits(disagreement=-0.5)


@pytest.fixture(scope="module")
def options(drawn_video):
    # Random weights open no events that mean anything: what is asked for here is what they can give.
    return Options((str(drawn_video),), count=16, agreement=0.98, limits=Limits(0.5, 1.0))


@pytest.fixture(scope="module")
def quantized(float_bundle, options, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "small"
    return quantize_bundle(float_bundle, out, options)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_new_bundle_is_whole_and_the_old_one_as_it_was(quantized, float_bundle):
    assert Bundle.open(quantized.bundle.path).sha256 == quantized.bundle.sha256
    assert KEY not in Bundle.open(float_bundle).manifest.quantization
    manifest = quantized.bundle.manifest
    assert {(g.backend, g.precision, g.file) for g in manifest.vision} == {
        ("onnxruntime", "int8", "vision.int8.onnx"),
        ("onnxruntime", "fp32", "vision.onnx"),
        ("openvino", "fp32", "vision.xml"),
    }
    assert manifest.rae[0].file == "rae.int8.onnx"
    assert manifest.quantization.keys() == {KEY}  # export's own report went with the graph that it was about
    assert {check.against for check in manifest.checks if check.artifact == "vision.int8.onnx"} == {
        "fp32 of ONNX Runtime"
    }
    assert names(quantized.bundle.path.parent) == ["small"]


def test_the_runtime_takes_the_new_graphs_and_they_agree(quantized, float_bundle):
    record = quantized.report["graphs"]["vision.int8.onnx"]
    assert record["reached"]
    assert record["curve"][-1]["agreement"] >= 0.98
    vision = Vision.open(quantized.bundle, "onnxruntime")
    assert (vision.file.precision, vision.file.file) == ("int8", "vision.int8.onnx")
    vision.close()
    # Smaller than export's own, whose AHD is in float, unless layers had to stay in float.
    if not record["left_in_float"]:
        size = quantized.bundle.manifest.files["vision.int8.onnx"].size
        assert size < Bundle.open(float_bundle).manifest.files["vision.int8.onnx"].size


def test_the_report_is_in_the_bundle_and_stands_alone(quantized):
    folder = quantized.bundle.path
    page = (folder / "quantization.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 2 * 6
    assert not re.search(r"(src|href)=.(?!data:)", page)
    seconds = [
        float(second) for second in re.findall(r"<figcaption>\S+\.mp4 at ([\d.]+) s: a cell differs", page)
    ]
    assert len(seconds) >= 6
    assert all(second < quantized.report["calibration"]["seconds"] for second in seconds)
    text = (folder / "quantization.txt").read_text()
    (comparison,) = quantized.report["comparisons"]
    assert f"{comparison['correlation']:.5f}" in text
    assert f"{comparison['correlation']:.5f}" in page
    assert "16 temporal patches" in text
    stored = quantized.bundle.manifest.quantization[KEY]
    assert stored["calibration"]["chosen"] == 16
    assert stored["comparisons"] == json.loads(json.dumps(quantized.report["comparisons"]))


def test_all_targets_and_a_language_model_in_one_bundle(float_bundle, options, tmp_path):
    everything = Options(
        **{
            **vars(options),
            "targets": ("onnx", "openvino", "tensorrt"),
            "language": ("q4_k_m",),
            "agreement": 0.97,
        }
    )
    outcome = quantize_bundle(float_bundle, tmp_path / "small", everything)
    manifest = Bundle.open(tmp_path / "small").manifest
    assert [(g.backend, g.precision) for g in manifest.vision] == [
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
        ("tensorrt", "fp16"),
        ("tensorrt", "int8"),
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
    ]
    assert [file.type for file in manifest.language.files] == ["q4_k_m", "f16"]
    assert {entry["graph"] for entry in outcome.report["comparisons"]} == {
        "onnxruntime int8",
        "openvino int8",
    }
    assert outcome.report["graphs"]["vision.trt.fp16.onnx"]["agreement"] >= 0.999
    # Every graph of this bundle that TensorRT is given, read from where it lies now.
    given = [graph.file for graph in (*manifest.vision, *manifest.rae) if runs_on("tensorrt", graph)]
    assert {"vision.trt.fp16.onnx", "vision.trt.int8.onnx", "vision.onnx", "rae.onnx"} <= set(given)
    for file in given:
        assert {finding.severity for finding in check(tmp_path / "small" / file)} <= {"note"}, file
    assert outcome.report["language"]["q4_k_m"]["importance"]
    text = (tmp_path / "small" / "quantization.txt").read_text()
    assert "0 findings" in text
    assert "KL divergence" in text
    assert names(tmp_path) == ["small"]
    vision = Vision.open(outcome.bundle, "openvino")
    assert vision.file.precision == "int8"
    vision.close()


def test_above_the_limit_there_is_no_bundle_and_accept_overrides(float_bundle, options, tmp_path):
    refused = Options(**{**vars(options), "limits": IMPOSSIBLE})
    out = tmp_path / "small"
    with pytest.raises(GateError, match=r"nothing was written(.|\n)*events disagree(.|\n)*--accept") as error:
        quantize_bundle(float_bundle, out, refused)
    assert not out.exists()
    page = Path(re.search(r"Look at (\S+);", str(error.value))[1])
    assert "refused by the gate" in page.read_text()

    begun = []

    class Told(quantizing.Silent):
        def advance(self, done, total):
            begun.append(done)

    accepted = Options(**{**vars(options), "limits": IMPOSSIBLE, "accept": True})
    outcome = quantize_bundle(float_bundle, out, accepted, Told())
    assert outcome.failures
    stored = Bundle.open(out).manifest.quantization[KEY]
    assert stored["accepted"] is True
    assert stored["failures"] == list(outcome.failures)
    assert "accepted by a person" in (out / "quantization.html").read_text()
    # What the refused run had done was not done again: only the comparison was, 40 patches.
    assert begun == list(range(1, 41))
    assert names(tmp_path) == ["small"]


def test_killed_it_goes_on_where_it_was(float_bundle, options, tmp_path, monkeypatch):
    out = tmp_path / "small"
    calls = []
    real = quantizing.watching.collect
    monkeypatch.setattr(quantizing.watching, "collect", lambda *a, **k: calls.append(1) or real(*a, **k))

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(quantizing, "_compare", die)
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(float_bundle, out, options)
    assert not out.exists()
    quantize_bundle(float_bundle, out, options)
    assert calls == [1]
    assert Bundle.open(out).manifest.quantization[KEY]["failures"] == []
    # Other options: nothing of an older attempt is taken for theirs.
    with monkeypatch.context() as context:
        context.setattr(quantizing, "_compare", die)
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(float_bundle, out, options)
    quantize_bundle(float_bundle, out, Options(**{**vars(options), "count": 12}))
    assert calls == [1, 1, 1]


def test_what_an_older_method_did_is_not_gone_on_with(float_bundle, options, tmp_path, monkeypatch):
    def do_step(number):
        work = Work(tmp_path / "small", quantizing._facts(Bundle.open(float_bundle), options))
        record = work.step("first", [], lambda: {"done": number})
        work.close(remove=False)
        return record["done"]

    assert [do_step(1), do_step(2)] == [1, 1]
    monkeypatch.setattr(quantizing, "_METHOD", quantizing._METHOD + 1)
    assert do_step(3) == 3


def test_a_bundle_can_replace_itself(float_bundle, options, tmp_path):
    place = Path(shutil.copytree(float_bundle, tmp_path / "bundle"))
    outcome = quantize_bundle(place, place, options)
    assert outcome.bundle.path == place
    assert (place / "quantization.html").exists()
    again = quantize_bundle(place, place, options)  # its float graphs are still there
    assert list(again.bundle.manifest.quantization) == [KEY]


def test_a_bundle_without_float_graphs_is_quantized_already(quantized, options, tmp_path):
    place = Path(shutil.copytree(quantized.bundle.path, tmp_path / "bundle"))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["vision"] = [graph for graph in manifest["vision"] if graph["precision"] == "int8"]
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        QuantizeError, match=r"no vision graph in fp32.*only onnxruntime int8: it is quantized already"
    ):
        quantize_bundle(place, tmp_path / "out", options)
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("onnx", "tflite")}, "--target tflite: unknown; known: onnx"),
        ({"targets": ()}, r"--target \(none\)"),
        ({"language": ("q3",)}, "--llm q3: unknown GGUF type"),
        ({"calibration": ()}, "--calibration is missing"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(float_bundle, options, tmp_path, change, message):
    with pytest.raises(QuantizeError, match=message):
        quantize_bundle(float_bundle, tmp_path / "out", Options(**{**vars(options), **change}))
    assert names(tmp_path) == []


def test_two_at_once_are_refused(float_bundle, options, tmp_path, monkeypatch):
    def collect(*_, **__):
        with pytest.raises(QuantizeError, match=r"another `tvau quantize` is at work on .*out"):
            quantize_bundle(float_bundle, tmp_path / "out", options)
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizing.watching, "collect", collect)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(float_bundle, tmp_path / "out", options)


def test_outputs_that_are_not_numbers_fail_the_gate(quantized):
    (comparison,) = quantized.report["comparisons"]
    from tvau_edge.quantize.gate import Comparison

    broken = Comparison(**{**comparison, "h_c_cosine": np.nan, "disagreement": np.nan})
    texts = broken.failures(Limits(-1, 1.0))
    assert any("not numbers" in text for text in texts)
    assert any("disagree" in text for text in texts)
