"""What is wrong with a folder of labelled clips, all of it: `tvau data check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tvau_edge.benchmarks.dataset import find_layout
from tvau_edge.benchmarks.problems import Problem


class Part(BaseModel):
    """Base of the tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Finding(Part):
    """One problem."""

    file: str
    problem: str
    blocking: Annotated[
        bool, Field(description="whether the clip, or its split, cannot be measured because of it")
    ]


class SplitCount(Part):
    """What a split holds, as far as its clips can be read."""

    clips: int
    frames: int
    abnormal_clips: int
    abnormal_frames: int


class Report(Part):
    """What was found in a folder."""

    path: str
    layout: str
    splits: dict[str, SplitCount]
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        """Whether every clip can be measured."""
        return not any(finding.blocking for finding in self.findings)


def check_dataset(path: Path, advance: Callable[[int, int], None] | None = None) -> Report:
    """Read all of a data set, every mask included.

    Args:
        path: of the data set.
        advance: told of progress as (clips done, clips in all).

    Raises:
        DataError: the folder is absent, or like none of the known layouts.
    """
    layout = find_layout(path)
    splits, problems = layout.survey(path)
    found: list[Problem] = list(problems)
    counts = {}
    done, total = 0, sum(len(names) for names in splits.values())
    for split, names in splits.items():
        clips = []
        for name in names:
            clip, wrong = layout.examine(path, name, split)
            found += wrong
            if clip is not None:
                clips.append(clip)
                found += layout.look_into(clip)
            done += 1
            if advance:
                advance(done, total)
        counts[split] = SplitCount(
            clips=len(clips),
            frames=sum(len(clip) for clip in clips),
            abnormal_clips=sum(bool(clip.labels.any()) for clip in clips),
            abnormal_frames=sum(int(clip.labels.sum()) for clip in clips),
        )
    return Report(
        path=str(path),
        layout=layout.name,
        splits=counts,
        findings=[
            Finding(file=str(problem.file), problem=problem.what, blocking=problem.blocking)
            for problem in found
        ],
    )
