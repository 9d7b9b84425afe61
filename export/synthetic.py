"""Synthetic checkpoints: the real form and the real widths, random weights.

They show that export streams, that shards are read, that quantizers meet the outliers they must survive. What
such a checkpoint answers means nothing, and its tvau.json says so.
"""

import json
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from tvau_edge.export.checkpoint import PromptSets, Shape, TvauConfig, model_shapes
from tvau_edge.export.model.ahd import AHDConfig, AnomalyHeatmapDecoder
from tvau_edge.export.model.prompts import TextConfig
from tvau_edge.export.model.rae import RAEConfig, RegionAwareEncoder
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.tensors import TensorWriter
from tvau_edge.runtime.language.class_prompts import nested
from tvau_edge.runtime.manifest import Geometry, Question, Thresholds

OUTLIERS = (80.0, 150.0, 400.0)  # how much the gate and up rows of three MLP channels are scaled
GATED = ("gate_proj", "up_proj")
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen2.5 cuts a text before byte-pair encoding; llama.cpp knows it as "qwen2".
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = {
    "anomaly": "Is there any anomaly in the video?",
    "target": "Which target is abnormal and what does it look like?",
    "motion": "What is its state of motion?",
    "from": "Where does it come from?",
    "to": "Where does it go?",
}


@dataclass(frozen=True)
class Widths:
    """Everything that a synthetic checkpoint's tensors follow from; AHD gets as many taps as the depth allows."""

    vision: VisionConfig
    text: TextConfig
    tied: bool
    ahd: AHDConfig
    rae: RAEConfig

    def with_layers(self, blocks: int, layers: int) -> "Widths":
        """The same widths with fewer vision blocks and language layers; the last block has full attention."""
        full = (*(i for i in self.vision.fullatt_block_indexes if i < blocks - 1), blocks - 1)
        vision = replace(self.vision, depth=blocks, fullatt_block_indexes=full)
        return replace(self, vision=vision, text=replace(self.text, num_hidden_layers=layers))


SEVEN_B = Widths(VisionConfig(), TextConfig(), False, AHDConfig(), RAEConfig())
THREE_B = Widths(
    VisionConfig(out_hidden_size=2048),
    TextConfig(151936, 2048, 11008, 36, 16, 2),
    True,
    AHDConfig(features=2048),
    RAEConfig(features=2048),
)


