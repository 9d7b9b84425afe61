"""The thread that asks the language model about events; detection never waits for it."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from tvau_edge.runtime.dialogue import Dialogue, DialogueResult
from tvau_edge.runtime.errors import TvauError
from tvau_edge.runtime.rae import Rae
from tvau_edge.runtime.trigger import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the language model said of an event.

    Attributes:
        event: the event's id.
        result: answers and p_yes.
        latency_ms: per stage: waiting in the queue, RAE, and the dialogue's own phases.
    """

    event: UUID
    result: DialogueResult
    latency_ms: dict[str, float]


class Explainer:
    """Explains one event at a time, the newest first; when too many wait, the oldest is given up and counted.

    Args:
        rae: turns a window of H_c into P_An.
        dialogue: asks the questions.
        publish: takes each explanation, on this thread.
        waiting: events that may wait.
    """

    def __init__(
        self, rae: Rae, dialogue: Dialogue, publish: Callable[[Explanation], None], waiting: int = 8
    ) -> None:
        self._rae, self._dialogue, self._publish = rae, dialogue, publish
        self._limit = waiting
        self._jobs: OrderedDict[UUID, tuple[Window, float]] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._since: float | None = None  # when the explanation began that is being made
        self.given_up = 0
        self._thread = threading.Thread(target=self._work, name="dialogue", daemon=True)
        self._thread.start()

    def submit(self, event: UUID, window: Window) -> None:
        """Ask for an explanation of `event` from the evidence in `window`; returns at once."""
        with self._changed:
            self._jobs[event] = (window, time.monotonic())
            self._jobs.move_to_end(event)
            while len(self._jobs) > self._limit:
                old, _ = self._jobs.popitem(last=False)
                self.given_up += 1
                log.warning("event %s is not explained: %d newer events wait", old, self._limit)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Events that wait."""
        return len(self._jobs)

    @property
    def busy_seconds(self) -> float:
        """How long it has been at the present event; 0 while it is idle."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def close(self, finish: bool = True, seconds: float | None = None) -> bool:
        """Stop; with `finish`, what waits is explained first.

        Args:
            finish: whether to explain what waits.
            seconds: to wait for what is being explained; None: as long as it takes.

        Returns:
            Whether its thread has ended; while it has not, the language model must not be closed.
        """
        with self._changed:
            self._closing = True
            if not finish:
                self.given_up += len(self._jobs)
                self._jobs.clear()
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return
                event, (window, since) = self._jobs.popitem(last=True)
            self._since = time.monotonic()
            try:
                self._publish(self._explain(event, window, since))
            except TvauError as error:
                log.error("event %s is not explained: %s", event, error)  # noqa: TRY400 (the message tells all)
            except Exception:  # a fault of ours costs one explanation, not all that would come after it
                log.exception("event %s is not explained, by a fault of this program", event)
            finally:
                self._since = None

    def _explain(self, event: UUID, window: Window, since: float) -> Explanation:
        waited = time.monotonic() - since
        h_c = np.stack([evidence.h_c for evidence in window.evidence])  # [T', 2, H', W']
        p_v = np.stack([evidence.p_v for evidence in window.evidence])  # [T', N, D]
        started = time.perf_counter()
        p_an = self._rae.run(h_c)  # [(T'-1) (N_base + 10), D]
        rae_ms = (time.perf_counter() - started) * 1e3
        result = self._dialogue.run(p_v, p_an)
        return Explanation(event, result, {"wait": waited * 1e3, "rae": rae_ms, **result.latency_ms})
