"""The thread that asks the language model about events; detection never waits for it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoResult  # not the built-in one before Python 3.11
from dataclasses import dataclass
from typing import Annotated, Literal
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.trigger import Window
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.errors import EvidenceError, LanguageModelError, PromptsError, TvauError
from tvau_edge.runtime.language.dialogue import OWN, DialogueResult
from tvau_edge.runtime.language.job_queue import URGENT, Job, JobQueue
from tvau_edge.runtime.language.messages import (
    LONGEST_QUESTION,
    Reply,
    Request,
    Tensors,
    Turn,
    pack,
    unpack,
)
from tvau_edge.runtime.language.recent_events import RecentEvent, RecentEvents
from tvau_edge.runtime.language.sequence import encode, grow
from tvau_edge.runtime.language.server import Language

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the language model said of an event.

    Attributes:
        event: the event's id.
        result: answers and p_yes.
        latency_ms: per stage: waiting in the queue, RAE, and the dialogue's own phases.
        late: it came later than it was to.
    """

    event: UUID
    result: DialogueResult
    latency_ms: dict[str, float]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """How long, and how much, is waited for the language model.

    Attributes:
        late: seconds after which an explanation is marked late.
        deadline: seconds in the queue after which an event is not explained any more.
        answer: seconds that one request may take.
        question: seconds that somebody's question may wait and take.
        waiting: jobs that may wait.
    """

    late: float = 30.0
    deadline: float = 300.0
    answer: float = 120.0
    question: float = 60.0
    waiting: int = 8


