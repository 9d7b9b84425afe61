import logging
import subprocess
import sys

import gguf
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tvau_edge.export import language
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.quantize.language import quantize_gguf
from tvau_edge.runtime.errors import LanguageModelError, MissingExtraError
from tvau_edge.runtime.language import llama
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.positions import text_positions, video_positions
from tvau_edge.runtime.manifest import Geometry


@pytest.fixture(scope="module")
def model(tiny_gguf):
    with LanguageModel(tiny_gguf, context=1024, threads=1, exact_cache=True) as model:
        yield model


def video(patches, rows=10, columns=18, seed=0):
    """Random embeddings of a clip, and their positions."""
    geometry = Geometry(width=28 * columns, height=28 * rows, frames_per_second=4, temporal_patches=2)
    embeddings = np.random.default_rng(seed).normal(0, 0.3, (patches * rows * columns, 64))
    return embeddings.astype(np.float32), video_positions(0, patches, geometry, 2)


def test_what_it_says_of_the_file(model):
    assert (model.width, model.tokens, model.context) == (64, 512, 1024)
    assert (model.evaluated, model.position) == (0, 0)


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(LanguageModelError, match=r"no such file"):
        LanguageModel(tmp_path / name, context=64)


@pytest.mark.parametrize("damage", ["empty", "garbage", "torn", "header"])
def test_a_damaged_file(tiny_gguf, tmp_path, damage, capfd, caplog):
    raw = tiny_gguf.read_bytes()
    path = tmp_path / "damaged.gguf"
    contents = {
        "empty": b"",
        "garbage": bytes(range(256)) * 40,
        "torn": raw[: len(raw) * 2 // 3],
        "header": raw[:4] + b"\xff\xff\xff\xff" + raw[8:],
    }
    path.write_bytes(contents[damage])
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(LanguageModelError, match=r"damaged\.gguf: it is damaged.*\(llama\.cpp: \w.*\)"),
    ):
        LanguageModel(path, context=64)
    assert any("llama.cpp" in record.getMessage() for record in caplog.records)
    assert capfd.readouterr() == ("", "")  # nothing goes past our log


def test_another_architecture(tiny_language, tmp_path, monkeypatch):
    writer = gguf.GGUFWriter
    monkeypatch.setattr(language.gguf, "GGUFWriter", lambda path, arch: writer(path, "qwen2"))
    language.write_gguf(Checkpoint.open(tiny_language), tmp_path / "other.gguf", "f32")
    with pytest.raises(
        LanguageModelError, match=r"other\.gguf holds architecture 'qwen2', expected 'qwen2vl'"
    ):
        LanguageModel(tmp_path / "other.gguf", context=64)


