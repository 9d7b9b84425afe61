"""The paper's dialogue about one window: [P_V, P_An, P_Q] by embedding injection, turn after turn.

The system prompt is evaluated when the dialogue is made, the clip once per window; both stay in the KV cache, and each
question goes on from there. What a question sees of the others is the dialogue's `history`: all that came before it,
as the checkpoint was trained, or none, in which case the questions are answered side by side in one batch.
"""

import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.calibration import YesCalibration, probability
from tvau_edge.runtime.language.grammar import LONGEST, answer_grammar
from tvau_edge.runtime.language.llama import Branch, LanguageModel, Mark
from tvau_edge.runtime.language.llama_grammar import Grammar
from tvau_edge.runtime.language.positions import moments_differ, text_positions, video_positions
from tvau_edge.runtime.manifest import Geometry, Language, Question

History = Literal["all", "first", "none"]

_YES, _NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")
OWN = "question"  # the key of a stranger's question


@dataclass(frozen=True, slots=True)
class DialogueResult:
    """What the language model said of a window.

    Attributes:
        answers: text by the question's key, in the order in which they were asked.
        p_yes: probability of yes against no for the question `anomaly`, 0..1, from the model's own logits, calibrated
            if the dialogue is; None when it is not among the questions.
        turns: (question, answer), as they followed each other.
        tokens: evaluated in all.
        latency_ms: "prefill" of the clip until the first question's logits, "answers" for the rest.
        log_odds: of yes against no, as the model has them; None like `p_yes`.
    """

    answers: dict[str, str]
    p_yes: float | None
    turns: tuple[tuple[str, str], ...]
    tokens: int
    latency_ms: dict[str, float]
    log_odds: float | None = None


@dataclass(slots=True)
class Turn:
    """A question and what is said to it; the tokens are without the template's."""

    key: str
    question: str
    asked: list[int]
    said: list[int]
    text: str = ""


def context_needed(language: Language, geometry: Geometry, base_tokens: int, own: int = 0) -> int:
    """Tokens that a dialogue may need at most.

    Args:
        language: questions and limits.
        geometry: of the clip.
        base_tokens: N_base of the RAE.
        own: tokens of questions that strangers may ask beside the manifest's, and their answers.
    """
    rows, columns = geometry.merged_grid
    clip = geometry.temporal_patches * rows * columns + (geometry.temporal_patches - 1) * (base_tokens + 10)
    # A token has at least one byte of its text; ten more per turn for the template.
    turns = sum(
        len(question.text.encode()) + language.max_answer_tokens + 10 for question in language.questions
    )
    return clip + turns + len(language.system_prompt.encode()) + 32 + own


