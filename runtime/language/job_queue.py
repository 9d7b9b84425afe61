"""The jobs that wait for the language model: bounded, with deadlines, the most severe first and of those the newest."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

T = TypeVar("T")

_DEGREES = 10  # of severity; within one, the newest goes first
URGENT = 2.0  # severity of what somebody waits for; an event's is at most 1


@dataclass(frozen=True, slots=True, eq=False)
class Job(Generic[T]):
    """Something to be done.

    Attributes:
        work: what it is.
        severity: 0..1, an event's peak score, or `URGENT`.
        again: it has been done before, and goes after all that have not.
        deadline: monotonic seconds after which it is given up.
        key: of two jobs with one key, the later takes the place of the one that waits, and has not been done before
            if that one had not; None: none does.
        since: monotonic seconds of when it was put.
    """

    work: T
    severity: float
    deadline: float
    key: object = None
    again: bool = False
    since: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Greater goes first."""
        return not self.again, int(self.severity * _DEGREES), self.since


class JobQueue(Generic[T]):
    """Where jobs wait; a job that cannot wait any longer is given up.

    Args:
        limit: jobs that may wait; of more, the lowest rank is given up.
        give_up: told of each job that will not be done, and why, on the thread that found out.
    """

    def __init__(self, limit: int, give_up: Callable[[T, str], None]) -> None:
        self._limit, self._give_up = limit, give_up
        self._jobs: list[Job[T]] = []
        self._changed = threading.Condition()
        self._closing = False
        self.given_up = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job[T]) -> None:
        """Let a job wait; returns at once."""
        with self._changed:
            for waiting in [one for one in self._jobs if job.key is not None and one.key == job.key]:
                self._jobs.remove(waiting)
                job = replace(job, again=job.again and waiting.again)
            self._jobs.append(job)
            crowded = len(self._jobs) > self._limit
            lost = [min(self._jobs, key=lambda waiting: waiting.rank)] if crowded else []
            if self._closing:
                lost = [job]
            self._drop(lost)
            self._changed.notify_all()
        self._tell(lost, f"{self._limit} others that go first wait already")

    def take(self) -> Job[T] | None:
        """Wait for the job that goes first, and take it out; None when the queue is closed and nothing waits."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                now = time.monotonic()
                late = [job for job in self._jobs if now > job.deadline]
                self._drop(late)
                first = max(self._jobs, key=lambda waiting: waiting.rank, default=None)
                if first is not None:
                    self._jobs.remove(first)
                done = first is None and self._closing
            self._tell(late, "its deadline has passed")
            if first is not None or done:
                return first

    def close(self, finish: bool) -> None:
        """Take nothing more; what waits is still done, or given up."""
        with self._changed:
            self._closing = True
            lost = [] if finish else list(self._jobs)
            self._drop(lost)
            self._changed.notify_all()
        self._tell(lost, "we stop")

    def _drop(self, jobs: list[Job[T]]) -> None:
        for job in jobs:
            self._jobs.remove(job)
        self.given_up += len(jobs)

    def _tell(self, jobs: list[Job[T]], why: str) -> None:
        for job in jobs:
            self._give_up(job.work, why)
