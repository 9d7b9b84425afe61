"""One clip through the runtime's own stages: source, sampler, vision; and what it tells of each frame."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.clips import LabelledClip
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.runtime.cameras.sampler import Sampler
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import TriggerConfig
from tvau_edge.runtime.detection.regions import Region, find_regions
from tvau_edge.runtime.detection.smoothing import Smoothing
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.errors import BackendError, SourceError
from tvau_edge.runtime.manifest import Geometry

_FAINTER = (1, 1 / 2, 1 / 4, 1 / 8)  # of the runtime's threshold: levels at which regions are looked for


@dataclass(frozen=True)
class Looked:
    """What the vision side saw of a clip.

    Attributes:
        evidence: of its temporal patches, oldest first.
        patch_of_frame: [F] the temporal patch that stands for each frame: the one whose first frame it is or
            follows. Frames at the end that fill no patch take the last one.
        sampled: [K] for each patch, the index of its newer frame.
    """

    evidence: tuple[Evidence, ...]
    patch_of_frame: NDArray[np.int64]
    sampled: NDArray[np.int64]

    @property
    def scores(self) -> NDArray[np.float64]:
        """The runtime's own score of each frame, [F] in 0..1, smoothed as the runtime does by default."""
        smoothing = Smoothing(TriggerConfig().smooth)
        return np.array([smoothing.add(item.score) for item in self.evidence])[self.patch_of_frame]

    def detections(self, size: tuple[int, int], threshold: float) -> NDArray[np.float64]:
        """What `detect` finds in each frame, [N, 6]: frame, x1, y1, x2, y2 in inclusive pixels, score."""
        width, height = size
        boxes = [
            [
                (x1 * width, y1 * height, x2 * width - 1, y2 * height - 1, region.score)
                for region in detect(item.heatmap, threshold)
                for x1, y1, x2, y2 in [region.box]
            ]
            for item in self.evidence
        ]
        found = [(frame, *box) for frame, patch in enumerate(self.patch_of_frame) for box in boxes[patch]]
        return np.array(found, dtype=np.float64).reshape(-1, 6)

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The frames that the patches `first` to `last` stand for, both ends included."""
        begin = int(np.searchsorted(self.patch_of_frame, first))
        return begin, max(begin, int(np.searchsorted(self.patch_of_frame, last, side="right")) - 1)


def detect(heat: NDArray[np.float32], threshold: float) -> list[Region]:
    """The detections in a heatmap [H', W'], for RBDC and TBDC: the runtime's regions, ranked by their hottest cell.

    They are what the runtime reports, and then, with its threshold at a half, a quarter and an eighth, what it would
    report in places where nothing was reported before: so each hot place is detected once, by a tight box, and faint
    ones are ranked too instead of being lost.

    Args:
        heat: 0..1.
        threshold: from which the runtime reports a region: the one at which events close.
    """
    found: list[Region] = []
    for share in _FAINTER:
        found += [
            region
            for region in find_regions(heat, share * threshold)
            if not any(_overlap(region.box, other.box) for other in found)
        ]
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def look(clip: LabelledClip, vision: Vision, geometry: Geometry) -> Looked:
    """Run a clip through source, sampler and vision.

    Raises:
        DataError: it cannot be decoded, has another number of frames than its ground truth, or is shorter than
            one temporal patch.
        BackendError: the heatmaps are no numbers.
        SourceError: its frames are smaller than the model's input.
    """
    sampler = Sampler(geometry)
    pts, starts, newer = [], [], []
    evidence: list[Evidence] = []
    try:
        source = Source(str(clip.video), clip.name, image_rate=clip.frames_per_second)
    except SourceError as error:
        raise DataError(f"{clip.video}: {error}") from error
    with source:
        for frame in source:
            pts.append(frame.pts)
            for patch in sampler.push(frame):
                starts.append(patch.pts[0])
                newer.append(patch.pts[1])
                evidence += vision.run([patch])
    if source.broken or len(pts) != len(clip):
        raise DataError(
            f"{clip.video}: {len(pts)} frames can be decoded ({source.broken} are broken), its ground truth has "
            f"{len(clip)}; get the video anew"
        )
    if not evidence:
        raise DataError(
            f"{clip.video}: lasts {pts[-1]:.2f} s, less than one temporal patch ({geometry.seconds_per_patch:g} s)"
        )
    broken = [item.index for item in evidence if not np.isfinite(item.heatmap).all()]
    if broken:
        raise BackendError(
            f"{clip.video}: the heatmaps of {len(broken)} temporal patches are no numbers, the first of patch "
            f"{broken[0]}; the graph overflows at precision {vision.file.precision}: use fp32"
        )
    patch_of_frame = np.clip(np.searchsorted(starts, pts, side="right") - 1, 0, len(evidence) - 1)
    return Looked(tuple(evidence), patch_of_frame, np.searchsorted(pts, newer))


def windows(looked: Looked, patches: int) -> list[tuple[Evidence, ...]]:
    """The clip in windows of `patches` temporal patches that lie end to end; the last one ends with the clip.

    In a clip that is shorter the first patch is repeated, as the runtime's trigger does.
    """
    seen = looked.evidence
    missing = patches - len(seen)
    if missing > 0:
        return [(seen[0],) * missing + seen]
    starts = [*range(0, len(seen) - patches, patches), len(seen) - patches]
    return [seen[start : start + patches] for start in starts]