def default_taps(blocks: int) -> list[int]:
    """The paper's taps, first, quarter, half and last block, for a tower of any depth."""
    return sorted({1, max(1, blocks // 4), max(1, blocks // 2), blocks})


def write_synthetic(
    folder: Path,
    widths: Widths,
    *,
    clip: Geometry,
    outliers: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = 2 << 30,
    seed: int = 0,
) -> None:
    """Write a whole checkpoint with random weights; one tensor is in memory at a time.

    Args:
        folder: made when it is missing; files of the same names are replaced.
        widths: such as `SEVEN_B.with_layers(4, 2)`.
        clip: geometry of its clips.
        outliers: scale three channels of the MLPs of the last eighth of the vision blocks (at least one) by
            80, 150 and 400, as trained towers have them and random ones do not.
        dtype: what the weights are stored as.
        shard_bytes: a shard is closed before it would grow beyond this.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(folder)
    write_json(folder / "config.json", model_config(widths, tokenizer, dtype))
    generator = torch.Generator().manual_seed(seed)
    shapes = model_shapes(widths.vision, widths.text, widths.tied)
    shards = plan_shards(shapes, dtype, shard_bytes)
    places = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with TensorWriter(folder / file, {name: (dtype, shapes[name]) for name in names}) as writer:
            for name in names:
                tensor = random_tensor(name, shapes[name], dtype, generator)
                if outliers:
                    add_outliers(name, tensor, widths.vision.depth)
                writer.write(name, tensor)
                places[name] = file
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places}
    )
    write_tvau(folder, widths, clip, seed)


def write_tvau(folder: Path, widths: Widths, clip: Geometry, seed: int = 0) -> None:
    """Write tvau.json and tvau.safetensors, random AHD and RAE, beside a model of these widths."""
    rows, columns = clip.grid
    taps = default_taps(widths.vision.depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules: dict[str, nn.Module] = {
            "ahd.": AnomalyHeatmapDecoder(replace(widths.ahd, taps=len(taps))),
            "rae.": RegionAwareEncoder(widths.rae, rows, columns),
        }
    tensors = {p + name: t for p, module in modules.items() for name, t in module.state_dict().items()}
    plan = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with TensorWriter(folder / "tvau.safetensors", plan) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    config = TvauConfig(
        name=f"synthetic-{widths.text.hidden_size}x{widths.text.num_hidden_layers}",
        licence="Apache-2.0",
        description="Synthetic: random weights in the form of Qwen2.5-VL with AHD and RAE. It has learnt nothing.",
        clip=clip,
        taps=taps,
        base_tokens=widths.rae.base_tokens,
        class_prompts=PromptSets(
            normal=list(nested("a person walking")), abnormal=list(nested("a person jumping"))
        ),
        thresholds=Thresholds(open=0.6, close=0.4),
        system_prompt="You watch a surveillance camera.",
        questions=[Question(key=key, text=text) for key, text in QUESTIONS.items()],  # type: ignore[arg-type]
        max_answer_tokens=8,
    )
    write_json(folder / "tvau.json", config.model_dump(mode="json"))


def write_tokenizer(folder: Path) -> Tokenizer:
    """Write a small byte-level BPE tokenizer of Qwen2.5's form, its special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = [*QUESTIONS.values(), *nested("a person walking"), *nested("a person jumping")]
    words += ["system", "user", "assistant", "You watch a surveillance camera.", "Yes", "No"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(words * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
            "chat_template": CHAT_TEMPLATE,
        },
    )
    return tokenizer


def model_config(widths: Widths, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """config.json of a model of these widths."""
    text = asdict(widths.text)
    sections, theta = text.pop("mrope_section"), text.pop("rope_theta")
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": str(dtype).removeprefix("torch."),
        "tie_word_embeddings": widths.tied,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "text_config": text
        | {
            "model_type": "qwen2_5_vl_text",
            "hidden_act": "silu",
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": sections},
            "tie_word_embeddings": widths.tied,
        },
        "vision_config": asdict(widths.vision)
        | {
            "model_type": "qwen2_5_vl_vision",
            "hidden_act": "silu",
            "in_channels": 3,
            "temporal_patch_size": 2,
            "tokens_per_second": int(widths.vision.tokens_per_second),
        },
    }


def plan_shards(shapes: dict[str, Shape], dtype: torch.dtype, shard_bytes: int) -> list[list[str]]:
    """Cut the tensors, in order, into shards of at most `shard_bytes`; a larger tensor has one to itself."""
    names, sizes = list(shapes), [torch.Size(shape).numel() * dtype.itemsize for shape in shapes.values()]
    cuts, size = [0], 0
    for index, nbytes in enumerate(sizes):
        if size and size + nbytes > shard_bytes:
            cuts.append(index)
            size = 0
        size += nbytes
    return [names[start:end] for start, end in pairwise([*cuts, len(names)])]


def random_tensor(name: str, shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Weights of the size that trained ones have: norms near one, matrices keeping the size of what they read."""
    norm = name.endswith(("norm.weight", "layernorm.weight", "norm1.weight", "norm2.weight", "ln_q.weight"))
    fan_in = torch.Size(shape[1:]).numel()
    deviation = 0.1 if norm else 0.02 if len(shape) == 1 or "embed_tokens" in name else fan_in**-0.5
    return torch.empty(shape, dtype=dtype).normal_(1.0 if norm else 0.0, deviation, generator=generator)


def outlier_blocks(depth: int) -> range:
    """The vision blocks that get outliers, counted from zero: the last eighth, at least one."""
    return range(depth - max(1, depth // 8), depth)


def add_outliers(name: str, tensor: Tensor, depth: int) -> None:
    """Scale, in place, the gate and up rows of three MLP channels, if this tensor is one of a late block."""
    late = tuple(f"visual.blocks.{block}.mlp.{part}." for block in outlier_blocks(depth) for part in GATED)
    if name.startswith(late):
        channels = torch.linspace(1, tensor.shape[0] - 2, len(OUTLIERS)).long()
        for channel, scale in zip(channels.tolist(), OUTLIERS, strict=True):
            tensor[channel] *= scale


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write one JSON object, indented."""
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
