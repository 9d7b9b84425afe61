"""A folder of labelled clips, in whichever of the known layouts it is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tvau_edge.benchmarks import shanghaitech, ubnormal
from tvau_edge.benchmarks.clips import ALL, SPLITS, LabelledClip
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.problems import Problem


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk.

    Attributes:
        name: of the data set.
        recognizes: whether a folder looks like it.
        names_of: names of a split's clips.
        read_clip: one clip; raises the first problem.
        examine: one clip, as far as it can be read, with all its problems.
        survey: the names of each split's clips, and what is wrong with the splits.
        look_into: opens everything of a clip, and tells what is wrong there.
    """

    name: str
    recognizes: Callable[[Path], bool]
    names_of: Callable[[Path, str], list[str]]
    read_clip: Callable[[Path, str, str], LabelledClip]
    examine: Callable[[Path, str, str], tuple[LabelledClip | None, list[Problem]]]
    survey: Callable[[Path], tuple[dict[str, list[str]], list[Problem]]]
    look_into: Callable[[LabelledClip], list[Problem]]


LAYOUTS = tuple(
    Layout(
        name=name,
        recognizes=module.recognizes,
        names_of=module.names_of,
        read_clip=module.read_clip,
        examine=module.examine,
        survey=module.survey,
        look_into=module.look_into,
    )
    for name, module in (("UBnormal", ubnormal), ("ShanghaiTech", shanghaitech))
)


def find_layout(path: Path) -> Layout:
    """The layout of a folder.

    Raises:
        DataError: it is absent, or like none of the known layouts.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; `tvau data draw --out {path}` draws one")
    for layout in LAYOUTS:
        if layout.recognizes(path):
            return layout
    raise DataError(
        f"{path}: is like no data set that is known: UBnormal has folders Scene1, Scene2 and so on, ShanghaiTech has "
        "training and testing; give the folder that holds these"
    )


def read_dataset(path: Path, split: str = "test") -> list[LabelledClip]:
    """Read the clips of one split.

    Args:
        path: of the data set.
        split: of `SPLITS`, or `ALL`.

    Raises:
        DataError: no data set that is known, no such split, an empty one, or a clip with something wrong.
    """
    if split not in (*SPLITS, ALL):
        raise DataError(f"--split {split}: unknown; known: {', '.join((*SPLITS, ALL))}")
    layout = find_layout(path)
    return [layout.read_clip(path, name, split) for name in layout.names_of(path, split)]
