import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.lora import canonical

VARIANTS = {
    "plain": {"r": 4, "lora_alpha": 12},
    "rslora": {"r": 4, "lora_alpha": 12, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "down_proj": 20},
    },
    "some layers": {"r": 2, "lora_alpha": 2, "layers_to_transform": [1]},
}


def add_lora(folder, **settings):
    """Write a random adapter into folder/lora; returns the merged weights by PEFT itself, canonical names."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    targets = r".*language_model.*\.(q_proj|v_proj|o_proj|down_proj)"
    if "layers_to_transform" in settings:
        targets = ["q_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, **settings))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "lora")
    merged = adapted.merge_and_unload().state_dict()
    return {canonical(name): tensor for name, tensor in merged.items()}


@pytest.fixture(scope="module")
def adapted(tiny_checkpoint, tmp_path_factory):
    """A checkpoint with a plain adapter, not to be altered."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("adapted") / "checkpoint")
    add_lora(folder, **VARIANTS["plain"])
    return folder


@pytest.fixture
def adapted_copy(adapted, tmp_path):
    return shutil.copytree(adapted, tmp_path / "checkpoint")


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_merging_is_that_of_peft(checkpoint_copy, settings):
    expected = add_lora(checkpoint_copy, **settings)
    checkpoint = Checkpoint.open(checkpoint_copy)
    assert checkpoint.lora.scales
    # The last variant's targets are in the vision tower as well: its blocks have a down_proj too.
    found = dict(checkpoint.language_tensors()) | {f"visual.{n}": t for n, t in checkpoint.vision_tensors()}
    changed = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensor, checkpoint.tensor(name))
    assert changed == len(checkpoint.lora.scales)
    assert found.keys() == expected.keys()


def test_class_features_are_those_of_the_frozen_model(adapted, tiny_checkpoint):
    own = Checkpoint.open(tiny_checkpoint).class_features()
    assert torch.equal(Checkpoint.open(adapted).class_features(), own)


def test_an_adapter_trained_under_older_names_merges_too(adapted_copy):
    expected = dict(Checkpoint.open(adapted_copy).language_tensors())
    file = adapted_copy / "lora" / "adapter_model.safetensors"
    tensors = {name.replace("model.language_model.", "model."): t for name, t in load_file(file).items()}
    save_file(tensors, file)
    for name, tensor in Checkpoint.open(adapted_copy).language_tensors():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_16"}, "also altered the base weights"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"r": 5}, r"shape \[4, \d+\]; expected \[5, \d+\]"),
    ],
)
def test_what_is_not_plain_lora_is_refused(adapted_copy, change, message):
    file = adapted_copy / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(adapted_copy)


def test_dora_as_peft_saves_it_is_refused(checkpoint_copy):
    add_lora(checkpoint_copy, r=2, lora_alpha=2, use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora is True; only plain LoRA"):
        Checkpoint.open(checkpoint_copy)


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def unknown_target(tensors):
    for half in "AB":
        tensors[f"{Q}.lora_{half}.weight".replace("q_proj", "z_proj")] = torch.zeros(4, 4)


def no_b(tensors):
    del tensors[f"{Q}.lora_B.weight"]


def narrow_b(tensors):
    tensors[f"{Q}.lora_B.weight"] = torch.zeros(255, 4)


def embedding(tensors):
    tensors["base_model.model.model.language_model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 512)


def a_norm(tensors):
    for half, shape in (("A", (4, 256)), ("B", (256, 4))):
        tensors[f"{Q}.lora_{half}.weight".replace("self_attn.q_proj", "input_layernorm")] = torch.zeros(shape)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unknown_target, r"'model.language_model.layers.0.self_attn.z_proj' is not a weight of this model"),
        (no_b, "q_proj' has no tensor lora_B.weight"),
        (narrow_b, r"lora_B.weight' has shape \[255, 4\]; expected \[256, 4\]"),
        (embedding, "lora_embedding_A' is not the A or B of a linear layer"),
        (a_norm, r"input_layernorm' has shape \[256\], not a linear layer's"),
        (dict.clear, "holds no tensor"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(adapted_copy, damage, message):
    file = adapted_copy / "lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(adapted_copy)


def test_a_missing_or_truncated_adapter_is_refused(adapted_copy):
    file = adapted_copy / "lora" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: not a whole safetensors file"):
        Checkpoint.open(adapted_copy)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: no such file"):
        Checkpoint.open(adapted_copy)
