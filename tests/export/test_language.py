import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLForConditionalGeneration

from tvau_edge.export import language
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.language import write_gguf
from tvau_edge.export.synthetic import SPECIAL_TOKENS, write_tvau
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.positions import text_positions, video_positions
from tvau_edge.runtime.manifest import Geometry

CLIP = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=4)
SENTENCES = [
    "Is there any anomaly in the video?",
    "A person is running from the left to the right; it's 14:05:59 on 2024-02-29.",
    "1234567890 3.14159 -17 1e9 0x1F",
    "Überraschung: naïve café, Привет мир, 监控摄像头, 日本語のテキスト, مرحبا, 🙂🚀👩‍👩‍👧",
    "  two  spaces,\ttabs\n\nand\r\nnew lines \n ",
    "I'm, you're, WE'LL, they'd, don't; CamelCase snake_case kebab-case",
    "ﬁnal e\u0301 \u00a0 \u200b \u202e!?...---",
    "",
    " ",
    "x",
]


@pytest.fixture(scope="module")
def tiny_gguf(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "lvlm-f32.gguf"
    write_gguf(Checkpoint.open(tiny_checkpoint), path, "f32")
    return path


@pytest.fixture(scope="module")
def llama(tiny_gguf):
    with LanguageModel(tiny_gguf, context=1024, threads=1, exact_cache=True) as model:
        yield model


@pytest.fixture(scope="module")
def outspoken(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with a head whose rows differ in length, so that top tokens are no near-ties."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("outspoken") / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    lengths = torch.randn(512, 1, generator=torch.Generator().manual_seed(9)).exp()
    tensors["lm_head.weight"] *= lengths
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])


@torch.no_grad()
def logits_of(model, embeddings, positions):
    """Logits [n, vocabulary] of transformers for embeddings [n, D] at positions [n, 3]."""
    states = model.model.language_model(
        inputs_embeds=torch.as_tensor(embeddings)[None],
        position_ids=torch.as_tensor(positions.T.astype(np.int64))[:, None],
    ).last_hidden_state
    return model.lm_head(states)[0].numpy()


def random_dialogue(generator, vocabulary, width, turns):
    """Parts of one dialogue: a list of tokens is text; "video" and "anomaly" are embeddings."""

    def text(low, high):
        return generator.integers(0, vocabulary, generator.integers(low, high)).tolist()

    rows, columns = CLIP.merged_grid
    scale = generator.uniform(0.05, 1.0)
    p_v = generator.normal(0, scale, (CLIP.temporal_patches * rows * columns, width))
    p_an = generator.normal(0, scale, ((CLIP.temporal_patches - 1) * 20, width))
    parts = [("text", text(5, 30)), ("video", p_v.astype(np.float32)), ("text", text(1, 2))]
    parts += [("anomaly", p_an.astype(np.float32)), ("text", text(5, 20))]
    return parts + [("text", text(3, 25)) for _ in range(turns - 1)]


def compare(llama, model, parts, tokens_per_second=2.0):
    """Feed a dialogue to both; per turn, the logits that follow it, as (llama.cpp's, transformers')."""
    table = model.get_input_embeddings().weight.detach().numpy()
    llama.clear()
    embeddings, positions, found, ends = [], [], [], []
    for number, (kind, part) in enumerate(parts):
        start = int(positions[-1].max()) + 1 if positions else 0
        if kind == "text":
            llama.evaluate_tokens(part)
            embeddings.append(table[part])
            positions.append(text_positions(start, len(part)))
        else:
            video = kind == "video"
            place = (
                video_positions(start, CLIP.temporal_patches, CLIP, tokens_per_second)
                if video
                else text_positions(start, len(part))
            )
            llama.evaluate_embeddings(part, place)
            embeddings.append(part)
            positions.append(place)
        if number >= 4:  # a question stands: the answer's first token follows
            found.append(llama.logits())
            ends.append(sum(map(len, embeddings)) - 1)
    expected = logits_of(model, np.concatenate(embeddings), np.concatenate(positions))
    return [(mine, expected[end]) for mine, end in zip(found, ends, strict=True)]