class LanguageHealth(BaseModel):
    """The language model's part of `health`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Annotated[
        Literal["loading", "ready", "answering", "gone", "closed", "off"],
        Field(description="gone: it ended or does not answer, and is started anew with the next event"),
    ]
    waiting: Annotated[int, Field(ge=0, description="events and questions in the queue")] = 0
    explained: Annotated[int, Field(ge=0)] = 0
    again: Annotated[int, Field(ge=0, description="explained once more, after they had gone on")] = 0
    extended: Annotated[
        int, Field(ge=0, description="of those, from the sequence that the model had kept")
    ] = 0
    late: Annotated[int, Field(ge=0, description="of all explanations")] = 0
    given_up: Annotated[int, Field(ge=0, description="that waited too long, or failed")] = 0
    restarts: Annotated[int, Field(ge=0, description="of its process")] = 0
    kept_events: Annotated[int, Field(ge=0, description="whose evidence can be asked about")] = 0
    kept_bytes: Annotated[int, Field(ge=0)] = 0


@dataclass(slots=True, eq=False)
class _Event:
    """An event that is to be explained."""

    event: UUID
    camera: str
    window: Window
    since: tuple[Evidence, ...] = ()
    again: bool = False

    @property
    def failure(self) -> str:
        """What is told when nothing comes of it."""
        return f"event {self.event} is not explained{' again' if self.again else ''}"


@dataclass(slots=True, eq=False)
class _Call:
    """Something that somebody waits for: a question, or class prompts."""

    send: Callable[[float], tuple[Reply, Tensors]]
    result: "Future[tuple[Reply, Tensors]]"


class Explainer:
    """Explains events, the most severe first and of those the newest, and answers questions about recent ones.

    Args:
        rae: turns H_c into P_An.
        language: asks the questions, somewhere.
        publish: takes each explanation, on this thread.
        checkpoint: sha256 of the checkpoint of the bundle.
        device: name of this box.
        patience: limits.
        recent: keeps the evidence of explained events.
    """

    def __init__(
        self,
        rae: Rae,
        language: Language,
        publish: Callable[[Explanation], None],
        checkpoint: str,
        device: str = "",
        patience: Patience | None = None,
        recent: RecentEvents | None = None,
    ) -> None:
        self._rae, self._language, self._publish = rae, language, publish
        self._checkpoint, self._device = checkpoint, device
        self._patience = patience or Patience()
        # An empty one is false.
        self._recent = recent if recent is not None else RecentEvents(32, 64 * 1024 * 1024)
        self._queue: JobQueue[_Event | _Call] = JobQueue(self._patience.waiting, self._gave_up)
        self._failed = self._explained = self._again = self._extended = self._late = 0
        self._since: float | None = None  # when the present job began
        self._thread = threading.Thread(target=self._work, name="dialogue", daemon=True)
        self._thread.start()

    @property
    def given_up(self) -> int:
        """Events and questions that waited too long, or failed."""
        return self._queue.given_up + self._failed

    def health(self) -> LanguageHealth:
        """How it stands with the language model."""
        return LanguageHealth(
            state=getattr(self._language, "state", "ready"),
            waiting=len(self._queue),
            explained=self._explained,
            again=self._again,
            extended=self._extended,
            late=self._late,
            given_up=self.given_up,
            restarts=getattr(self._language, "restarts", 0),
            kept_events=len(self._recent),
            kept_bytes=self._recent.bytes,
        )

    def submit(
        self,
        event: UUID,
        window: Window,
        severity: float = 0.0,
        *,
        again: bool = False,
        since: Sequence[Evidence] = (),
    ) -> None:
        """Ask for an explanation of `event` from the evidence in `window`; returns at once.

        Args:
            event: its id.
            window: its evidence.
            severity: 0..1, its peak score.
            again: it was submitted before and went on; events that were not go first.
            since: the newest patch that it was submitted with then, and all since: where the language model still
                has the sequence that ends there, they are appended to it, and `window` is not needed. Empty: never.
        """
        camera = window.evidence[-1].camera
        work = _Event(event, camera, window, tuple(since), again)
        self._queue.put(Job(work, severity, time.monotonic() + self._patience.deadline, event, again))

    def ask(self, event: UUID, question: str) -> str:
        """Ask about a recent event, with what was said of it before; waits for the answer.

        Raises:
            EvidenceError: the event is unknown or too old, or the question is empty or too long.
            LanguageModelError: it is gone, or there was no answer in time.
        """
        question = " ".join(question.split())
        if not question:
            raise EvidenceError("the question is empty")
        if len(question) > LONGEST_QUESTION:
            raise EvidenceError(f"the question has {len(question)} characters; at most {LONGEST_QUESTION}")
        known, waited = self._recent.get(event), True

        def send(seconds: float) -> tuple[Reply, Tensors]:
            recent = self._recent.find(event) or known  # it may have been explained again meanwhile
            request = self._request("ask", recent, turns=list(recent.turns), question=question)
            reply, tensors = self._exchange(request, recent.tensors, seconds)
            if waited:  # an answer that nobody heard was not said
                recent.turns = reply.turns
            return reply, tensors

        try:
            reply, _ = self._wait_for(send)
        except LanguageModelError:
            waited = False
            raise
        return reply.answer or ""

    def read_prompts(
        self, normal: Sequence[str], abnormal: Sequence[str]
    ) -> tuple[NDArray[np.float32], float]:
        """Read class prompts with the language model; waits for it. See `read_checked`.

        Raises:
            PromptsError: they cannot be used.
            LanguageModelError: it is gone, or there was no answer in time.
        """
        request = Request(
            kind="prompts", checkpoint=self._checkpoint, normal=list(normal), abnormal=list(abnormal)
        )
        reply, tensors = self._wait_for(lambda seconds: self._exchange(request, {}, seconds))
        if reply.cosine is None or "features" not in tensors:
            raise PromptsError("the language model's answer holds no features")
        return tensors["features"].astype(np.float32), reply.cosine

    @property
    def waiting(self) -> int:
        """Events and questions that wait."""
        return len(self._queue)

    @property
    def busy_seconds(self) -> float:
        """How long it has been at the present event or question; 0 while it is idle."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, finish: bool = True, seconds: float | None = None) -> bool:
        """Stop; with `finish`, what waits is explained first.

        Args:
            finish: whether to explain what waits.
            seconds: to wait for what is being explained; None: as long as it takes.

        Returns:
            Whether its thread has ended.
        """
        self._queue.close(finish)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _wait_for(self, send: Callable[[float], tuple[Reply, Tensors]]) -> tuple[Reply, Tensors]:
        call = _Call(send, Future())
        end = time.monotonic() + self._patience.question
        self._queue.put(Job(call, URGENT, end))
        try:
            return call.result.result(self._patience.question + 1)
        except NoResult as error:
            raise LanguageModelError(
                f"the language model did not come to it in {self._patience.question:g} s; ask again later"
            ) from error

    def _work(self) -> None:
        while (job := self._queue.take()) is not None:
            self._since = time.monotonic()
            match job.work:
                case _Call(send, result):
                    try:
                        result.set_result(send(max(0.1, job.deadline - time.monotonic())))
                    except Exception as error:  # whoever waits is told
                        result.set_exception(error)
                case _Event() as event:
                    self._try(event, job.since)
            self._since = None

    def _try(self, event: _Event, since: float) -> None:
        try:
            try:
                self._explain(event, since)
            except LanguageModelError as error:
                # Once more: it is started anew, and who is to blame is not known yet.
                log.warning("event %s is tried again: %s", event.event, error)
                self._explain(event, since)
        except TvauError as error:
            self._fail(event, str(error))
        except Exception:  # a fault of ours costs one explanation, not all that would come after it
            self._failed += 1
            log.exception("%s, by a fault of this program", event.failure)

    def _fail(self, event: _Event, why: str) -> None:
        self._failed += 1
        log.error("%s: %s", event.failure, why)

    def _gave_up(self, work: "_Event | _Call", why: str) -> None:
        if isinstance(work, _Event):
            log.warning("%s: %s", work.failure, why)
        else:
            work.result.set_exception(LanguageModelError(f"not answered: {why}; ask again later"))

    def _explain(self, event: _Event, since: float) -> None:
        waited = time.monotonic() - since
        before = self._recent.find(event.event)
        said = before.turns if before is not None else []
        reply, recent, rae_ms = self._extend(event, before) or self._begin(event, said)
        # What somebody asked meanwhile was said of this event too.
        recent.turns = [*reply.turns, *(turn for turn in said if turn.key == OWN)]
        self._again += bool(said)
        result = DialogueResult(
            answers=reply.answers,
            p_yes=reply.p_yes,
            turns=tuple((turn.question, turn.answer) for turn in reply.turns),
            tokens=reply.tokens,
            latency_ms=reply.latency_ms,
            log_odds=reply.log_odds,
        )
        late = time.monotonic() - since > self._patience.late
        self._explained += 1
        self._late += late
        stages = {"wait": waited * 1e3, "rae": rae_ms, **reply.latency_ms}
        self._publish(Explanation(event.event, result, stages, late))

    def _begin(self, event: _Event, said: list[Turn]) -> tuple[Reply, RecentEvent, float]:
        """Have a window explained; returns what is said of it, what is kept, and RAE's milliseconds."""
        started = time.perf_counter()
        tensors = encode(self._rae, event.window.evidence)
        rae_ms = (time.perf_counter() - started) * 1e3
        recent = RecentEvent(event.event, event.camera, tensors, event.window.evidence[-1].index, said)
        self._recent.keep(recent)
        reply, _ = self._exchange(self._request("explain", recent), tensors, self._patience.answer)
        return reply, recent, rae_ms

    def _extend(self, event: _Event, before: RecentEvent | None) -> tuple[Reply, RecentEvent, float] | None:
        """Have the event's sequence grow by what came since, and explained; None where that cannot be."""
        if before is None or len(event.since) < 2 or event.since[0].index != before.newest:
            return None
        started = time.perf_counter()
        tensors, new, after = grow(self._rae, before.tensors, event.since, len(event.window.evidence))
        rae_ms = (time.perf_counter() - started) * 1e3
        recent = RecentEvent(event.event, event.camera, tensors, event.since[-1].index)
        try:
            reply, _ = self._exchange(
                self._request("explain", recent, after=after), new, self._patience.answer
            )
        except EvidenceError as error:
            log.info("event %s is explained anew from its newest window: %s", event.event, error)
            return None
        self._recent.keep(recent)
        self._extended += 1
        return reply, recent, rae_ms

    def _request(self, kind: Literal["explain", "ask"], recent: RecentEvent, **more: object) -> Request:
        return Request.model_validate(
            {
                "kind": kind,
                "checkpoint": self._checkpoint,
                "event": recent.event,
                "device": self._device,
                "camera": recent.camera,
                **more,
            }
        )

    def _exchange(self, request: Request, tensors: Tensors, seconds: float) -> tuple[Reply, Tensors]:
        reply, features = unpack(self._language.exchange(pack(request, tensors), seconds), Reply)
        if not reply.ok:
            raise EvidenceError(reply.error or "the language model gives no reason")
        return reply, features
