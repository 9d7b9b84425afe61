"""What a GGUF type does to the dialogue: windows of the footage, told by the source, retold by each type."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize.footage import Footage
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.manifest import Language

WINDOWS = 4
_LONGEST = 16  # tokens of an answer that are compared

Advance = Callable[[float, float], None]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of the footage as the float graphs see them: P_V [W, T', N, D], P_An [W, K, D]."""

    p_v: NDArray[np.float32]
    p_an: NDArray[np.float32]


@dataclass(frozen=True)
class Told:
    """What was said of each window, as the tokens of whole dialogues.

    Attributes:
        tokens: per window, all that follows the clip, control tokens included.
        answers: per window, the places in `tokens` whose next token is a part of an answer, or ends one.
    """

    tokens: tuple[tuple[int, ...], ...]
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Measured:
    """One GGUF type beside its source.

    Attributes:
        divergence: mean KL divergence of the next token's distribution, in nats.
        divergence_99: of which 99 % of the tokens have no more.
        same_choice: share of tokens, 0..1, at which both would choose the same.
        tokens: that were compared.
        tokens_per_second: answering, one token after the other.
        prefill_per_second: tokens of the clip and its prompt per second.
    """

    divergence: float
    divergence_99: float
    same_choice: float
    tokens: int
    tokens_per_second: float
    prefill_per_second: float

    def record(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)


def see(bundle: Bundle, footage: Footage, advance: Advance | None = None) -> Windows:
    """Windows evenly over the footage, encoded by the bundle's fp32 graphs."""
    geometry = bundle.manifest.geometry
    length = geometry.temporal_patches
    whole = np.concatenate(footage.stretches)
    starts = np.linspace(0, max(0, len(whole) - length), WINDOWS).round().astype(int)
    vision, rae = Vision.open(bundle, "onnxruntime", "fp32"), Rae.open(bundle, "onnxruntime")
    p_v, p_an = [], []
    try:
        for number, start in enumerate(starts, 1):
            frames = whole[start : start + length]
            frames = np.concatenate([frames[:1].repeat(length - len(frames), axis=0), frames])
            patches = [TemporalPatch("footage", k, one, (0.0, 0.0), 0.0) for k, one in enumerate(frames)]
            evidence = [vision.run([patch])[0] for patch in patches]
            p_v.append(np.stack([item.p_v for item in evidence]))
            p_an.append(rae.run(np.stack([item.h_c for item in evidence])))
            if advance:
                advance(number, len(starts))
    finally:
        vision.close()
        rae.close()
    return Windows(np.stack(p_v), np.stack(p_an))


def tell(bundle: Bundle, source: Path, windows: Windows, advance: Advance | None = None) -> Told:
    """Hold the bundle's dialogue about each window with a language model, and write down its tokens."""
    language = _language(bundle)
    tokens, answers = [], []
    with _open(bundle, source) as model:
        dialogue = Dialogue(model, language, bundle.manifest.geometry)
        for number, (p_v, p_an) in enumerate(zip(windows.p_v, windows.p_an, strict=True), 1):
            result = dialogue.run(p_v, p_an)
            said: list[int] = []
            places: list[int] = []
            end = model.tokenize("<|im_end|>", control=True)
            for turn, (question, answer) in enumerate(result.turns):
                opening = _control(model, "\n<|im_start|>", "user\n") if turn else []
                said += [*opening, *model.tokenize(question), *end]
                said += _control(model, "\n<|im_start|>", "assistant\n")
                begins = len(said) - 1
                said += model.tokenize(answer)[:_LONGEST]
                places += range(begins, len(said))
                said += end
            tokens.append(tuple(said))
            answers.append(tuple(places))
            if advance:
                advance(number, len(windows.p_v))
    return Told(tuple(tokens), tuple(answers))


def follow(
    bundle: Bundle, path: Path, windows: Windows, told: Told, advance: Advance | None = None
) -> tuple[NDArray[np.float32], float, float]:
    """Evaluate the same dialogues with a language model.

    Returns:
        Logits at the answers' places [tokens, vocabulary], tokens per second answering, and of the clip.
    """
    found, answering, reading, read, said = [], 0.0, 0.0, 0, 0
    with _open(bundle, path) as model:
        dialogue = Dialogue(model, _language(bundle), bundle.manifest.geometry)
        for number, (p_v, p_an) in enumerate(zip(windows.p_v, windows.p_an, strict=True)):
            began = time.perf_counter()
            dialogue.begin(p_v, p_an)
            reading += time.perf_counter() - began
            read += model.evaluated
            tokens, places = told.tokens[number], set(told.answers[number])
            start = 0
            for place in sorted(places):
                began = time.perf_counter()
                model.evaluate_tokens(list(tokens[start : place + 1]))
                if place - start == 0:  # a token by itself, as when answering
                    answering += time.perf_counter() - began
                    said += 1
                found.append(model.logits())
                start = place + 1
            if advance:
                advance(number + 1, len(windows.p_v))
    return np.stack(found), said / max(answering, 1e-9), read / max(reading, 1e-9)


def measure(expected: NDArray[np.float32], found: NDArray[np.float32], said: float, read: float) -> Measured:
    """Compare the next token's distributions, [tokens, vocabulary] logits each."""
    p, q = _log_softmax(expected), _log_softmax(found)
    divergence = (np.exp(p) * (p - q)).sum(axis=1)
    return Measured(
        divergence=float(divergence.mean()),
        divergence_99=float(np.quantile(divergence, 0.99)),
        same_choice=float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
        tokens=len(expected),
        tokens_per_second=said,
        prefill_per_second=read,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def _control(model: LanguageModel, control: str, text: str) -> list[int]:
    return [*model.tokenize(control, control=True), *model.tokenize(text)]


def _language(bundle: Bundle) -> Language:
    language = bundle.manifest.language
    if language is None:
        raise LanguageModelError(f"{bundle.path} has no language model")
    return language


def _open(bundle: Bundle, path: Path) -> LanguageModel:
    manifest = bundle.manifest
    context = context_needed(_language(bundle), manifest.geometry, manifest.base_tokens)
    return LanguageModel(path, context=context)


def best_source(bundle: Bundle, kinds: Sequence[str] = ("f32", "bf16", "f16", "q8_0")) -> tuple[str, Path]:
    """The GGUF to quantize from: its type, and its path.

    Raises:
        LanguageModelError: the bundle has only types that have lost too much already.
    """
    there = {file.type: file.file for file in _language(bundle).files}
    for kind in kinds:
        if kind in there:
            return kind, bundle.file(there[kind])
    raise LanguageModelError(
        f"{bundle.path} has its language model only as {', '.join(there)}: quantizing that again would lose twice; "
        "export the checkpoint with --llm f16 or q8_0"
    )
