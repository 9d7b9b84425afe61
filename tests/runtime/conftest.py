"""A tiny language model as GGUF: the export's own, of random weights."""

from pathlib import Path

import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.language import write_gguf
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.prompts import TextConfig
from tvau_edge.export.model.rae import RAEConfig
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import Widths, write_synthetic
from tvau_edge.runtime.manifest import Geometry


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose language model has width 64, 512 tokens and two layers."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    widths = Widths(
        VisionConfig(2, 32, 2, 32, 64, (1,)),
        TextConfig(512, 64, 96, 2, 2, 1, 2048, mrope_section=(4, 6, 6)),
        False,
        AHDConfig(2, 32, 16, 64),
        RAEConfig((4, 4, 4), (8, 8), (8, 8), 2, 64),
    )
    clip = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)
    write_synthetic(folder, widths, clip=clip, dtype=torch.float32, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_language: Path) -> Path:
    """`tiny_language` as GGUF, f32."""
    path = tiny_language.parent / "lvlm-f32.gguf"
    write_gguf(Checkpoint.open(tiny_language), path, "f32")
    return path
