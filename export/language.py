"""The language half of a checkpoint as GGUF, architecture qwen2vl, written tensor by tensor.

Names and keys are those that llama.cpp reads for Qwen2-VL; the gguf package holds both. The LoRA is merged on the
way. Matrices are stored in the type that is asked for, norms and biases always in float32, as llama.cpp does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import gguf
import numpy as np
import torch
from torch import Tensor

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.tensors import read_json

GgufType = Literal["f32", "f16", "bf16"]
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, torch.float32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16, torch.float16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16, torch.bfloat16),
}
_SUFFIXES = (".weight", ".bias")
_PIECE = 1 << 20  # numbers converted at a time


def write_gguf(
    checkpoint: Checkpoint, path: Path, kind: GgufType, advance: Callable[[int, int], None] | None = None
) -> None:
    """Write the language model.

    Args:
        checkpoint: opened.
        path: of the GGUF; appears only when it is whole.
        kind: type of the matrices; bf16 has the range of f32, f16 three more bits of precision.
        advance: told of progress as (tensors written, tensors in all).

    Raises:
        CheckpointError: the tokenizer is no byte-level BPE of Qwen's form, or a weight leaves the range of f16.
    """
    ggml, file_type, dtype = _TYPES[kind]
    names = [name for name in checkpoint.names() if not name.startswith("visual.")]
    if checkpoint.tied:
        names = [name for name in names if name != "lm_head.weight"]
    partial = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(partial, "qwen2vl")
    try:
        _add_settings(writer, checkpoint, file_type)
        _add_tokenizer(writer, checkpoint)
        targets = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, checkpoint.text.num_hidden_layers)
        for name in sorted(names):
            shape = checkpoint.shape(name)
            stored = ggml if len(shape) > 1 else gguf.GGMLQuantizationType.F32
            size = int(np.prod(shape)) * (4 if stored == gguf.GGMLQuantizationType.F32 else 2)
            target = targets.get_name(name, try_suffixes=_SUFFIXES)
            if target is None:
                raise CheckpointError(f"{checkpoint.path}: tensor '{name}' has no place in a GGUF of qwen2vl")
            # The type is given outright: numpy, which the dtype here is for, has no bfloat16.
            writer.add_tensor_info(target, shape, np.dtype(np.float32), size, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (name, tensor) in enumerate(checkpoint.language_tensors(), 1):
            writer.write_tensor_data(_Converted(checkpoint, name, tensor, dtype))  # type: ignore[arg-type]
            if advance:
                advance(done, len(names))
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


class _Converted:
    """A tensor as the writer wants an array, converted piece by piece on its way to the file.

    Whole, the token embedding of a 7B would be in memory as it is stored, converted, and once more to be checked.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
        self._checkpoint, self._name, self._tensor = checkpoint, name, tensor
        self._dtype = dtype if tensor.ndim > 1 else torch.float32
        self.nbytes = tensor.numel() * self._dtype.itemsize

    def tofile(self, file: BinaryIO) -> None:
        for piece in torch.split(self._tensor.reshape(-1), _PIECE):
            converted = piece.to(self._dtype)
            if self._dtype == torch.float16 and not torch.isfinite(converted).all():
                raise CheckpointError(
                    f"{self._checkpoint.path}: tensor '{self._name}' has values beyond f16's 65,504 (largest "
                    f"{self._tensor.abs().max():.3g}); export the language model as f32"
                )
            converted.view(torch.uint8).numpy().tofile(file)


def _add_settings(writer: gguf.GGUFWriter, checkpoint: Checkpoint, file_type: gguf.LlamaFileType) -> None:
    text, config = checkpoint.text, checkpoint.config
    writer.add_name(config.name)
    writer.add_license(config.licence)
    if config.description:
        writer.add_description(config.description)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    sections = list(text.mrope_section)
    writer.add_rope_dimension_sections(sections + [0] * (4 - len(sections)))
    writer.add_file_type(file_type)


def _add_tokenizer(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    file = checkpoint.path / "tokenizer.json"
    table = read_json(file)
    model: Any = table.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or "merges" not in model:
        raise CheckpointError(f"{file}: not a byte-level BPE tokenizer, which Qwen2.5 has")
    added: Any = table.get("added_tokens", [])
    control = {token["content"] for token in added if token.get("special")}
    ids: dict[str, int] = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    size = checkpoint.text.vocab_size
    if max(ids.values()) >= size:
        raise CheckpointError(f"{file}: token {max(ids.values())} is beyond the model's vocabulary of {size}")
    if "<|im_end|>" not in ids:
        raise CheckpointError(f"{file}: it has no token <|im_end|>, which ends a turn of Qwen2.5's dialogues")
    # The embedding of a published Qwen is longer than its vocabulary; what nobody can say has a name all the same.
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [gguf.TokenType.UNUSED] * size
    for token, index in ids.items():
        tokens[index] = token
        kinds[index] = gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL
    for token in added:
        if not token.get("special"):
            kinds[token["id"]] = gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    )
    writer.add_eos_token_id(ids["<|im_end|>"])
    if "<|endoftext|>" in ids:
        writer.add_bos_token_id(ids["<|endoftext|>"])
        writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    settings = checkpoint.path / "tokenizer_config.json"
    template = json.loads(settings.read_text()).get("chat_template") if settings.is_file() else None
    if isinstance(template, str):
        writer.add_chat_template(template)
