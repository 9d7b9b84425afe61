"""Class-prompt features: the language model's own reading of the prompts, one layer in memory at a time.

The text encoder E_t is the frozen Qwen2.5 language model, without any LoRA. A text alone has equal temporal,
row and column positions, so M-RoPE is plain rotary embedding here. Layers are evaluated one after the other
for all prompts together; each layer's weights are read when their turn comes and dropped after it. For a 7B
that is one layer in float32 (0.9 GB) instead of 30 GB.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tvau_edge.export.model.vision import RMSNorm


@dataclass(frozen=True)
class TextConfig:
    """Widths of the language model; the defaults are the 7B's."""

    vocab_size: int = 152064
    hidden_size: int = 3584  # D
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    max_position_embeddings: int = 128000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> "TextConfig":
        """Read the `text_config` table of a config.json, or the whole of an older, flat one.

        Raises:
            ValueError: the model is not one that this package computes; says which key and what is allowed.
        """
        if values.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act is {values['hidden_act']!r}; only 'silu' is supported")
        if values.get("use_sliding_window"):
            raise ValueError("use_sliding_window is true; only full attention is supported")
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise ValueError(f"rope type is {kind!r}; only 'default' and 'mrope' are supported")
        plain = set(cls.__dataclass_fields__) - {"rope_theta", "mrope_section"}
        missing = sorted(plain - {"max_position_embeddings", "num_key_value_heads"} - set(values))
        if missing:
            raise ValueError(f"{missing[0]} is missing")
        config = cls(
            **{"num_key_value_heads": values["num_attention_heads"]}
            | {name: values[name] for name in plain if name in values},
            rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 1e6))),
            mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
        )
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}"
            )
        if config.num_attention_heads % config.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {config.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {config.num_key_value_heads}"
            )
        if 2 * sum(config.mrope_section) != config.head_size:
            raise ValueError(
                f"mrope_section {list(config.mrope_section)} does not sum to half the head size, "
                f"{config.head_size} / 2"
            )
        return config

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        keys = config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, keys)
        self.v_proj = nn.Linear(config.hidden_size, keys)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: x [P, L, D] -> [P, L, D], each token to itself and those before it."""
        prompts, length, width = x.shape
        heads = (prompts, length, -1, self.config.head_size)
        q, k, v = (f(x).reshape(heads).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, self.config.rope_theta), rotate(k, self.config.rope_theta)  # [P, heads, L, head]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)  # [P, heads, L, head]
        return self.o_proj(y.transpose(1, 2).reshape(prompts, length, width))  # [P, L, D]


class MLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: x [P, L, D] -> [P, L, D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # [P, L, D]


class Layer(nn.Module):
    """One decoder layer of Qwen2.5, under Hugging Face's parameter names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer: x [P, L, D] -> [P, L, D]."""
        x = x + self.self_attn(self.input_layernorm(x))  # [P, L, D]
        return x + self.mlp(self.post_attention_layernorm(x))  # [P, L, D]


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding of x [P, heads, L, head] at positions 0 .. L - 1."""
    length, head = x.shape[-2:]
    frequencies = theta ** -(torch.arange(0, head, 2, dtype=torch.float32) / head)  # [head / 2]
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies  # [L, head / 2]
    angles = torch.cat((angles, angles), dim=-1)  # [L, head]
    first, second = x.chunk(2, dim=-1)  # [P, heads, L, head / 2] each
    return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()  # [P, heads, L, head]


class Weights(Protocol):
    """Where weights are read from, such as an opened checkpoint.

    Names are `model.embed_tokens.weight`, `model.layers.0.…`, `model.norm.weight`.
    """

    def tensor(self, name: str) -> Tensor:
        """Read one whole tensor."""
        ...

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read only these rows of a matrix."""
        ...


@torch.no_grad()
def hidden_states(weights: Weights, config: TextConfig, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The last hidden states, after the final norm, of each prompt by itself.

    Args:
        weights: the language model's tensors, read as they are needed.
        config: its widths.
        prompts: token ids of each prompt; at least one token each.

    Returns:
        One float32 tensor [L_p, D] per prompt.

    Raises:
        ValueError: a prompt has no token.
    """
    if not all(prompts):
        raise ValueError("a class prompt has no token; write at least one word")
    lengths = [len(prompt) for prompt in prompts]
    used = sorted({token for prompt in prompts for token in prompt})
    table = weights.rows("model.embed_tokens.weight", used).float()  # [used, D]
    # Shorter prompts are filled up on the right: attention is causal, so no real token sees the filling.
    place = {token: index for index, token in enumerate(used)}
    ids = torch.tensor([[place[t] for t in p] + [0] * (max(lengths) - len(p)) for p in prompts])  # [P, L]
    x = table[ids]  # [P, L, D]
    with torch.device("meta"):
        layer = Layer(config)
    layer = layer.to_empty(device="cpu")
    for index in range(config.num_hidden_layers):
        for name, parameter in layer.named_parameters():
            parameter.copy_(weights.tensor(f"model.layers.{index}.{name}"))
        x = layer(x)  # [P, L, D]
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.copy_(weights.tensor("model.norm.weight"))
    x = norm(x)  # [P, L, D]
    return [states[:length] for states, length in zip(x, lengths, strict=True)]


def class_features(
    weights: Weights, config: TextConfig, normal: Sequence[Sequence[int]], abnormal: Sequence[Sequence[int]]
) -> Tensor:
    """The two class vectors that AHD compares patches with.

    Args:
        weights: the language model's tensors, without LoRA.
        config: its widths.
        normal: token ids of the normal prompts.
        abnormal: token ids of the abnormal prompts.

    Returns:
        [2, D] float32, row 0 normal, row 1 abnormal: the mean over prompts of the mean over tokens.

    Raises:
        ValueError: a class has no prompt, or a prompt no token.
    """
    if not normal or not abnormal:
        raise ValueError("each of the two classes needs at least one prompt")
    states = hidden_states(weights, config, [*normal, *abnormal])
    return torch.stack([mean(states[: len(normal)]), mean(states[len(normal) :])])  # [2, D]


def mean(states: Iterable[Tensor]) -> Tensor:
    """The mean over prompts of the mean over tokens: tensors [L_p, D] -> [D]."""
    return torch.stack([state.mean(dim=0) for state in states]).mean(dim=0)  # [D]