class Dialogue:
    """Asks the questions of a manifest about a window: `run`. Others may follow, with the history: `ask`.

    Args:
        model: with a context of at least `context_needed`, and a branch for each question unless `history` is all.
        language: questions, system prompt, limits.
        geometry: of the clip.
        history: what a question sees of those before it: all, only the first, or none. All but the first, or all,
            are then answered in parallel.
        calibration: of p_yes; None leaves it as the model has it.
        free: without grammars, for comparisons.

    Raises:
        LanguageModelError: the clip's temporal patches lie too close for llama.cpp, or the context is too small.
    """

    def __init__(
        self,
        model: LanguageModel,
        language: Language,
        geometry: Geometry,
        *,
        history: History = "all",
        calibration: YesCalibration | None = None,
        free: bool = False,
    ) -> None:
        if not moments_differ(geometry, language.tokens_per_second):
            raise LanguageModelError(
                f"at {geometry.frames_per_second:g} frames per second and {language.tokens_per_second:g} positions "
                "per second, temporal patches share a position, which llama.cpp cannot evaluate; export the "
                "checkpoint without a language model (--llm none)"
            )
        self._model, self._language, self._geometry = model, language, geometry
        self._history, self._calibration = history, calibration
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
        keys = [*(question.key for question in language.questions), OWN]
        self._grammars = {} if free else {key: Grammar(model, answer_grammar(key)) for key in keys}
        self._clip: Mark | None = None  # the end of P_V
        self._window: Mark | None = None  # the end of P_An
        self._patches = self._start = 0
        self._turns: list[Turn] = []  # of the window
        self._spoken = 0  # how many of them the trunk holds
        self._log_odds: float | None = None
        self._tell_head()

    def close(self) -> None:
        """Free the grammars; the model is not the dialogue's."""
        for grammar in self._grammars.values():
            grammar.close()

    def _control(self, control: str, text: str) -> list[int]:
        """Tokens of the template's own control text, then of text in which nothing is control."""
        return self._model.tokenize(control, control=True) + self._model.tokenize(text)

    def _first_tokens(self, words: tuple[str, ...]) -> set[int]:
        return {self._model.tokenize(word)[0] for word in words}

    def _tell_head(self) -> None:
        """Evaluate the system prompt; every window goes on from here."""
        self._model.clear()
        self._model.evaluate_tokens(self._head)
        self._after_head = self._model.mark()

    def run(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> DialogueResult:
        """Ask every question about a window.

        Args:
            p_v: [T', N, D].
            p_an: [K, D], or None to ask without the anomaly encoder.

        Raises:
            LanguageModelError: widths do not fit, or the context is too small.
        """
        started = time.perf_counter()
        self.begin(p_v, p_an)
        return self._ask_all(started)

    def run_longer(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> DialogueResult:
        """Ask every question anew about a window that has grown by more temporal patches: see `extend`."""
        started = time.perf_counter()
        self.extend(p_v, p_an)
        return self._ask_all(started)

    def _ask_all(self, started: float) -> DialogueResult:
        questions = list(self._language.questions)
        alone = {"all": len(questions), "first": 1, "none": 0}[self._history]
        prefilled = 0.0
        for question in questions[:alone]:
            self._pose(question.key, question.text)
            prefilled = prefilled or time.perf_counter()
            self._answer()
        if questions[alone:]:
            prefilled = self._answer_side_by_side(questions[alone:], prefilled)
        finished = time.perf_counter()
        return DialogueResult(
            answers={turn.key: turn.text for turn in self._turns},
            p_yes=self._p_yes(),
            turns=tuple((turn.question, turn.text) for turn in self._turns),
            tokens=self._model.evaluated,
            latency_ms={"prefill": (prefilled - started) * 1e3, "answers": (finished - prefilled) * 1e3},
            log_odds=self._log_odds,
        )

    def begin(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> None:
        """Evaluate a window, forgetting the one before; questions come after it.

        Args:
            p_v: [T', N, D].
            p_an: [K, D] or None.

        Raises:
            LanguageModelError: widths do not fit, or the context is too small.
        """
        self._clip = self._window = None
        if self._model.holds(self._after_head):
            self._model.rewind(self._after_head)
        else:
            self._tell_head()
        self._start, self._patches = self._model.position, 0
        self._see(p_v, p_an)

    def extend(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> None:
        """Let the window grow: what was seen of it stays in the cache, the turns about it are forgotten.

        The result is that of `begin` with the whole window: later patches lie at later temporal positions, and no
        token of the clip ever saw what came after it. P_An follows the clip, so it is evaluated anew.

        Args:
            p_v: [k, N, D], the temporal patches that have come since.
            p_an: [K, D] of the whole window, or None.

        Raises:
            LanguageModelError: there is no window, widths do not fit, or the context is too small.
        """
        if self._clip is None:
            raise LanguageModelError("there is no window yet that could grow")
        self._model.rewind(self._clip)
        self._window = None
        self._see(p_v, p_an)

    def _see(self, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> None:
        model = self._model
        self._turns, self._spoken, self._log_odds = [], 0, None
        seen, self._patches = self._patches, self._patches + len(p_v)
        positions = video_positions(
            self._start, self._patches, self._geometry, self._language.tokens_per_second
        )
        model.evaluate_embeddings(p_v.reshape(-1, p_v.shape[-1]), positions[seen * p_v.shape[1] :])
        self._clip = model.mark()
        model.evaluate_tokens(model.tokenize("<|vision_end|>", control=True))
        if p_an is not None:
            model.evaluate_embeddings(p_an, text_positions(model.position, len(p_an)))
        self._window = model.mark()

    def ask(self, question: str, key: str = OWN) -> str:
        """Ask one more question about the window that `begin` or `run` evaluated last; all turns so far are seen.

        Where the context would not hold them all, the oldest of the strangers' turns are left out.

        Args:
            question: a stranger's; control tokens in it are plain text.
            key: of the manifest's question that it is, if it is one.

        Raises:
            LanguageModelError: there is no window, or the question alone is too long for the context.
        """
        if self._window is None:
            raise LanguageModelError("there is no window yet that could be asked about")
        need = len(self._model.tokenize(question)) + self._language.max_answer_tokens + 16
        while self._window.evaluated + self._tokens() + need > self._model.context:
            own = next((turn for turn in self._turns if turn.key == OWN), None)
            if own is None:
                break  # the model says what is wrong
            self._turns.remove(own)
            self._spoken = -1
        self._pose(key, question)
        return self._answer()

    def recall(self, key: str, question: str, answer: str, tokens: Sequence[int] | None = None) -> None:
        """Take a turn of an earlier dialogue about this window as said.

        Args:
            key: of the manifest's question, or "question".
            question: as it was asked.
            answer: to it.
            tokens: of the answer, where they are known; otherwise it is cut anew. Control tokens are not believed.
        """
        model = self._model
        plain = tokens is not None and not any(
            token < 0 or token >= model.tokens or model.is_control(token) for token in tokens
        )
        said = list(tokens) if tokens is not None and plain else model.tokenize(answer)
        self._turns.append(Turn(key, question, model.tokenize(question), said, answer))

    @property
    def patches(self) -> int:
        """Temporal patches of the window."""
        return self._patches

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was said of the window so far."""
        return tuple(self._turns)

    def _tokens(self) -> int:
        """Of all turns, and the template around them."""
        return sum(len(turn.asked) + len(turn.said) + 16 for turn in self._turns)

    def _opening(self, turn: Turn, *, first: bool) -> list[int]:
        return ([] if first else self._user) + turn.asked + self._assistant

    def _pose(self, key: str, question: str) -> None:
        """Evaluate a question on the trunk; the logits that stand are those of the answer's first token."""
        if not 0 <= self._spoken <= len(self._turns):
            assert self._window is not None  # turns were left out of one
            self._model.rewind(self._window)
            self._spoken = 0
        text: list[int] = []
        for index, turn in enumerate(self._turns):
            # Of the last turn on the trunk, only the end is missing.
            if index >= self._spoken:
                text += self._opening(turn, first=index == 0) + turn.said
            if index >= self._spoken - 1:
                text += self._end
        turn = Turn(key, question, self._model.tokenize(question), [])
        self._model.evaluate_tokens(text + self._opening(turn, first=not self._turns))
        self._turns.append(turn)
        self._spoken = len(self._turns)

    def _answer(self) -> str:
        """Answer the last turn on the trunk; whatever was said stays in the cache, its end comes with what follows."""
        turn, grammar = self._turns[-1], self._begin_answer(self._turns[-1], self._model.logits())
        while (token := self._next(turn, grammar, self._model.logits())) is not None:
            self._model.evaluate_tokens([token])
        turn.text = self._text(turn)
        return turn.text

    def _text(self, turn: Turn) -> str:
        # A limit may cut a character in two.
        return clean(self._model.text(turn.said).rstrip("\ufffd"))

    def _answer_side_by_side(self, questions: Sequence[Question], prefilled: float) -> float:
        """Answer questions that do not see each other, each on a branch; returns when the first logits stood."""
        model = self._model
        turns = [Turn(q.key, q.text, model.tokenize(q.text), []) for q in questions]
        opening = self._end if self._turns else []
        with model.fork(len(turns)) as branches:
            model.evaluate_branches(
                [
                    (branch, opening + self._opening(turn, first=not self._turns))
                    for branch, turn in zip(branches, turns, strict=True)
                ]
            )
            prefilled = prefilled or time.perf_counter()
            speaking = [
                (branch, turn, self._begin_answer(turn, _logits(branch)))
                for branch, turn in zip(branches, turns, strict=True)
            ]
            while speaking:
                said = [(who, self._next(who[1], who[2], _logits(who[0]))) for who in speaking]
                speaking = [who for who, token in said if token is not None]
                if speaking:
                    model.evaluate_branches([(who[0], [token]) for who, token in said if token is not None])
        for turn in turns:
            turn.text = self._text(turn)
        self._turns += turns
        return prefilled

    def _begin_answer(self, turn: Turn, logits: NDArray[np.float32]) -> Grammar | None:
        if not np.isfinite(logits).all():
            # Also from the cache: what is no number spreads to whatever is evaluated beside it.
            self._model.clear()
            self._clip = self._window = None
            raise LanguageModelError(
                "the language model's logits are no numbers; P_V or P_An overflows, or the GGUF is damaged: export the "
                "bundle again with --llm f16 or --llm f32"
            )
        if turn.key == "anomaly":
            yes, no = np.logaddexp.reduce(logits[self._yes]), np.logaddexp.reduce(logits[self._no])
            self._log_odds = float(yes - no)
        grammar = self._grammars.get(turn.key)
        if grammar is not None:
            grammar.restart()
        return grammar

    def _next(self, turn: Turn, grammar: Grammar | None, logits: NDArray[np.float32]) -> int | None:
        """Choose a turn's next token, greedily; None at the answer's end."""
        if len(turn.said) >= self._language.max_answer_tokens:
            return None
        token = grammar.choose(logits) if grammar is not None else int(logits.argmax())
        if self._model.ends(token):
            return None
        if grammar is not None:
            grammar.accept(token)
        turn.said.append(token)
        return token

    def _p_yes(self) -> float | None:
        if self._log_odds is None:
            return None
        return self._calibration.apply(self._log_odds) if self._calibration else probability(self._log_odds)


def _logits(branch: Branch) -> NDArray[np.float32]:
    assert branch.logits is not None  # after the first evaluation
    return branch.logits


def clean(text: str) -> str:
    """An answer fit for a message: one line, no control characters, of bounded length."""
    printable = "".join(" " if unicodedata.category(c).startswith("C") else c for c in text)
    return " ".join(printable.split())[:LONGEST].rstrip()
