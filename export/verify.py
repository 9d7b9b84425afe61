"""Every artifact is compared with what it was made from, on real frames, before it may stand in a bundle."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import ExportError
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.prompts import hidden_states
from tvau_edge.export.model.rae import RegionAwareEncoder
from tvau_edge.runtime.backends.graphs import open_graph
from tvau_edge.runtime.detection.choice import Choice
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.manifest import Check, GraphFile

# Largest relative error |a - b| / |b| of a graph in float against torch: rounding, in another order.
FLOAT_LIMIT = 1e-4
# Least cosine of an INT8 graph's outputs with torch's. Below it the heatmap is another one.
INT8_LIMIT = 0.99
# Least correlation of the next token's logits with torch's, by GGUF type.
LANGUAGE_LIMITS = {
    **{"f32": 0.999, "f16": 0.999, "bf16": 0.998},
    **{"q8_0": 0.995, "q6_k": 0.99, "q5_k_m": 0.98, "q4_k_m": 0.97},
}
# Looked at besides a checkpoint's own prompts: the words of a dialogue.
_TEXTS = ("Is there any anomaly in the video?", "A person is running from the left to the right.")

Arrays = dict[str, NDArray[np.float32]]


@torch.no_grad()
def vision_in_torch(module: AnomalyVision, frames: NDArray[np.uint8], features: Tensor) -> Arrays:
    """What torch computes: frames [K, 2, H, W, 3] -> h_c [K, 2, H', W'], p_v [K, N, D]."""
    parts = [module(torch.from_numpy(frames[k : k + 1]), features) for k in range(len(frames))]
    h_c, p_v = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return {"h_c": h_c, "p_v": p_v}


@torch.no_grad()
def rae_in_torch(module: RegionAwareEncoder, h_c: NDArray[np.float32]) -> Arrays:
    """What torch computes: h_c [T', 2, H', W'] -> p_an [T' - 1, N_base + 10, D]."""
    return {"p_an": module(torch.from_numpy(h_c)).numpy()}


def check_graph(
    folder: Path,
    file: GraphFile | Choice,
    inputs: dict[str, NDArray[np.generic]],
    expected: Arrays,
    data: str,
) -> list[Check]:
    """Run one graph and compare each of its outputs.

    Args:
        folder: where the graph's file lies.
        file: which one, or how one is run: an fp32 graph in bf16.
        inputs: by name.
        expected: by name; what it was made from gives this.
        data: what was fed, for the record.

    Raises:
        ExportError: an output is further off than allowed; names it, and the size of the error.
    """
    graph = open_graph(file.backend, folder / file.file, file.precision)
    try:
        outputs = graph.run(inputs, list(expected))
    finally:
        graph.close()
    quantized = file.precision in ("int8", "bf16")
    checks = []
    for (name, right), output in zip(expected.items(), outputs, strict=True):
        value = cosine(output, right) if quantized else relative_error(output, right)
        check = Check(
            artifact=file.file,
            against="torch fp32",
            tensor=name,
            metric="cosine" if quantized else "relative_error",
            value=value,
            limit=INT8_LIMIT if quantized else FLOAT_LIMIT,
            data=data,
        )
        _hold(check, good=value >= INT8_LIMIT if quantized else value <= FLOAT_LIMIT)
        checks.append(check)
    return checks


def check_language(checkpoint: Checkpoint, path: Path, kind: str) -> Check:
    """Compare a GGUF's next-token logits on texts with the checkpoint's, its LoRA merged.

    Raises:
        ExportError: they correlate less than allowed.
    """
    texts = [*checkpoint.config.class_prompts.abnormal[:2], *_TEXTS]
    tokenizer = checkpoint.tokenizer()
    tokens = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    expected = _logits(checkpoint, tokens)
    found = []
    with LanguageModel(path, context=512, exact_cache=kind == "f32") as model:
        for text, ids in zip(texts, tokens, strict=True):
            if model.tokenize(text) != ids:
                raise ExportError(
                    f"{path.name}: llama.cpp cuts {text!r} into other tokens than tokenizer.json does"
                )
            model.clear()
            model.evaluate_tokens(ids)
            found.append(model.logits())
    value = min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(found, expected, strict=True))
    limit = LANGUAGE_LIMITS[kind]
    check = Check(
        artifact=path.name,
        against="torch fp32",
        tensor="logits",
        metric="correlation",
        value=value,
        limit=limit,
        data=f"next token after each of {len(texts)} texts",
    )
    _hold(check, good=value >= limit)
    return check


class _Merged:
    """A checkpoint's weights with its LoRA merged."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def tensor(self, name: str) -> Tensor:
        weight = self._checkpoint.tensor(name)
        return self._checkpoint.lora.merge(name, weight) if self._checkpoint.lora else weight

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        if self._checkpoint.lora and name in self._checkpoint.lora.scales:
            return self.tensor(name)[list(indices)]
        return self._checkpoint.rows(name, indices)


@torch.no_grad()
def _logits(checkpoint: Checkpoint, tokens: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    weights = _Merged(checkpoint)
    states = hidden_states(weights, checkpoint.text, tokens)
    last = torch.stack([state[-1] for state in states])
    head = weights.tensor("model.embed_tokens.weight" if checkpoint.tied else "lm_head.weight")
    return list((last @ head.float().t()).numpy())


def relative_error(output: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """|output - expected| / |expected|, Euclidean; not a number stays not a number."""
    difference = np.linalg.norm((output - expected).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))


def cosine(output: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Cosine of the two as long vectors, -1..1."""
    a, b = output.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


def _hold(check: Check, *, good: bool) -> None:
    if not good:  # also when the value is not a number
        way_out = (
            "; --no-int8 leaves it out, and `tvau quantize` then makes INT8 that keeps in float what it must"
            if ".int8." in check.artifact
            else "; --backends onnxruntime leaves out OpenVINO, which may compute it so"
            if "in bf16" in check.data
            else ""
        )
        raise ExportError(
            f"{check.artifact}: output {check.tensor} does not agree with {check.against}: {check.metric} "
            f"{check.value:.3g}, limit {check.limit:g}, on {check.data}{way_out}"
        )