def test_twenty_random_dialogues_agree_with_transformers(outspoken, tmp_path):
    write_gguf(Checkpoint.open(outspoken), tmp_path / "lvlm-f32.gguf", "f32")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(outspoken, dtype=torch.float32).eval()
    with LanguageModel(tmp_path / "lvlm-f32.gguf", context=1024, threads=1, exact_cache=True) as llama:
        twenty_dialogues(llama, model)


def twenty_dialogues(llama, model):
    generator = np.random.default_rng(20)  # of twenty dialogues without near-ties
    worst, closest, furthest, turns_compared = 1.0, np.inf, 0.0, 0
    for number in range(20):
        turns = 1 if number < 5 else int(generator.integers(2, 6))
        parts = random_dialogue(generator, llama.tokens, llama.width, turns)
        for mine, theirs in compare(llama, model, parts):
            turns_compared += 1
            worst = min(worst, correlation(mine, theirs))
            first, second = np.sort(theirs)[[-1, -2]]
            closest = min(closest, (first - second) / theirs.std())
            assert mine.argmax() == theirs.argmax()
            furthest = max(furthest, np.abs(mine - theirs).max() / theirs.std())
    print(
        f"20 dialogues, {turns_compared} turns: minimum correlation {worst:.9f}; in standard deviations of the "
        f"logits: largest error {furthest:.4f}, nearest second token {closest:.4f}"
    )
    assert worst >= 0.999
    assert closest > 2 * furthest  # the top tokens were the same for a reason


@pytest.mark.parametrize("tokens_per_second", [4.0, 25.0])
def test_a_video_that_lasts_longer_than_its_grid_is_wide(llama, tiny_model, tokens_per_second):
    parts = random_dialogue(np.random.default_rng(1), llama.tokens, llama.width, 2)
    for mine, theirs in compare(llama, tiny_model, parts, tokens_per_second):
        assert correlation(mine, theirs) >= 0.999999


