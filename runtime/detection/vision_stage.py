"""The thread that runs the vision graph on what the cameras bring, and is replaced when it hangs."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from tvau_edge.runtime.cameras.intake import Cut, Intake
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.choice import Choice
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.errors import BackendError

log = logging.getLogger(__name__)

_ATTEMPTS = 3  # failures or hangs in a row, after which it is given up
_JOIN_SECONDS = 5.0
_REMEMBERED = 256  # passes over which latencies are told

Judge = Callable[[TemporalPatch | Cut, Evidence | None, bool, float], None]


class VisionStage:
    """Takes batches from the intake, encodes what has to be looked at, and hands on each item in order.

    A graph that fails is loaded anew, and so is one that hangs; the thread that hangs in it is left to itself, and
    what it may still bring is ignored. What was in the batch is lost.

    Args:
        vision: loaded; the caller closes it.
        intake: to take from.
        judge: takes each item, its evidence (None for a cut), whether the graph looked at it, and the milliseconds
            per patch; called under the lock.
        held: gives the evidence of a patch that need not be looked at; called under the lock.
        lock: held while items are judged.
        stall_seconds: that a pass may take.
        reopen: loads the graph anew; None: a failure or a hang is the end.
        before: called with the graph before each pass; may set its class features.
    """

    def __init__(
        self,
        vision: Vision,
        intake: Intake,
        judge: Judge,
        held: Callable[[TemporalPatch], Evidence | None],
        lock: threading.RLock,
        stall_seconds: float,
        reopen: Callable[[], Vision] | None,
        before: Callable[[Vision], None] | None = None,
    ) -> None:
        self._given, self._vision, self._intake = vision, vision, intake
        self._judge, self._held, self._lock = judge, held, lock
        self._stall_seconds, self._reopen, self._before = stall_seconds, reopen, before
        self._turn = 0  # of the thread in charge
        self._busy: float | None = None  # since when it is inside the graph
        self._trouble = 0  # failures and hangs in a row
        self._thread: threading.Thread | None = None
        self.finished = threading.Event()
        self.failure: Exception | None = None
        self.restarts = 0
        self.patches = 0  # that the graph looked at
        self.seconds = 0.0  # that it took for them
        self.latencies: deque[float] = deque(maxlen=_REMEMBERED)  # milliseconds per patch

    @property
    def file(self) -> Choice:
        """The graph that runs."""
        return self._vision.file

    def start(self) -> None:
        """Start a thread that is in charge from now on."""
        self._thread = threading.Thread(target=self._run, args=(self._turn,), name="vision", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a pass that hangs is not waited for."""
        self._intake.close()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
        with self._lock:
            hangs = self._thread is not None and self._thread.is_alive()
            self._turn += 1
        if not hangs and self._vision is not self._given:
            self._vision.close()

    @property
    def stalled_seconds(self) -> float:
        """How long the pass that is under way has taken; 0 between passes."""
        busy = self._busy
        return 0.0 if busy is None else time.monotonic() - busy

    def oversee(self) -> None:
        """Replace the thread if it hangs in the graph."""
        if self.stalled_seconds <= self._stall_seconds:
            return
        with self._lock:
            self._turn += 1
            self._busy = None
        log.error("the vision graph hangs for more than %g s; it is loaded anew", self._stall_seconds)
        try:
            self._recover(
                BackendError(f"the vision graph hangs: a pass took more than {self._stall_seconds:g} s")
            )
        except Exception as error:
            self.failure = error
            self.finished.set()
            return
        self.start()

    def _recover(self, trouble: BackendError) -> None:
        """Load the graph anew.

        Raises:
            BackendError: it has been tried often enough, or cannot be loaded.
        """
        self._trouble += 1
        if self._reopen is None or self._trouble >= _ATTEMPTS:
            raise trouble
        self._vision = self._reopen()
        self.restarts += 1

    def _run(self, turn: int) -> None:
        try:
            while turn == self._turn and (batch := self._intake.take()):
                self._look(batch, turn)
        except Exception as error:
            if turn == self._turn:
                self.failure = error
        finally:
            if turn == self._turn:
                self.finished.set()

    def _look(self, batch: list[TemporalPatch | Cut], turn: int) -> None:
        if self._before is not None:
            self._before(self._vision)
        with self._lock:
            known = [None if isinstance(item, Cut) else self._held(item) for item in batch]
        patches = [
            item
            for item, evidence in zip(batch, known, strict=True)
            if not isinstance(item, Cut) and evidence is None
        ]
        started = time.perf_counter()
        seen = iter(self._encode(patches, turn) if patches else [])
        milliseconds = (time.perf_counter() - started) * 1e3 / max(len(patches), 1)
        with self._lock:
            if turn != self._turn:
                return
            for item, evidence in zip(batch, known, strict=True):
                if isinstance(item, Cut) or evidence is not None:
                    self._judge(item, evidence, False, milliseconds)
                elif (new := next(seen, None)) is not None:
                    self._judge(item, new, True, milliseconds)

    def _encode(self, patches: list[TemporalPatch], turn: int) -> list[Evidence]:
        """Run the graph; nothing, when it failed and was loaded anew."""
        started = time.perf_counter()
        self._busy = time.monotonic()
        try:
            evidence = self._vision.run(patches)
        except BackendError as error:
            if turn == self._turn:
                self._busy = None
                log.error("%s; the graph is loaded anew", error)  # noqa: TRY400 (the message tells all)
                self._recover(error)
            return []
        if turn == self._turn:
            self._busy = None
            self._trouble = 0
            seconds = time.perf_counter() - started
            self.seconds += seconds
            self.patches += len(patches)
            self.latencies.append(seconds * 1e3 / len(patches))
        return evidence
