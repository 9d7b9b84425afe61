from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.language import write_gguf
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.prompts import TextConfig
from tvau_edge.export.model.rae import RAEConfig
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import Widths, write_synthetic
from tvau_edge.quantize.language import TYPES, quantize_gguf
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.manifest import Geometry

# Rows of 256 and 512, multiples of what k-quants work on.
WIDTHS = Widths(
    VisionConfig(2, 32, 2, 32, 256, (1,)),
    TextConfig(512, 256, 512, 2, 4, 2, 512, mrope_section=(8, 12, 12)),
    False,
    AHDConfig(2, 32, 16, 256),
    RAEConfig((4, 4, 4), (8, 8), (8, 8), 2, 256),
)
# Least correlation of random weights, which quantize worse than trained ones.
LEAST = {"f16": 0.9999, "q8_0": 0.998, "q6_k": 0.99, "q5_k_m": 0.97, "q4_k_m": 0.92}
# The type of most matrices, by type of the file.
STORED = {"f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q4_k_m": "Q4_K"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    clip = Geometry(width=56, height=56, frames_per_second=4, temporal_patches=2)
    write_synthetic(folder / "checkpoint", WIDTHS, clip=clip, dtype=torch.float32)
    write_gguf(Checkpoint.open(folder / "checkpoint"), folder / "lvlm-f32.gguf", "f32")
    return folder / "lvlm-f32.gguf"


def logits(path):
    with LanguageModel(path, context=128, threads=1) as model:
        model.evaluate_tokens(list(range(40, 120)))
        return model.logits()


@pytest.fixture(scope="module")
def expected(source):
    return logits(source)


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_loads_and_computes_nearly_the_same(source, expected, tmp_path, kind):
    target = tmp_path / f"lvlm-{kind}.gguf"
    steps = []
    unfit = quantize_gguf(source, target, kind, 1, lambda done, total: steps.append((done, total)))
    assert unfit == []
    count = len(gguf.GGUFReader(source).tensors)
    assert steps == [(n, count) for n in range(1, count + 1)]
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    assert target.stat().st_size < source.stat().st_size
    correlation = np.corrcoef(logits(target), expected)[0, 1]
    print(f"{kind}: correlation {correlation:.6f}")
    assert correlation >= LEAST[kind]
    types = [tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors if len(tensor.shape) > 1]
    assert max(set(types), key=types.count) == STORED[kind]


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_matrices_whose_rows_do_not_fit_are_named(tmp_path, caplog, kind):
    widths = replace(WIDTHS, text=replace(WIDTHS.text, intermediate_size=320))
    clip = Geometry(width=56, height=56, frames_per_second=4, temporal_patches=2)
    write_synthetic(tmp_path / "checkpoint", widths, clip=clip, dtype=torch.float32)
    write_gguf(Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "source.gguf", "bf16")
    unfit = quantize_gguf(tmp_path / "source.gguf", tmp_path / "out.gguf", kind, threads=1)
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[STORED[kind]]][0]
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    assert unfit == [t.name for t in tensors if len(t.shape) > 1 and t.shape[0] % block]
    assert unfit == (["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"] if kind == "q4_k_m" else [])
    warnings = [record.getMessage() for record in caplog.records if record.name.endswith("quantize.language")]
    assert len(warnings) == bool(unfit)
    assert all(name in warnings[0] for name in unfit)
    assert logits(tmp_path / "out.gguf").shape == (512,)


def test_every_type_has_a_least_correlation():
    assert LEAST.keys() == TYPES.keys() == STORED.keys()


@pytest.mark.parametrize("kind", ["q4", "Q8_0", "", "f32"])
def test_an_unknown_type_is_refused(source, tmp_path, kind):
    with pytest.raises(
        LanguageModelError, match=r"unknown GGUF type .*; known: f16, q8_0, q6_k, q5_k_m, q4_k_m"
    ):
        quantize_gguf(source, tmp_path / "out.gguf", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "torn"])
def test_a_damaged_source_leaves_nothing_behind(source, tmp_path, damage):
    broken = tmp_path / "source.gguf"
    raw = source.read_bytes()
    contents = {"empty": b"", "garbage": b"GGUF" + bytes(5000), "torn": raw[: len(raw) // 2]}
    if damage != "missing":
        broken.write_bytes(contents[damage])
    with pytest.raises(
        LanguageModelError, match=r"cannot quantize .*source\.gguf to q8_0.*\(llama\.cpp: \w.*\)"
    ):
        quantize_gguf(broken, tmp_path / "out.gguf", "q8_0", threads=1)
    assert {file.name for file in tmp_path.iterdir()} <= {"source.gguf"}


def test_an_older_file_stays_when_quantizing_fails(tmp_path):
    target = tmp_path / "out.gguf"
    target.write_text("old")
    with pytest.raises(LanguageModelError):
        quantize_gguf(tmp_path / "missing.gguf", target, "q8_0")
    assert target.read_text() == "old"


def test_a_folder_that_is_not_there(source, tmp_path):
    with pytest.raises(LanguageModelError, match="cannot quantize"):
        quantize_gguf(source, tmp_path / "no" / "out.gguf", "q8_0", threads=1)


def test_q8_0_can_be_quantized_again(source, expected, tmp_path):
    quantize_gguf(source, tmp_path / "q8_0.gguf", "q8_0", threads=1)
    quantize_gguf(tmp_path / "q8_0.gguf", tmp_path / "q4_k_m.gguf", "q4_k_m", threads=1)
    assert np.corrcoef(logits(tmp_path / "q4_k_m.gguf"), expected)[0, 1] >= LEAST["q4_k_m"]