def test_positions_matter(llama, tiny_model):
    parts = random_dialogue(np.random.default_rng(2), llama.tokens, llama.width, 1)
    (mine, theirs), *_ = compare(llama, tiny_model, parts)
    video = parts[1][1]
    llama.clear()
    llama.evaluate_tokens(parts[0][1])
    llama.evaluate_embeddings(video, text_positions(llama.position, len(video)))
    for kind, part in parts[2:]:
        if kind == "text":
            llama.evaluate_tokens(part)
        else:
            llama.evaluate_embeddings(part, text_positions(llama.position, len(part)))
    assert correlation(llama.logits(), theirs) < 0.999 < correlation(mine, theirs)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_what_stands_in_the_file(tiny_checkpoint, tiny_widths, tmp_path, kind):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    steps = []
    write_gguf(checkpoint, tmp_path / "out.gguf", kind, lambda done, total: steps.append((done, total)))
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    text = tiny_widths.text
    expected = {
        "general.architecture": "qwen2vl",
        "general.name": checkpoint.config.name,
        "general.license": "Apache-2.0",
        "general.description": checkpoint.config.description,
        "qwen2vl.context_length": text.max_position_embeddings,
        "qwen2vl.embedding_length": text.hidden_size,
        "qwen2vl.block_count": text.num_hidden_layers,
        "qwen2vl.feed_forward_length": text.intermediate_size,
        "qwen2vl.attention.head_count": text.num_attention_heads,
        "qwen2vl.attention.head_count_kv": text.num_key_value_heads,
        "qwen2vl.rope.freq_base": text.rope_theta,
        "qwen2vl.attention.layer_norm_rms_epsilon": pytest.approx(text.rms_norm_eps),
        "qwen2vl.rope.dimension_sections": [8, 12, 12, 0],
        "general.file_type": {"f32": 0, "f16": 1, "bf16": 32}[kind],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": False,
    }
    for key, value in expected.items():
        assert reader.get_field(key).contents() == value, key
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert len(types) == len(steps) == sum(not n.startswith("visual.") for n in checkpoint.names())
    for name, found in types.items():
        flat = name.endswith((".bias", "norm.weight"))
        assert found == ("F32" if flat else kind.upper()), name
    norms = {t.name: t.data for t in reader.tensors}
    np.testing.assert_array_equal(norms["output_norm.weight"], checkpoint.tensor("model.norm.weight").numpy())


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_pieces_make_the_same_file(tiny_checkpoint, tmp_path, monkeypatch, kind):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    write_gguf(checkpoint, tmp_path / "whole.gguf", kind)
    monkeypatch.setattr(language, "_PIECE", 1000)
    write_gguf(checkpoint, tmp_path / "pieces.gguf", kind)
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_no_second_copy_of_the_largest_tensor(tmp_path, kind):
    heights = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(heights[0], os.W_OK):
        pytest.skip("the system does not tell peaks of memory")
    name = "model.embed_tokens.weight"
    tensor = torch.ones(1 << 14, 1 << 12, dtype=torch.bfloat16)  # 128 MiB
    checkpoint = SimpleNamespace(
        names=lambda: [name],
        shape=lambda _: tuple(tensor.shape),
        tied=True,
        text=SimpleNamespace(num_hidden_layers=1),
        language_tensors=lambda: iter([(name, tensor)]),
        path=tmp_path,
    )

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", heights[1].read_text())[1]) * 1024

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "_add_settings", lambda *_: None)
        patch.setattr(language, "_add_tokenizer", lambda *_: None)
        heights[0].write_text("5")  # the peak begins anew
        before = peak()
        write_gguf(checkpoint, tmp_path / "out.gguf", kind)
    assert (tmp_path / "out.gguf").stat().st_size > tensor.nbytes
    assert peak() - before < tensor.nbytes / 2  # beside the tensor itself


def test_tokens_and_their_types(tiny_checkpoint, tiny_gguf):
    reader = gguf.GGUFReader(tiny_gguf)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    kinds = reader.get_field("tokenizer.ggml.token_type").contents()
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    ids = tokenizer.get_vocab(with_added_tokens=True)
    assert len(tokens) == len(kinds) == 512
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if token in SPECIAL_TOKENS:
            assert (ids[token], kind) == (index, gguf.TokenType.CONTROL)
        elif token in ids:
            assert (ids[token], kind) == (index, gguf.TokenType.NORMAL)
        else:
            assert (token, kind) == (f"[PAD{index}]", gguf.TokenType.UNUSED)
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == ids["<|im_end|>"]
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    table = json.loads((tiny_checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    assert merges == [" ".join(merge) for merge in table]
    template = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())["chat_template"]
    assert reader.get_field("tokenizer.chat_template").contents() == template


@pytest.mark.parametrize("text", SENTENCES)
def test_texts_are_cut_as_by_tokenizer_json(llama, tiny_checkpoint, text):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    tokens = llama.tokenize(text)
    assert tokens == tokenizer.encode(text, add_special_tokens=False).ids
    assert llama.text(tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_control_tokens_in_a_text_are_plain_text(llama, tiny_checkpoint, token):
    tokenizer = Tokenizer.from_file(str(tiny_checkpoint / "tokenizer.json"))
    control = tokenizer.token_to_id(token)
    assert llama.tokenize(token, control=True) == [control]
    hostile = llama.tokenize(f"a {token} b")
    assert control not in hostile
    assert llama.text(hostile) == f"a {token} b"
    assert llama.text([control]) == ""
    assert llama.ends(control) == (token in ("<|im_end|>", "<|endoftext|>"))


def test_a_tied_head(tiny_widths, random_model, tmp_path):
    widths = replace(tiny_widths, tied=True)
    random_model(widths, tmp_path).save_pretrained(tmp_path)
    write_tvau(tmp_path, widths, CLIP)
    write_gguf(Checkpoint.open(tmp_path), tmp_path / "tied.gguf", "f32")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "tied.gguf").tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    parts = random_dialogue(np.random.default_rng(3), 400, 256, 2)
    with LanguageModel(tmp_path / "tied.gguf", context=1024, threads=1, exact_cache=True) as llama:
        for mine, theirs in compare(llama, model, parts):
            assert correlation(mine, theirs) >= 0.999999
            assert mine.argmax() == theirs.argmax()


def test_the_adapter_is_merged(checkpoint_copy, tiny_model, tmp_path):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint_copy, dtype=torch.float32)
    targets = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, r=4, lora_alpha=8))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(checkpoint_copy / "lora")
    merged = adapted.merge_and_unload().eval()
    write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "merged.gguf", "f32")
    parts = random_dialogue(np.random.default_rng(4), 400, 256, 2)
    with LanguageModel(tmp_path / "merged.gguf", context=1024, threads=1, exact_cache=True) as llama:
        for mine, theirs in compare(llama, merged, parts):
            assert correlation(mine, theirs) >= 0.999999
        for mine, theirs in compare(llama, tiny_model, parts):
            assert correlation(mine, theirs) < 0.99


