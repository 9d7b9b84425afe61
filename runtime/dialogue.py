"""The paper's dialogue about one window: [P_V, P_An, P_Q] by embedding injection, turn after turn.

The clip's prefix is evaluated once; each question and each answer is appended to the KV cache, so that later
questions see the history (paper, multi-turn dialogue).
"""

import time
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.llama import LanguageModel
from tvau_edge.runtime.manifest import Geometry, Language
from tvau_edge.runtime.positions import moments_differ, text_positions, video_positions

_YES, _NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")
_LONGEST = 400  # characters of an answer


@dataclass(frozen=True, slots=True)
class DialogueResult:
    """What the language model said of a window.

    Attributes:
        answers: text by the question's key, in the order in which they were asked.
        p_yes: probability of yes against no for the question `anomaly`, 0..1, from the model's own logits; None
            when it is not among the questions.
        turns: (question, answer), as they followed each other.
        tokens: evaluated in all.
        latency_ms: "prefill" of the clip until the first question's logits, "answers" for the rest.
    """

    answers: dict[str, str]
    p_yes: float | None
    turns: tuple[tuple[str, str], ...]
    tokens: int
    latency_ms: dict[str, float]


def context_needed(language: Language, geometry: Geometry, base_tokens: int) -> int:
    """Tokens that a dialogue may need at most."""
    rows, columns = geometry.merged_grid
    clip = geometry.temporal_patches * rows * columns + (geometry.temporal_patches - 1) * (base_tokens + 10)
    # A token has at least one byte of its text; ten more per turn for the template.
    turns = sum(
        len(question.text.encode()) + language.max_answer_tokens + 10 for question in language.questions
    )
    return clip + turns + len(language.system_prompt.encode()) + 32


class Dialogue:
    """Asks the questions of a manifest about a window: `run`. Others may follow, with the history: `ask`.

    Args:
        model: with a context of at least `context_needed`.
        language: questions, system prompt, limits.
        geometry: of the clip.

    Raises:
        LanguageModelError: the clip's temporal patches lie too close for llama.cpp.
    """

    def __init__(self, model: LanguageModel, language: Language, geometry: Geometry) -> None:
        if not moments_differ(geometry, language.tokens_per_second):
            raise LanguageModelError(
                f"at {geometry.frames_per_second:g} frames per second and {language.tokens_per_second:g} positions "
                "per second, temporal patches share a position, which llama.cpp cannot evaluate; export the "
                "checkpoint without a language model (--llm none)"
            )
        self._model, self._language, self._geometry = model, language, geometry
        self._asked = False  # whether a turn follows the window
        self._end = model.tokenize("<|im_end|>", control=True)
        self._assistant = self._end + self._control("\n<|im_start|>", "assistant\n")
        self._user = self._control("\n<|im_start|>", "user\n")
        self._head = [
            *self._control("<|im_start|>", f"system\n{language.system_prompt}"),
            *self._end,
            *self._control("\n<|im_start|>", "user\n"),
            *model.tokenize("<|vision_start|>", control=True),
        ]
        yes, no = self._first_tokens(_YES), self._first_tokens(_NO)
        # A small vocabulary cuts both " Yes" and " No" after the space, which tells nothing.
        self._yes, self._no = sorted(yes - no), sorted(no - yes)

    def _control(self, control: str, text: str) -> list[int]:
        """Tokens of the template's own control text, then of text in which nothing is control."""
        return self._model.tokenize(control, control=True) + self._model.tokenize(text)

    def _first_tokens(self, words: tuple[str, ...]) -> set[int]:
        return {self._model.tokenize(word)[0] for word in words}

    def run(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> DialogueResult:
        """Ask every question about a window.

        Args:
            p_v: [T', N, D].
            p_an: [K, D], or None to ask without the anomaly encoder.

        Raises:
            LanguageModelError: widths do not fit, or the context is too small.
        """
        started = prefilled = time.perf_counter()
        self.begin(p_v, p_an)
        answers: dict[str, str] = {}
        turns: list[tuple[str, str]] = []
        p_yes = None
        for question in self._language.questions:
            self._pose(question.text)
            if not turns:
                prefilled = time.perf_counter()
            if question.key == "anomaly":
                p_yes = self._probability_of_yes(self._model.logits())
            answers[question.key] = answer = self._answer()
            turns.append((question.text, answer))
        finished = time.perf_counter()
        latency = {"prefill": (prefilled - started) * 1e3, "answers": (finished - prefilled) * 1e3}
        return DialogueResult(answers, p_yes, tuple(turns), self._model.evaluated, latency)

    def begin(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> None:
        """Evaluate a window, forgetting the one before; questions come after it.

        Args:
            p_v: [T', N, D].
            p_an: [K, D] or None.

        Raises:
            LanguageModelError: widths do not fit, or the context is too small.
        """
        model = self._model
        model.clear()
        model.evaluate_tokens(self._head)
        positions = video_positions(
            model.position, len(p_v), self._geometry, self._language.tokens_per_second
        )
        model.evaluate_embeddings(p_v.reshape(-1, p_v.shape[-1]), positions)
        model.evaluate_tokens(model.tokenize("<|vision_end|>", control=True))
        if p_an is not None:
            model.evaluate_embeddings(p_an, text_positions(model.position, len(p_an)))
        self._asked = False

    def ask(self, question: str) -> str:
        """Ask one more question about the window that `begin` or `run` evaluated last; all turns so far are seen.

        Args:
            question: a stranger's; control tokens in it are plain text.

        Raises:
            LanguageModelError: the context is full: `context_needed` counts the manifest's questions only.
        """
        self._pose(question)
        return self._answer()

    def _pose(self, question: str) -> None:
        """Evaluate a question; the logits that stand are those of the answer's first token."""
        opening = self._user if self._asked else []
        self._model.evaluate_tokens(opening + self._model.tokenize(question) + self._assistant)
        self._asked = True

    def _answer(self) -> str:
        """Answer greedily, cleaned; whatever was said ends with <|im_end|> in the cache."""
        said: list[int] = []
        for _ in range(self._language.max_answer_tokens):
            token = int(self._model.logits().argmax())
            if self._model.ends(token):
                break
            said.append(token)
            self._model.evaluate_tokens([token])
        self._model.evaluate_tokens(self._end)
        return clean(self._model.text(said))

    def _probability_of_yes(self, logits: NDArray[np.float32]) -> float:
        yes, no = np.logaddexp.reduce(logits[self._yes]), np.logaddexp.reduce(logits[self._no])
        return float(1 / (1 + np.exp(np.clip(no - yes, -80, 80))))


def clean(text: str) -> str:
    """An answer fit for a message: one line, no control characters, of bounded length."""
    printable = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)
    return " ".join(printable.split())[:_LONGEST].rstrip()
