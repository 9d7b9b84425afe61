"""The class prompts in force: what counts as abnormal here, as sentences that may change at run time.

A behaviour becomes prompts at the paper's three nested levels; their features are the language model's own reading of
them, before its LoRA: the mean over tokens, then over prompts. Each change is a version of its own, kept in one file
with those before it, so that it outlives a restart and can be undone.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import PromptsError
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.llama_states import hidden_states

MOST, LONGEST = 32, 200  # behaviours of a class, and characters of one
CONTEXT = 8 * LONGEST  # tokens of a prompt at most: a character has at most four bytes, a token at least one
_FAITHFUL = 0.98  # cosine of our reading of the bundle's own prompts with the exporter's


@dataclass(frozen=True, slots=True, eq=False)
class PromptSet:
    """The prompts of both classes, and their features.

    Attributes:
        version: 0 for the bundle's own; a set that is put in their place has one that no other had before.
        normal, abnormal: the prompts.
        features: [2, D]: row 0 normal, row 1 abnormal.
        cosine: of the bundle's own prompts as this device reads them with the exporter's reading; None for the
            bundle's.
    """

    version: int
    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    features: NDArray[np.float32]
    cosine: float | None = None

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> "PromptSet":
        """The set that a bundle brings."""
        prompts = bundle.manifest.class_prompts
        return cls(0, tuple(prompts.normal), tuple(prompts.abnormal), bundle.class_features())


def nested(behaviour: str) -> tuple[str, str, str]:
    """A behaviour as word, phrase and sentence.

    Example:
        >>> nested("person jumping")[1]
        'surveillance video of person jumping'
    """
    word = " ".join(behaviour.split())
    return word, f"surveillance video of {word}", f"A short surveillance clip where {word} occurs."


def levels(kind: str, behaviours: Sequence[str]) -> tuple[str, ...]:
    """The prompts of one class.

    Args:
        kind: normal or abnormal, for messages.
        behaviours: what a person would name them: "person riding a bicycle". Control tokens in them stay text.

    Raises:
        PromptsError: there is none, there are too many, or one is empty, too long, or holds control characters.
    """
    if not 1 <= len(behaviours) <= MOST:
        raise PromptsError(f"{len(behaviours)} {kind} behaviours; name 1 to {MOST}")
    prompts: list[str] = []
    for number, behaviour in enumerate(behaviours, 1):
        text = " ".join(unicodedata.normalize("NFC", behaviour).split())
        if not any(character.isalnum() for character in text):
            raise PromptsError(f"{kind} behaviour {number} is {text[:20]!r}; write at least one word")
        if len(text) > LONGEST:
            raise PromptsError(f"{kind} behaviour {number} has {len(text)} characters; at most {LONGEST}")
        if any(unicodedata.category(character).startswith("C") for character in text):
            raise PromptsError(f"{kind} behaviour {number} holds control or unassigned characters")
        prompts += nested(text)
    return tuple(dict.fromkeys(prompts))


def read_features(
    model: LanguageModel, classes: Sequence[Sequence[str]], adapter: Path | None
) -> NDArray[np.float32]:
    """Features of classes of prompts, [classes, D] float32: the mean over prompts of the mean over tokens.

    Args:
        model: the bundle's.
        classes: the prompts of each.
        adapter: the LoRA that is merged into the model, if there is one; it is taken off.

    Raises:
        LanguageModelError: llama.cpp cannot evaluate them.
    """
    texts = [model.tokenize(prompt) for prompts in classes for prompt in prompts]
    means = iter([states.mean(axis=0) for states in hidden_states(model, texts, adapter)])
    return np.stack([np.mean([next(means) for _ in prompts], axis=0) for prompts in classes])


def read_checked(
    model: LanguageModel, bundle: Bundle, normal: Sequence[str], abnormal: Sequence[str]
) -> tuple[NDArray[np.float32], float]:
    """Features of other prompts for a bundle, and how well this device reads the bundle's own.

    Returns:
        [2, D], and the cosine of the bundle's features as read here with the exporter's, the lesser of both classes.

    Raises:
        PromptsError: the cosine is too low: the heatmaps would not be those of these prompts.
    """
    own, language = bundle.manifest.class_prompts, bundle.manifest.language
    adapter = bundle.file(language.adapter) if language and language.adapter else None
    features = read_features(model, [own.normal, own.abnormal, normal, abnormal], adapter)
    exported = bundle.class_features()
    lengths = np.linalg.norm(features[:2], axis=1) * np.linalg.norm(exported, axis=1)
    cosine = float(((features[:2] * exported).sum(axis=1) / lengths).min())
    if not cosine >= _FAITHFUL:
        raise PromptsError(
            f"this device reads the bundle's own prompts with a cosine of {cosine:.3f} to the exporter's reading, at "
            f"least {_FAITHFUL} is needed: the bundle's language model has a LoRA merged that cannot be taken off "
            "(export it again with this version), or its GGUF type is too coarse"
        )
    return features[2:].astype(np.float32), cosine