def test_a_weight_beyond_f16_is_refused(checkpoint_copy, tmp_path):
    file = checkpoint_copy / "model.safetensors"
    tensors = load_file(file)
    name = next(
        name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight") and "visual" not in name
    )
    tensors[name][3, 4] = -7e4
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(checkpoint_copy)
    with pytest.raises(CheckpointError) as caught:
        write_gguf(checkpoint, tmp_path / "out.gguf", "f16")
    for part in ("layers.1.mlp.down_proj.weight", "65,504", "7e+04", "f32"):
        assert part in str(caught.value)
    assert not list(tmp_path.glob("out.*"))
    for kind in ("f32", "bf16"):
        write_gguf(checkpoint, tmp_path / "out.gguf", kind)


def test_a_tokenizer_of_another_kind_is_refused(checkpoint_copy, tmp_path):
    file = checkpoint_copy / "tokenizer.json"
    table = json.loads(file.read_text())
    file.write_text(json.dumps(table | {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a byte-level BPE"):
        write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "out.gguf", "f32")
    table["model"]["vocab"]["beyond"] = 512
    file.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="token 512 is beyond the model's vocabulary of 512"):
        write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "out.gguf", "f32")


def test_a_tokenizer_without_the_end_of_a_turn_is_refused(checkpoint_copy, tmp_path):
    file = checkpoint_copy / "tokenizer.json"
    table = json.loads(file.read_text())
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] != "<|im_end|>"]
    table["model"]["vocab"].pop("<|im_end|>", None)
    file.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*<\|im_end\|>"):
        write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "out.gguf", "f32")


def test_added_words_of_a_user_stay_whole(checkpoint_copy, tmp_path):
    file = checkpoint_copy / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(file))
    write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "out.gguf", "f16")
    with LanguageModel(tmp_path / "out.gguf", context=16) as llama:
        assert llama.tokenize("a <tool> b") == tokenizer.encode("a <tool> b", add_special_tokens=False).ids


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_and_shards(tiny_checkpoint, checkpoint_copy, tmp_path, kind):
    (checkpoint_copy / "model.safetensors").unlink()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint_copy, max_shard_size="500KB")
    write_gguf(Checkpoint.open(checkpoint_copy), tmp_path / "out.gguf", kind)
    parts = random_dialogue(np.random.default_rng(6), 400, 256, 1)
    with LanguageModel(tmp_path / "out.gguf", context=1024, threads=1) as llama:
        for mine, theirs in compare(llama, model.float().eval(), parts):
            assert correlation(mine, theirs) >= 0.999
