"""What is wrong with a data set, one problem for each thing that a person would have to mend."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvau_edge.benchmarks.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    Attributes:
        file: the file or folder that it is in.
        what: what is wrong there.
        blocking: whether the clip cannot be measured because of it.
    """

    file: Path
    what: str
    blocking: bool = True

    @classmethod
    def of(cls, file: Path, error: DataError) -> "Problem":
        """The problem that an error tells of; its message often begins with the file."""
        return cls(file, str(error).removeprefix(f"{file}: "))

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def some(numbers: Sequence[int], most: int = 3) -> str:
    """The first runs of rising numbers: "3 to 7, 9"; how many more there are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs[:most])
    return told if len(runs) <= most else f"{told} and {len(runs) - most} more runs"


def settle(name: str, problems: Sequence[Problem]) -> None:
    """Raise the first blocking problem of a clip, and warn of the others.

    Raises:
        DataError: says how many more there are.
    """
    blocking = [problem for problem in problems if problem.blocking]
    if blocking:
        more = f" (and {len(blocking) - 1} more; `tvau data check` tells)" if len(blocking) > 1 else ""
        raise DataError(f"{blocking[0]}{more}")
    for problem in problems:
        log.warning("clip %s: %s", name, problem)
