"""How far a long command is: steps that the command line draws, and on which everyone else keeps silent."""

from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Steps(Protocol):
    """Shows what is being done; the command line draws it, tests keep silent."""

    def begin(self, step: str) -> None:
        """A step starts."""

    def advance(self, done: float, total: float) -> None:
        """Some of the current step is done; `total` 0 when nobody knows how much there is."""


class Silent:
    """Shows nothing."""

    def begin(self, step: str) -> None:
        """Say nothing."""

    def advance(self, done: float, total: float) -> None:
        """Say nothing."""


class ShownSteps:
    """Draws the steps: a bar where there is something to count, the time it took, and an estimate of the rest."""

    def __init__(self, console: Console) -> None:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None

    def __enter__(self) -> "ShownSteps":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()
        self._progress.stop()

    def begin(self, step: str) -> None:
        """Finish the step before and start this one."""
        self._finish()
        self._task = self._progress.add_task(step, total=None)

    def advance(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total or None)

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=1, total=1)
            self._progress.stop_task(self._task)
            self._task = None