def test_the_extra_is_named_when_it_is_missing(tiny_gguf, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(MissingExtraError, match=r"tvau-edge\[llm\]"):
        LanguageModel(tiny_gguf, context=64)


def test_embeddings_of_another_width(model):
    model.clear()
    with pytest.raises(LanguageModelError, match=r"width 64, the embeddings 96: .* different checkpoints"):
        model.evaluate_embeddings(np.zeros((3, 96), np.float32), text_positions(0, 3))
    assert model.evaluated == 0


@pytest.mark.parametrize(
    "further",
    [
        lambda model: model.evaluate_tokens([1] * 3),
        lambda model: model.evaluate_embeddings(np.zeros((3, 64), np.float32), text_positions(30, 3)),
    ],
    ids=["tokens", "embeddings"],
)
def test_a_context_that_is_too_small(tiny_gguf, further):
    with LanguageModel(tiny_gguf, context=32, threads=1) as small:
        small.evaluate_tokens([1] * 30)
        with pytest.raises(LanguageModelError, match=r"more than the context of 32 tokens"):
            further(small)
        small.clear()
        small.evaluate_tokens([1] * 32)


def test_tokens_evaluated_as_embeddings_are_the_same(model, tiny_language):
    table = Checkpoint.open(tiny_language).tensor("model.embed_tokens.weight").numpy()
    tokens = list(range(30, 90))
    model.clear()
    model.evaluate_tokens(tokens)
    expected = model.logits()
    model.clear()
    model.evaluate_embeddings(table[tokens], text_positions(0, len(tokens)))
    np.testing.assert_allclose(model.logits(), expected, atol=1e-5)
    assert model.position == model.evaluated == 60


def test_embeddings_in_chunks_are_those_of_one_pass(tiny_gguf, model, monkeypatch):
    embeddings, positions = video(4)  # 720 of them: two chunks of 512, cut inside a temporal patch
    tail = [5, 6, 7]
    model.clear()
    model.evaluate_embeddings(embeddings, positions)
    model.evaluate_tokens(tail)
    chunked = model.logits()
    assert model.evaluated == 723
    monkeypatch.setattr(llama, "_BATCH", 1024)
    with LanguageModel(tiny_gguf, context=1024, threads=1, exact_cache=True) as whole:
        whole.evaluate_embeddings(embeddings, positions)
        whole.evaluate_tokens(tail)
        np.testing.assert_allclose(chunked, whole.logits(), atol=1e-4)
    monkeypatch.setattr(llama, "_BATCH", 7)
    model.clear()
    model.evaluate_embeddings(embeddings, positions)
    model.evaluate_tokens(tail)
    np.testing.assert_allclose(chunked, model.logits(), atol=1e-4)


def test_long_texts_come_in_chunks_too(model, monkeypatch):
    tokens = np.random.default_rng(3).integers(0, 400, 700).tolist()
    model.clear()
    model.evaluate_tokens(tokens)
    chunked = model.logits()
    model.clear()
    for token in tokens:
        model.evaluate_tokens([token])
    np.testing.assert_allclose(chunked, model.logits(), atol=1e-4)


def test_text_goes_on_after_the_largest_position(model):
    embeddings, positions = video(2, rows=2, columns=9)
    model.clear()
    model.evaluate_tokens([1, 2, 3])
    model.evaluate_embeddings(embeddings, positions + 3)
    assert model.position == 3 + 9
    assert model.evaluated == 3 + 36
    model.evaluate_tokens([4])
    assert model.position == 13


def test_embeddings_in_any_layout_of_memory(model):
    embeddings, positions = video(1)
    model.clear()
    model.evaluate_embeddings(embeddings, positions)
    expected = model.logits()
    model.clear()
    model.evaluate_embeddings(np.asfortranarray(embeddings.astype(np.float64)), np.asfortranarray(positions))
    np.testing.assert_array_equal(model.logits(), expected)


def test_clearing_makes_runs_repeatable(model):
    embeddings, positions = video(3)

    def run():
        model.clear()
        model.evaluate_embeddings(embeddings, positions)
        model.evaluate_tokens([9, 8, 7])
        return model.logits()

    first = run()
    model.evaluate_tokens(list(range(100)))
    np.testing.assert_array_equal(run(), first)


@pytest.mark.parametrize("anew", ["tokens", "embeddings"])
def test_a_prefix_serves_several_continuations(model, anew):
    embeddings, positions = video(2)

    def prefix():
        model.clear()
        model.evaluate_tokens([1, 2, 3])
        model.evaluate_embeddings(embeddings, positions + 3)
        model.evaluate_tokens([4])

    def go_on():
        if anew == "tokens":
            model.evaluate_tokens([9, 8, 7])
        else:
            model.evaluate_embeddings(embeddings[:20], text_positions(model.position, 20))
        return model.logits(), model.evaluated, model.position

    prefix()
    expected, *place = go_on()
    prefix()
    mark = model.mark()
    for _ in range(2):
        model.evaluate_embeddings(*(video(1, seed=5)[0], video(1)[1] + model.position))
        inner = model.mark()
        model.evaluate_tokens(list(range(40)))
        model.rewind(mark)
        assert (model.evaluated, model.position) == (mark.evaluated, mark.position)
        found, *there = go_on()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert there == place
        with pytest.raises(LanguageModelError, match="no longer holds"):
            model.rewind(inner)
    model.clear()
    with pytest.raises(LanguageModelError, match="no longer holds"):
        model.rewind(mark)


def test_what_was_taken_back_leaves_its_room(tiny_gguf):
    with LanguageModel(tiny_gguf, context=32, threads=1) as small:
        small.evaluate_tokens([1] * 20)
        mark = small.mark()
        for _ in range(5):
            small.evaluate_tokens([2] * 12)
            small.rewind(mark)


def test_embeddings_before_the_end_of_the_sequence_are_refused(model):
    model.clear()
    model.evaluate_tokens([1, 2, 3])
    with pytest.raises(ValueError, match="position 2 lies before 3"):
        model.evaluate_embeddings(np.zeros((3, 64), np.float32), text_positions(2, 3))


@pytest.mark.parametrize(("context", "free"), [(64, 1000), (100_000, 20_000_000)], ids=["weights", "cache"])
def test_too_little_memory_is_noticed_before_it_is_taken(tiny_gguf, monkeypatch, context, free):
    monkeypatch.setattr(llama, "memory_free", lambda: free)
    with pytest.raises(
        LanguageModelError, match=r"lvlm-f32\.gguf needs 0\.\d GB of memory, 0\.0 GB are free"
    ):
        LanguageModel(tiny_gguf, context=context)
    LanguageModel(tiny_gguf, context=64, gpu_layers=-1).close()  # a GPU's memory is llama.cpp's to know


def test_logits_are_a_copy(model):
    model.clear()
    model.evaluate_tokens([1])
    kept = model.logits()
    before = kept.copy()
    model.evaluate_tokens([2])
    np.testing.assert_array_equal(kept, before)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
@example(text="half a pair: \ud83d")
def test_any_text_is_cut_and_put_together_again(model, text):
    tokens = model.tokenize(text)
    assert all(0 <= token < model.tokens for token in tokens)
    assert not any(model.ends(token) for token in tokens)
    again = model.text(tokens)
    assert model.tokenize(again) == tokens


@pytest.mark.parametrize("token", [511, 508])
def test_tokens_without_a_text_do_no_harm(model, token):
    assert isinstance(model.text([token, 65]), str)


def test_closing_twice_does_no_harm(tiny_gguf):
    model = LanguageModel(tiny_gguf, context=64)
    model.close()
    model.close()


def _int8_product(path):
    """An INT8 graph, large enough that ONNX Runtime multiplies on AMX tiles where the CPU has them."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 127, (256, 256)).astype(np.int8)
    tensors = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "w": weights,
        "ws": np.full(256, 0.01, np.float32),
        "wz": np.zeros(256, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
            helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [180, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [180, 256])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def test_int8_vision_on_the_same_thread_does_not_disturb_it(tiny_language, tmp_path):
    """Both may use the AMX tile registers, which llama.cpp sets up once per thread: it crashed, or computed wrongly."""
    language.write_gguf(Checkpoint.open(tiny_language), tmp_path / "whole.gguf", "f16")
    quantize_gguf(tmp_path / "whole.gguf", tmp_path / "model.gguf", "q8_0")
    _int8_product(tmp_path / "product.onnx")
    program = """
import sys
from pathlib import Path
import numpy as np
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.language.llama import LanguageModel

graph = OnnxGraph(sys.argv[1], 1)
with LanguageModel(Path(sys.argv[2]), context=256, threads=1) as model:
    found = []
    for _ in range(3):
        model.clear()
        model.evaluate_tokens(list(range(3, 103)))
        found.append(model.logits())
        graph.run({"x": np.ones((180, 256), np.float32)}, ["y"])
    assert all(np.array_equal(found[0], other) for other in found[1:]), found
"""
    command = [sys.executable, "-c", program, str(tmp_path / "product.onnx"), str(tmp_path / "model.gguf")]
    assert subprocess.run(command, check=False).returncode == 0
