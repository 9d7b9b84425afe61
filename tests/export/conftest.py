"""A tiny Qwen2.5-VL checkpoint as transformers writes it, random weights, with all that makes it one of T-VAU."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.prompts import TextConfig
from tvau_edge.export.model.rae import RAEConfig
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import Widths, model_config, write_tokenizer, write_tvau
from tvau_edge.runtime.manifest import Geometry

TINY = Widths(
    vision=VisionConfig(
        depth=4,
        hidden_size=64,
        num_heads=4,
        intermediate_size=96,
        out_hidden_size=256,
        fullatt_block_indexes=(1, 3),
    ),
    text=TextConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        mrope_section=(8, 12, 12),
    ),
    tied=False,
    ahd=AHDConfig(taps=3, width=64, hidden=48, features=256),
    rae=RAEConfig((8, 8, 16), (32, 24), (24, 32), 10, 256),
)
CLIP = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=4)


def make_model(widths: Widths, folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """A float32 model in which every parameter matters; transformers starts with zero biases, flat attention."""
    config = Qwen2_5_VLConfig(**model_config(widths, write_tokenizer(folder), torch.float32))
    model = Qwen2_5_VLForConditionalGeneration(config).eval().float()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name or "ln_q" in name
            gain = 1.5 if any(part in name for part in ("qkv", "q_proj", "k_proj")) else 1.0
            deviation = 0.2 if parameter.ndim == 1 else gain * parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if norm else 0.0, deviation, generator=generator)
    return model


@pytest.fixture(scope="session")
def tiny_widths() -> Widths:
    """The widths of `tiny_checkpoint`."""
    return TINY


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in transformers' own form, float32, untied head. Not to be altered: see `checkpoint_copy`."""
    folder = tmp_path_factory.mktemp("tiny")
    make_model(TINY, folder).save_pretrained(folder)
    write_tvau(folder, TINY, CLIP)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Qwen2_5_VLForConditionalGeneration:
    """What transformers makes of `tiny_checkpoint`."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()


@pytest.fixture
def checkpoint_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_checkpoint` that a test may break."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def narrow_widths() -> Widths:
    """Another tower: three heads, and windows of 2 x 2 merged cells."""
    vision = VisionConfig(3, 96, 3, 128, 256, (2,), window_size=56)
    return replace(TINY, vision=vision)


@pytest.fixture(scope="session")
def random_model() -> Callable[[Widths, Path], Qwen2_5_VLForConditionalGeneration]:
    """Makes a random model of any widths, its tokenizer in a folder."""
    return make_model
