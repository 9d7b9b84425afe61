"""Answers requests to the language model, whoever brings them: our own process, a pipe, or a broker."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import EvidenceError, LanguageModelError, PromptsError, TvauError
from tvau_edge.runtime.language.calibration import load_calibration
from tvau_edge.runtime.language.class_prompts import read_checked
from tvau_edge.runtime.language.dialogue import Dialogue, DialogueResult, History, context_needed
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.language.messages import (
    HeldPatches,
    Reply,
    Request,
    Tensors,
    Turn,
    evidence_of,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

_OWN = 1024  # tokens of strangers' questions about an event, and their answers, that stay in the context


class Language(Protocol):
    """A language model somewhere."""

    def exchange(self, request: bytes, seconds: float) -> bytes:
        """Send a packed `Request` and wait for the packed `Reply`, so long at most.

        Raises:
            LanguageModelError: it is gone, or did not answer in time.
        """


@dataclass(frozen=True, slots=True)
class LanguageSettings:
    """How a language model is loaded and asked.

    Attributes:
        bundle: its folder; whoever names it has verified it.
        kind: GGUF type; None for the bundle's first.
        threads: CPU threads; None leaves it to llama.cpp.
        gpu_layers: layers on the GPU; -1 all of them.
        history: see `Dialogue`.
        calibration: file of p_yes' calibration, or None.
        patches: temporal patches that an event's sequence may grow to; None: as many as a window has.
    """

    bundle: Path
    kind: str | None = None
    threads: int | None = None
    gpu_layers: int = 0
    history: History = "all"
    calibration: Path | None = None
    patches: int | None = None


class LanguageServer:
    """A loaded language model that answers packed requests, one after the other.

    Args:
        settings: what to load.

    Raises:
        LanguageModelError: the bundle has no language model, or llama.cpp cannot load it.
        MissingExtraError: the extra `llm` is not installed.
        ConfigError: the calibration is not this model's.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        self._bundle = bundle = Bundle.open(settings.bundle, verify=False)
        manifest, file = bundle.manifest, bundle.language(settings.kind)
        if file is None or manifest.language is None:
            raise LanguageModelError(f"{bundle.path} has no language model; export with --llm")
        calibration = None
        if settings.calibration is not None:
            calibration = load_calibration(settings.calibration, bundle.sha256, file.type)
        self._language, self._geometry, self._kind = manifest.language, manifest.geometry, file.type
        self._patches = max(settings.patches or 0, self._geometry.temporal_patches)
        room = self._geometry.model_copy(update={"temporal_patches": self._patches})
        self._model = LanguageModel(
            bundle.file(file.file),
            context=context_needed(self._language, room, manifest.base_tokens, _OWN),
            branches=len(self._language.questions),
            threads=settings.threads,
            gpu_layers=settings.gpu_layers,
        )
        try:
            self._dialogue = Dialogue(
                self._model,
                self._language,
                self._geometry,
                history=settings.history,
                calibration=calibration,
            )
        except TvauError:
            self._model.close()
            raise
        self._event: UUID | None = None  # whose clip is in the cache
        self._held: HeldPatches | None = None  # of that clip

    def __enter__(self) -> "LanguageServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model."""
        self._dialogue.close()
        self._model.close()

    def exchange(self, request: bytes, seconds: float = 0) -> bytes:
        """Answer one request; what is wrong with it is answered as well, and nothing is raised."""
        try:
            message, tensors = unpack(request, Request)
            reply, features = self._answer(message, tensors)
        except TvauError as error:
            return pack(Reply(ok=False, error=str(error)[:1000], language=self._kind))
        except Exception:
            log.exception("a request to the language model failed")
            return pack(
                Reply(ok=False, error="a fault of this program; its log says which", language=self._kind)
            )
        return pack(reply, features)

    def _answer(self, request: Request, tensors: Tensors) -> tuple[Reply, Tensors]:
        checkpoint = self._bundle.manifest.provenance.checkpoint_sha256
        if request.checkpoint != checkpoint:
            raise EvidenceError(
                f"the request is of checkpoint {request.checkpoint[:12]}, this model of {checkpoint[:12]}; both sides "
                "need bundles of one checkpoint"
            )
        if request.kind == "prompts":
            return self._read_prompts(request.normal or [], request.abnormal or [])
        rows, columns = self._geometry.merged_grid
        p_v, p_an = evidence_of(tensors, self._patches, rows * columns, self._language.hidden_size)
        if request.kind == "ask":
            return self._ask(request, p_v, p_an), {}
        result = self._explain(request, p_v, p_an)
        reply = Reply(
            ok=True,
            answers=result.answers,
            p_yes=result.p_yes,
            log_odds=result.log_odds,
            turns=self._turns(),
            tokens=result.tokens,
            latency_ms=result.latency_ms,
            language=self._kind,
        )
        return reply, {}

    def _explain(
        self, request: Request, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None
    ) -> DialogueResult:
        """Ask all questions, about a clip or about one in the cache that grows; what fails leaves none there."""
        held = self._held
        if request.after is None:
            self._event, self._held = None, self._note(p_v)
            result = self._dialogue.run(p_v, p_an)
        else:
            if held is None or (self._event, held.digest) != (request.event, request.after):
                raise EvidenceError("the sequence of its patches is not here any more")
            if self._dialogue.patches + len(p_v) > self._patches:
                raise EvidenceError(f"the sequence of its patches may not have more than {self._patches}")
            self._event = None
            held.append(p_v)
            result = self._dialogue.run_longer(p_v, p_an)
        self._event = request.event
        return result

    def _note(self, p_v: NDArray[np.float32]) -> HeldPatches | None:
        """What a sequence holds that now begins, if it may grow."""
        return HeldPatches(p_v) if self._patches > self._geometry.temporal_patches else None

    def _ask(self, request: Request, p_v: NDArray[np.float32], p_an: NDArray[np.float32] | None) -> Reply:
        if not request.question or not request.question.strip():
            raise EvidenceError("the question is empty")
        if self._event is None or self._event != request.event or self._turns() != request.turns:
            # Another event's clip is in the cache, or another dialogue about this one.
            self._event, self._held = None, self._note(p_v)
            self._dialogue.begin(p_v, p_an)
            for turn in request.turns:
                self._dialogue.recall(turn.key, turn.question, turn.answer, turn.tokens)
        self._event = None
        answer = self._dialogue.ask(request.question)
        self._event = request.event
        return Reply(
            ok=True, answer=answer, turns=self._turns(), tokens=self._model.evaluated, language=self._kind
        )

    def _turns(self) -> list[Turn]:
        return [
            Turn(key=turn.key, question=turn.question, answer=turn.text, tokens=turn.said)
            for turn in self._dialogue.turns
        ]

    def _read_prompts(self, normal: Sequence[str], abnormal: Sequence[str]) -> tuple[Reply, Tensors]:
        if not normal or not abnormal:
            raise PromptsError("each of the two classes needs at least one prompt")
        features, cosine = read_checked(self._model, self._bundle, normal, abnormal)
        return Reply(ok=True, cosine=cosine, language=self._kind), {"features": features}
