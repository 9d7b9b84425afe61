"""The checkpoint that is shipped."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import tvau_edge.reference.written
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.reference.narration import QUESTIONS
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.reference.samples import GEOMETRY

FOLDER = Path(tvau_edge.reference.written.__file__).parent / "checkpoint"
LIMIT = 25_000_000  # bytes


@pytest.fixture(scope="module")
def shipped():
    return Checkpoint.open(FOLDER)


def test_it_is_small_and_cannot_execute_anything():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_it_has_a_card():
    assert "drawn" in (FOLDER / "README.md").read_text()


def test_it_is_what_the_code_says(shipped):
    assert shipped.config.clip == GEOMETRY
    assert shipped.config.class_prompts.model_dump() == CLASS_PROMPTS
    assert tuple(shipped.config.questions) == QUESTIONS
    assert shipped.text.hidden_size % 256 == 0
    assert shipped.text.intermediate_size % 256 == 0
    assert shipped.lora is not None


def test_transformers_opens_it_with_no_tensor_missing():
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


def test_all_its_weights_are_finite(shipped):
    tensors = [*shipped.vision_tensors(), *shipped.language_tensors()]
    tensors += [*shipped.ahd_tensors(), *shipped.rae_tensors()]
    assert all(torch.isfinite(tensor).all() for _, tensor in tensors)


def test_class_features_of_normal_and_abnormal_differ(shipped):
    normal, abnormal = shipped.class_features()
    assert torch.cosine_similarity(normal, abnormal, dim=0) < 0.99
