"""Labelled clips: what each data-set layout gives, so that evaluation and calibration run on any of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SPLITS = ("train", "validation", "test")
ALL = "all"  # every clip, whatever its split
CLEAR = 0.25  # share of abnormal frames from which a stretch shows its anomaly clearly

_EIGHT = np.ones((3, 3), dtype=bool)  # neighbours of a pixel, as in OpenCV's contours


class Masks(Protocol):
    """Where a clip is abnormal, read from files when it is asked for."""

    def abnormal(self, frame: int) -> NDArray[np.bool_]:
        """What is abnormal in a frame, [H, W].

        Raises:
            DataError: the file of this frame is absent or not a mask of this clip.
        """

    def regions(self) -> NDArray[np.float64]:
        """Every abnormal region, [G, 6]: track, frame, x1, y1, x2, y2 in inclusive pixels.

        Raises:
            DataError: as `abnormal`.
        """


@dataclass(frozen=True)
class Stretch:
    """What is true of some frames of a clip.

    Attributes:
        first, last: its frames, both included.
        abnormal: whether it shows an anomaly; None where nobody could tell.
        answers: the right answers to the paper's questions, by key, each in one wording or several; empty where
            the data describe nothing.
    """

    first: int
    last: int
    abnormal: bool | None
    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledClip:
    """One clip and its ground truth.

    Attributes:
        name: unique in the data set.
        split: of `SPLITS`, or `ALL` where the layout tells none.
        video: a file, or a folder of images.
        size: width and height in pixels.
        frames_per_second: of the video.
        labels: [F] bool, one per frame: whether it is abnormal.
        masks: where; None where nothing is.
        anomalies: the types of anomaly in it, where they are known.
        stretches: descriptions of some of its stretches, where there are any.
    """

    name: str
    split: str
    video: Path
    size: tuple[int, int]
    frames_per_second: float
    labels: NDArray[np.bool_]
    masks: Masks | None = None
    anomalies: tuple[str, ...] = ()
    stretches: tuple[Stretch, ...] = ()

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.labels)

    def abnormal(self, frame: int) -> NDArray[np.bool_]:
        """What is abnormal in a frame, [H, W]."""
        if self.masks is None or not self.labels[frame]:
            return np.zeros(self.size[::-1], dtype=bool)
        return self.masks.abnormal(frame)

    def regions(self) -> NDArray[np.float64]:
        """Every abnormal region, [G, 6]: track, frame, x1, y1, x2, y2 in inclusive pixels."""
        return np.empty((0, 6)) if self.masks is None else self.masks.regions()

    def stretch(self, first: int, last: int) -> Stretch:
        """What is true of the frames `first` to `last`: as described where they are, else from the labels.

        A description fits whose ends lie at most one frame beside. From the labels a stretch is normal without an
        abnormal frame, abnormal from a quarter of them on, and unclear between.
        """
        for described in self.stretches:
            if abs(described.first - first) <= 1 and abs(described.last - last) <= 1:
                return described
        share = float(self.labels[first : last + 1].mean())
        return Stretch(first, last, None if 0 < share < CLEAR else share > 0)


def spans(flags: NDArray[np.bool_] | Sequence[bool]) -> list[tuple[int, int]]:
    """The runs of true values, as (first, last), both included."""
    padded = np.concatenate([[False], np.asarray(flags, dtype=bool), [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    return [(int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True)]


def component_boxes(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Boxes (x1, y1, x2, y2), inclusive, of the connected parts (8 neighbours) of mask [H, W], the largest first."""
    labels, _ = ndimage.label(mask, structure=_EIGHT)
    boxes = [
        (place[1].start, place[0].start, place[1].stop - 1, place[0].stop - 1)
        for place in ndimage.find_objects(labels)
    ]
    return sorted(boxes, key=lambda box: -(box[2] - box[0] + 1) * (box[3] - box[1] + 1))
