"""The language model's stages, and the loop that people write without a cache of the clip."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.latency.footage import take_patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.devices.host import usable_cores
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import BundleError
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.grammar import answer_grammar
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.llama_grammar import Grammar
from tvau_edge.runtime.language.positions import text_positions, video_positions
from tvau_edge.runtime.manifest import Language, Question

_GENERATED = 64  # tokens after which the measure of decoding goes back to the clip's end

Seen = tuple[NDArray[np.float32], NDArray[np.float32]]  # P_V [T', N, D] and P_An [K, D]


def see(bundle: Bundle, job: Job) -> Seen:
    """What the language model is given of the first window of the video; the graphs are closed again."""
    count = bundle.manifest.geometry.temporal_patches
    with closing(Vision.open(bundle, threads=job.threads)) as vision:
        evidence = [vision.run([patch])[0] for patch in take_patches(bundle, job.source, count)]
    with closing(Rae.open(bundle, threads=job.threads)) as encoder:
        p_an = encoder.run(np.stack([one.h_c for one in evidence]))
    return np.stack([one.p_v for one in evidence]), p_an


def language_of(bundle: Bundle) -> Language:
    """The manifest's language model.

    Raises:
        BundleError: there is none.
    """
    if bundle.manifest.language is None:
        raise BundleError("the bundle has no language model; export it with --llm")
    return bundle.manifest.language


@contextmanager
def open_dialogue(
    bundle: Bundle, threads: int | None, more: int = 0
) -> Iterator[tuple[LanguageModel, Dialogue]]:
    """The language model and the dialogue, as `tvau run` opens them, with room for `more` tokens."""
    language, manifest = language_of(bundle), bundle.manifest
    context = context_needed(language, manifest.geometry, manifest.base_tokens) + more
    path = bundle.file(language.files[0].file)
    with LanguageModel(path, context=context, threads=threads or usable_cores()) as model:
        yield model, Dialogue(model, language, manifest.geometry)


def prefill(job: Job, facts: Facts) -> Iterator[float]:
    """Time to the first token: the clip and the first question, until the first answer's logits."""
    bundle = Bundle.open(job.bundle, verify=False)
    p_v, p_an = see(bundle, job)
    with open_dialogue(bundle, job.threads) as (_, dialogue):
        while True:
            yield dialogue.run(p_v, p_an).latency_ms["prefill"] / 1e3


def tokens(job: Job, facts: Facts) -> Iterator[float]:
    """One token of an answer: choice, evaluation, logits; after the clip, as in a dialogue."""
    bundle = Bundle.open(job.bundle, verify=False)
    p_v, p_an = see(bundle, job)
    with open_dialogue(bundle, job.threads, _GENERATED) as (model, dialogue):
        dialogue.begin(p_v, p_an)
        facts["context"] = model.evaluated
        token = model.tokenize("yes")[0]
        mark = model.mark()
        while True:
            model.evaluate_tokens([token])
            for _ in range(_GENERATED - 1):
                started = time.perf_counter()
                token = int(model.logits().argmax())
                model.evaluate_tokens([token])
                yield time.perf_counter() - started
            model.rewind(mark)


def dialogue(job: Job, facts: Facts) -> Iterator[float]:
    """All questions of the manifest about one window, by the runtime's dialogue."""
    bundle = Bundle.open(job.bundle, verify=False)
    p_v, p_an = see(bundle, job)
    with open_dialogue(bundle, job.threads) as (_, ours):
        facts["answers"] = _joined(list(ours.run(p_v, p_an).answers.values()))
        while True:
            started = time.perf_counter()
            ours.run(p_v, p_an)
            yield time.perf_counter() - started


def naive_dialogue(job: Job, facts: Facts) -> Iterator[float]:
    """The same questions, each a call of its own that evaluates clip and history again.

    So do the multimodal chat handlers of llama-cpp-python: they reset the model and evaluate the picture's embeddings
    at every `create_chat_completion`. Those cannot be given the embeddings of a tower that is not their own, so the
    loop is written here, on the same library, model, context and positions.
    """
    bundle = Bundle.open(job.bundle, verify=False)
    p_v, p_an = see(bundle, job)
    with open_dialogue(bundle, job.threads) as (model, _):
        loop = _Naive(model, bundle, p_v, p_an)
        facts["answers"] = _joined(loop.run())
        while True:
            started = time.perf_counter()
            loop.run()
            yield time.perf_counter() - started


def _joined(answers: list[str]) -> str:
    return " | ".join(answers)[:400]


class _Naive:
    """A chat without memory between its calls, greedy, in Qwen's template."""

    def __init__(
        self, model: LanguageModel, bundle: Bundle, p_v: NDArray[np.float32], p_an: NDArray[np.float32]
    ) -> None:
        self._model, self._geometry = model, bundle.manifest.geometry
        self._language = language_of(bundle)
        self._p_v, self._p_an = p_v, p_an
        # Bound to the same answers as the runtime's, so that both say as much.
        self._grammars = {q.key: Grammar(model, answer_grammar(q.key)) for q in self._language.questions}

    def run(self) -> list[str]:
        """Ask every question; returns the answers."""
        turns: list[tuple[str, str]] = []
        for question in self._language.questions:
            turns.append((question.text, self._complete(turns, question)))
        return [answer for _, answer in turns]

    def _complete(self, turns: list[tuple[str, str]], question: Question) -> str:
        model = self._model
        model.clear()
        head = f"<|im_start|>system\n{self._language.system_prompt}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        self._tell(head)
        positions = video_positions(
            model.position, len(self._p_v), self._geometry, self._language.tokens_per_second
        )
        model.evaluate_embeddings(self._p_v.reshape(-1, self._p_v.shape[-1]), positions)
        self._tell("<|vision_end|>")
        model.evaluate_embeddings(self._p_an, text_positions(model.position, len(self._p_an)))
        for asked, answer in turns:
            self._tell(f"{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\n")
        self._tell(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
        grammar = self._grammars[question.key]
        grammar.restart()
        said: list[int] = []
        for _ in range(self._language.max_answer_tokens):
            token = grammar.choose(model.logits())
            if model.ends(token):
                break
            grammar.accept(token)
            said.append(token)
            model.evaluate_tokens([token])
        return model.text(said).strip()

    def _tell(self, text: str) -> None:
        self._model.evaluate_tokens(self._model.tokenize(text, control=True))
