import json
import re
import shutil
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.checkpoint import Checkpoint, TvauConfig
from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.lora import canonical
from tvau_edge.export.tensors import TensorFiles, TensorWriter


def edit(file, change):
    """Change a JSON file by a function on its values."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def edit_tensors(file, change):
    """Change a safetensors file by a function on its dictionary."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def full_name(name):
    """A tensor's name after the modules that hold it, as transformers 4.52 and later wrote it for a while."""
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name


def refused(folder, *parts):
    """Opening `folder` must fail with a message that holds each of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    for part in parts:
        assert part in str(caught.value)


def test_reads_what_transformers_wrote(tiny_checkpoint, tiny_widths, tiny_model):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    widths = (checkpoint.vision, checkpoint.text, checkpoint.tied, checkpoint.ahd, checkpoint.rae)
    assert widths == tuple(vars(tiny_widths).values())
    assert checkpoint.lora is None
    expected = {canonical(name): tensor for name, tensor in tiny_model.state_dict().items()}
    found = dict(checkpoint.language_tensors()) | {f"visual.{n}": t for n, t in checkpoint.vision_tensors()}
    assert found.keys() == expected.keys() == set(checkpoint.names())
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])
        assert checkpoint.shape(name) == tensor.shape
        assert checkpoint.nbytes(name) == tensor.nbytes


def test_rows_are_rows(tiny_checkpoint):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    table = checkpoint.tensor("model.embed_tokens.weight")
    assert torch.equal(checkpoint.rows("model.embed_tokens.weight", [3, 500, 3]), table[[3, 500, 3]])


def test_modules_are_those_of_the_tensors(tiny_checkpoint):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    vision, rae = checkpoint.vision_module(), checkpoint.rae_module(width=448, height=252)
    assert not vision.training
    assert (vision.vision.height, vision.vision.width, rae.grid) == (140, 252, (18, 32))
    decoders = load_file(tiny_checkpoint / "tvau.safetensors")
    for name, tensor in [(f"ahd.{n}", t) for n, t in vision.ahd.state_dict().items()]:
        assert torch.equal(tensor, decoders[name])
    assert torch.equal(rae.base, decoders["rae.base"])
    with torch.no_grad():
        h_c, p_v = vision(torch.zeros(1, 2, 140, 252, 3, dtype=torch.uint8), checkpoint.class_features())
        p_an = rae(torch.randn(4, 2, 18, 32))
    assert (h_c.shape, p_v.shape, p_an.shape) == ((1, 2, 10, 18), (1, 45, 256), (3, 20, 256))
    with pytest.raises(CheckpointError, match="width 250 is not a positive multiple of 28"):
        checkpoint.vision_module(width=250)
    with pytest.raises(CheckpointError, match="height 100 is not a positive multiple of 28"):
        checkpoint.rae_module(height=100)


def test_sharded_and_in_half_precision(tiny_checkpoint, checkpoint_copy):
    (checkpoint_copy / "model.safetensors").unlink()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint_copy, max_shard_size="500KB")
    assert len(list(checkpoint_copy.glob("model-*.safetensors"))) > 3
    checkpoint = Checkpoint.open(checkpoint_copy)
    for name, tensor in checkpoint.language_tensors():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, Checkpoint.open(tiny_checkpoint).tensor(name).bfloat16())
    assert checkpoint.vision_module().vision.merger.mlp[0].weight.dtype == torch.float32


def test_the_older_form_of_published_checkpoints(tiny_checkpoint, checkpoint_copy):
    def flatten(values):
        text = values.pop("text_config")
        rope = text.pop("rope_parameters")
        text.pop("model_type")
        values.update(text)
        values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}

    edit(checkpoint_copy / "config.json", flatten)
    old, new = Checkpoint.open(checkpoint_copy), Checkpoint.open(tiny_checkpoint)
    assert (old.text, old.vision, old.tied) == (new.text, new.vision, new.tied)


def test_every_way_of_naming_tensors(tiny_checkpoint, checkpoint_copy):
    def rename(tensors):
        for name in list(tensors):
            tensors[full_name(name)] = tensors.pop(name)

    edit_tensors(checkpoint_copy / "model.safetensors", rename)
    assert "model.language_model.norm.weight" in load_file(checkpoint_copy / "model.safetensors")
    other, usual = Checkpoint.open(checkpoint_copy), Checkpoint.open(tiny_checkpoint)
    for found, expected in (
        (other.language_tensors(), usual.language_tensors()),
        (other.vision_tensors(), usual.vision_tensors()),
    ):
        for (name, tensor), (wanted, value) in zip(found, expected, strict=True):
            assert name == wanted
            assert torch.equal(tensor, value)


def test_a_tied_head_is_not_asked_for_and_not_given(checkpoint_copy):
    edit(checkpoint_copy / "config.json", lambda values: values.update(tie_word_embeddings=True))
    with_head = [name for name, _ in Checkpoint.open(checkpoint_copy).language_tensors()]
    edit_tensors(checkpoint_copy / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    without = Checkpoint.open(checkpoint_copy)
    assert without.tied
    assert with_head == [name for name, _ in without.language_tensors()]
    assert "lm_head.weight" not in with_head


def test_the_digest_is_over_names_and_contents(checkpoint_copy):
    digest = Checkpoint.open(checkpoint_copy).sha256()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    (checkpoint_copy / "README.md").write_text("a card")
    assert Checkpoint.open(checkpoint_copy).sha256() == digest
    edit(checkpoint_copy / "tvau.json", lambda values: values.update(name="other"))
    changed = Checkpoint.open(checkpoint_copy).sha256()
    assert changed != digest
    (checkpoint_copy / "tokenizer_config.json").rename(checkpoint_copy / "elsewhere.json")
    assert Checkpoint.open(checkpoint_copy).sha256() != changed


def test_a_folder_that_is_not_there(tmp_path):
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path, "config.json: no such file")


@pytest.mark.parametrize(
    "name", ["config.json", "tvau.json", "tvau.safetensors", "model.safetensors", "tokenizer.json"]
)
def test_a_missing_file_is_named(checkpoint_copy, name):
    (checkpoint_copy / name).unlink()
    refused(checkpoint_copy, f"{name}: no such file")


@pytest.mark.parametrize("name", ["tvau.safetensors", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_named(checkpoint_copy, name, keep):
    file = checkpoint_copy / name
    file.write_bytes(file.read_bytes()[:keep])
    refused(checkpoint_copy, f"{name}: not a whole safetensors file", "fetch it again")


def test_a_file_that_is_cut_after_opening_is_an_error_too(checkpoint_copy):
    checkpoint = Checkpoint.open(checkpoint_copy)
    file = checkpoint_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model.safetensors: tensor '.*' cannot be read"):
        list(islice(checkpoint.language_tensors(), 1))


@pytest.mark.parametrize("name", ["config.json", "tvau.json"])
def test_what_is_not_json_is_refused_with_its_line(checkpoint_copy, name):
    (checkpoint_copy / name).write_text('{\n"a": 1,\n}')
    refused(checkpoint_copy, f"{name}: line 3: not JSON")
    (checkpoint_copy / name).write_text("[]")
    refused(checkpoint_copy, f"{name}: holds list")
    (checkpoint_copy / name).write_bytes(b"\xff\xfe{}")
    refused(checkpoint_copy, f"{name}: cannot be read")


@pytest.fixture
def sharded(checkpoint_copy):
    tensors = load_file(checkpoint_copy / "model.safetensors")
    (checkpoint_copy / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number in range(2):
        places |= dict.fromkeys(names[number::2], f"model-0000{number + 1}-of-00002.safetensors")
        save_file({n: tensors[n] for n in names[number::2]}, checkpoint_copy / places[names[number]])
    index = {"metadata": {}, "weight_map": places}
    (checkpoint_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    return checkpoint_copy


def test_a_missing_shard_is_named(sharded):
    assert Checkpoint.open(sharded).names()
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "shard 'model-00002-of-00002.safetensors'", "tensors) is not in")


def test_a_shard_that_lacks_what_the_index_lists(sharded):
    file = sharded / "model-00001-of-00002.safetensors"
    edit_tensors(file, lambda tensors: tensors.pop("lm_head.weight"))
    refused(sharded, "00001-of-00002.safetensors: tensor 'lm_head.weight' is listed", "but not there")


def test_a_shard_outside_the_folder_is_refused(sharded):
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded.parent / "outside.safetensors")

    def lead_out(index):
        index["weight_map"]["lm_head.weight"] = "../outside.safetensors"

    edit(sharded / "model.safetensors.index.json", lead_out)
    refused(sharded, "shard '../outside.safetensors'")


def test_an_index_without_a_map(sharded):
    edit(sharded / "model.safetensors.index.json", lambda index: index.pop("weight_map"))
    refused(sharded, "no 'weight_map'")


@pytest.mark.parametrize(
    ("name", "tensor", "parts"),
    [
        ("visual.merger.ln_q.weight", None, ["'visual.merger.ln_q.weight' [64] is missing"]),
        ("lm_head.weight", None, ["'lm_head.weight' [512, 256] is missing", "tie_word_embeddings is false"]),
        (
            "visual.blocks.2.attn.qkv.weight",
            torch.zeros(192, 60),
            ["'visual.blocks.2.attn.qkv.weight' has shape [192, 60]; expected [192, 64]", "config.json"],
        ),
        (
            "visual.blocks.9.attn.qkv.weight",
            torch.zeros(2),
            ["'visual.blocks.9.attn.qkv.weight' is unknown"],
        ),
        (
            "model.language_model.norm.weight",
            torch.zeros(256),
            ["'model.language_model.norm.weight'", "'model.norm.weight'", "are the same tensor"],
        ),
        (
            "lm_head.weight",
            torch.zeros(512, 256, dtype=torch.int8),
            ["'lm_head.weight' is I8", "F32, F16, BF16"],
        ),
    ],
)
def test_a_tensor_that_does_not_fit_the_configuration(checkpoint_copy, name, tensor, parts):
    def damage(tensors):
        tensors.pop(name, None)
        tensors.update({} if tensor is None else {name: tensor})

    edit_tensors(checkpoint_copy / "model.safetensors", damage)
    refused(checkpoint_copy, *parts)


@pytest.mark.parametrize(
    ("name", "shape", "parts"),
    [
        ("ahd.weights", None, ["'ahd.weights' is missing"]),
        ("ahd.mlps.1.2.bias", None, ["'ahd.mlps.1.2.bias' [256] is missing"]),
        ("ahd.weights", (4,), ["'ahd.weights' has shape [4]; expected [3]", "tvau.json"]),
        ("ahd.mlps.2.0.weight", (48, 63), ["has shape [48, 63]; expected [48, 64]"]),
        ("ahd.mlps.0.0.weight", (48,), ["'ahd.mlps.0.0.weight' has shape [48]; expected 2 axes"]),
        ("rae.conv.2.weight", None, ["'rae.conv.2.weight' is missing"]),
        ("rae.conv.0.weight", (8, 3, 3, 3), ["has shape [8, 3, 3, 3]; expected [8, 2, 3, 3]"]),
        ("rae.base", (9, 256), ["'rae.base' has shape [9, 256]; expected [10, 256]"]),
        ("rae.base", (10, 255), ["expected [10, 256]"]),
        ("rae.region_out.weight", (256, 23), ["expected [256, 24]"]),
        ("rae.extra", (2, 2), ["'rae.extra' is unknown"]),
    ],
)
def test_decoders_that_do_not_fit(checkpoint_copy, name, shape, parts):
    def damage(tensors):
        tensors.pop(name, None)
        tensors.update({} if shape is None else {name: torch.zeros(shape)})

    edit_tensors(checkpoint_copy / "tvau.safetensors", damage)
    refused(checkpoint_copy, "tvau.safetensors: tensor", *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"taps": [1, 2, 33]}, ["taps: 33 is unknown", "blocks 1 to 4"]),
        ({"taps": [2, 1]}, ["taps: ", "[2, 1] are not ascending"]),
        ({"taps": [0, 1]}, ["taps.0: ", "greater than 0", "found 0"]),
        ({"schema": "tvau.checkpoint/9"}, ["schema: ", "'tvau.checkpoint/1'", "found 'tvau.checkpoint/9'"]),
        ({"colour": "red"}, ["colour: ", "not permitted", "found 'red'"]),
        ({"class_prompts": {"normal": [], "abnormal": ["x"]}}, ["class_prompts.normal: ", "at least 1"]),
        ({"class_prompts": {"normal": [" "], "abnormal": ["x"]}}, ["a prompt is empty"]),
        ({"thresholds": {"open": 0.2, "close": 0.5}}, ["close 0.5 is above open 0.2"]),
        ({"questions": [{"key": "who", "text": "?"}]}, ["questions.0.key: ", "'anomaly'", "found 'who'"]),
    ],
)
def test_values_of_tvau_json(checkpoint_copy, change, parts):
    edit(checkpoint_copy / "tvau.json", lambda values: values.update(change))
    refused(checkpoint_copy, "tvau.json: ", *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"width": 250}, ["clip: ", "width 250 is not a multiple of 28", "224 or 252"]),
        ({"temporal_patches": 1}, ["clip.temporal_patches: "]),
        ({"patch_size": 16, "width": 256, "height": 128}, ["patch_size", "14 and 2"]),
    ],
)
def test_values_of_the_clip(checkpoint_copy, change, parts):
    edit(checkpoint_copy / "tvau.json", lambda values: values["clip"].update(change))
    refused(checkpoint_copy, "tvau.json: ", *parts)


def test_a_missing_key_is_named(checkpoint_copy):
    edit(checkpoint_copy / "tvau.json", lambda values: values.pop("licence"))
    refused(checkpoint_copy, "tvau.json: licence: Field required")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'; expected 'qwen2_5_vl'"),
        ({"vision_config": None}, "text_config and vision_config must be tables"),
        ({"text_config": {"hidden_size": 256}}, "intermediate_size is missing"),
        ({"vision_config": {"hidden_size": "wide"}}, "config.json: "),
        ({"vision_config": {"num_heads": 0}}, "config.json: "),
        ({"vision_config": {"patch_size": 0}}, "config.json: "),
    ],
)
def test_values_of_config_json(checkpoint_copy, change, part):
    edit(checkpoint_copy / "config.json", lambda values: values.update(change))
    refused(checkpoint_copy, "config.json: ", part)


def test_a_tower_that_does_not_lead_into_the_language_model(checkpoint_copy):
    def widen(values):
        values["vision_config"]["out_hidden_size"] = 128

    def cut(tensors):
        for kind in ("weight", "bias"):
            name = f"visual.merger.mlp.2.{kind}"
            tensors[name] = tensors[name][:128].clone()

    edit(checkpoint_copy / "config.json", widen)
    edit_tensors(checkpoint_copy / "model.safetensors", cut)
    refused(checkpoint_copy, "out_hidden_size 128 is not the language model's hidden_size 256")


def test_a_tokenizer_that_is_none(checkpoint_copy):
    (checkpoint_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not a tokenizer"):
        Checkpoint.open(checkpoint_copy).class_features()


def test_tvau_json_reads_back_what_it_writes(tiny_checkpoint, tmp_path):
    config = Checkpoint.open(tiny_checkpoint).config
    (tmp_path / "tvau.json").write_text(config.model_dump_json())
    assert TvauConfig.read(tmp_path / "tvau.json") == config


def test_what_the_writer_writes_the_reader_and_safetensors_read_back(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2, 2).half()}
    file = tmp_path / "some.safetensors"
    with TensorWriter(file, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    files, loaded = TensorFiles.open(file), load_file(file)
    for name, tensor in tensors.items():
        assert torch.equal(files.tensor(name), tensor)
        assert torch.equal(loaded[name], tensor)


def test_the_writer_keeps_to_its_plan(tmp_path):
    plan = {"a": (torch.float32, (2,)), "b": (torch.float32, (2,))}
    with pytest.raises(ValueError, match="expected a"), TensorWriter(tmp_path / "x", plan) as writer:
        writer.write("b", torch.zeros(2))
    with (
        pytest.raises(ValueError, match="1 tensors of the plan"),
        TensorWriter(tmp_path / "x", plan) as writer,
    ):
        writer.write("a", torch.zeros(2))
