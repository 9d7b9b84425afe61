"""A PEFT LoRA adapter, merged into the weights one tensor at a time: W + scale B A.

Only plain LoRA on linear layers is merged. Whatever else an adapter's configuration asks for is refused by
name: a variant that is merged as if it were plain LoRA gives a model that is quietly wrong.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.tensors import TensorFiles, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# Keys that change what the adapter computes, and the values under which they do not.
PLAIN: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "monteclora_config": (None, {}),
    "velora_config": (None, {}),
    "megatron_config": (None, {}),
}
# Ways to start training that also alter the base weights, so that A and B alone do not tell the result.
ALTERED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Lora:
    """An opened adapter.

    Attributes:
        scales: canonical name of each weight that the adapter changes -> the scale of its B A.
    """

    scales: dict[str, float]
    _files: TensorFiles
    _pairs: dict[str, tuple[str, str]]  # weight -> names of its A and B in the adapter

    @classmethod
    def open(cls, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> "Lora":
        """Read the adapter in `folder` and check that it fits.

        Args:
            folder: holds adapter_config.json and adapter_model.safetensors.
            shapes: canonical name -> shape of every weight of the model.

        Raises:
            CheckpointError: it is not plain LoRA, has an unknown target, or a shape that does not fit.
        """
        config = read_json(folder / CONFIG)
        refuse_variants(folder / CONFIG, config)
        files = TensorFiles.open(folder / WEIGHTS)
        halves: dict[str, dict[str, str]] = {}
        for name in files.stored:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
            if not match:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: tensor '{name}' is not the A or B of a linear layer; only plain LoRA "
                    "is merged (merge it with peft, and save the whole model)"
                )
            halves.setdefault(match[1], {})[match[2]] = name
        if not halves:
            raise CheckpointError(
                f"{folder / WEIGHTS}: holds no tensor; remove the folder if there is no LoRA"
            )
        scales, pairs = {}, {}
        for module, names in halves.items():
            weight = canonical(f"{module}.weight")
            rank, scales[weight] = rank_and_scale(folder / CONFIG, config, module)
            pairs[weight] = check_pair(folder / WEIGHTS, files, module, names, shapes.get(weight), rank)
        return cls(scales, files, pairs)

    def merge(self, name: str, weight: Tensor) -> Tensor:
        """The weight [out, in] with the adapter added, float32; as it was when the adapter leaves it alone."""
        if name not in self.scales:
            return weight
        a, b = self.pair(name)  # [r, in], [out, r]
        return torch.addmm(weight.float(), b, a)  # [out, in]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of a weight in `scales`, float32, with the scale in B: what is added is B A."""
        a, b = (self._files.tensor(half).float() for half in self._pairs[name])
        return a, b * self.scales[name]


def canonical(name: str) -> str:
    """The one name of a tensor, whichever version of transformers wrote it.

    The language model's tensors are `model.…` and `lm_head.weight`, the vision tower's `visual.…`.
    """
    for prefix, short in (
        ("model.visual.", "visual."),
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
    ):
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def refuse_variants(file: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError when `config` asks for more than plain LoRA."""
    for key, allowed in PLAIN.items():
        if key in config and config[key] not in allowed:
            raise CheckpointError(
                f"{file}: {key} is {config[key]!r}; only plain LoRA is merged, with {key} {allowed[0]!r} "
                "(merge it with peft's merge_and_unload, and save the whole model)"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(ALTERED_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights is {start!r}, which also altered the base weights; save the adapter with "
            "path_initial_model_for_weight_conversion, or merge it with peft"
        )


def rank_and_scale(file: Path, config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of `module`, rank_pattern and alpha_pattern honoured as PEFT does.

    Raises:
        CheckpointError: r or lora_alpha is no positive number.
    """

    def value(default: str, patterns: str) -> Any:
        for pattern, special in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return special
        return config.get(default)

    rank, alpha = value("r", "rank_pattern"), value("lora_alpha", "alpha_pattern")
    if not isinstance(rank, int) or rank < 1:
        raise CheckpointError(f"{file}: r is {rank!r} for {module}; expected a positive whole number")
    if not isinstance(alpha, int | float):
        raise CheckpointError(f"{file}: lora_alpha is {alpha!r} for {module}; expected a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def check_pair(
    file: Path,
    files: TensorFiles,
    module: str,
    names: Mapping[str, str],
    shape: tuple[int, ...] | None,
    rank: int,
) -> tuple[str, str]:
    """The names of A and B of `module`; raises CheckpointError when they do not fit its weight."""
    if shape is None:
        raise CheckpointError(f"{file}: LoRA target '{module}' is not a weight of this model")
    if len(shape) != 2:
        raise CheckpointError(f"{file}: LoRA target '{module}' has shape {list(shape)}, not a linear layer's")
    for half, expected in (("A", (rank, shape[1])), ("B", (shape[0], rank))):
        if half not in names:
            raise CheckpointError(f"{file}: LoRA target '{module}' has no tensor lora_{half}.weight")
        found = files.stored[names[half]].shape
        if found != expected:
            raise CheckpointError(
                f"{file}: tensor '{names[half]}' has shape {list(found)}; expected {list(expected)} "
                f"for rank {rank} and a weight of {list(shape)}"
            )
    return names["A"], names["B"]
