"""What was measured of each clip, before it becomes figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.clips import LabelledClip, Stretch
from tvau_edge.benchmarks.frames import FrameScores, PixelScores
from tvau_edge.benchmarks.regions import VideoRegions


@dataclass(frozen=True)
class Turn:
    """One dialogue about one window.

    Attributes:
        truth: what the data say of the window's frames.
        p_yes: probability that the model gives to "yes, there is an anomaly", 0..1; None where the bundle does
            not ask for it.
        answers: text by the question's key.
    """

    truth: Stretch
    p_yes: float | None
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Moment:
    """One frame that tells how good the heatmap is.

    Attributes:
        clip: that it is of.
        frame: its index.
        heatmap: [H', W'] in 0..1.
        score: 0..1.
        threshold: from which the runtime reports a region.
    """

    clip: LabelledClip
    frame: int
    heatmap: NDArray[np.float32]
    score: float
    threshold: float


@dataclass(frozen=True)
class ClipRecord:
    """What was measured of one clip.

    Attributes:
        clip: which.
        frames: labels and scores.
        regions: what is abnormal, and what was detected.
        turns: dialogues about its windows.
        without_rae: the same, without P_An; only with ablations.
        frames_by_dialogue: labels, and as scores p_yes of the window without P_An; only with ablations.
        best, worst: the abnormal frames of the highest and the lowest score; None where there are none.
        alarm: the normal frame of the highest score; None where there is none.
    """

    clip: LabelledClip
    frames: FrameScores
    regions: VideoRegions
    turns: tuple[Turn, ...] = ()
    without_rae: tuple[Turn, ...] = ()
    frames_by_dialogue: FrameScores | None = None
    best: Moment | None = field(default=None, compare=False)
    worst: Moment | None = field(default=None, compare=False)
    alarm: Moment | None = field(default=None, compare=False)


@dataclass
class Measured:
    """What was measured of a bundle on some clips.

    Attributes:
        bundle: its path as it was given.
        sha256: of the bundle.
        vision: back end and precision of the vision graph.
        language: GGUF type of the language model, or None.
        records: one for each clip, in their order.
        pixels: of the frames that the model looked at.
    """

    bundle: str
    sha256: str
    vision: str
    language: str | None
    records: list[ClipRecord] = field(default_factory=list)
    pixels: PixelScores = field(default_factory=PixelScores)
