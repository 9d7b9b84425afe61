"""The user's own footage: temporal patches to calibrate on, and stretches to compare the graphs on."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize.errors import CalibrationError
from tvau_edge.quantize.variety import Candidate, Pool, choose, describe
from tvau_edge.runtime.cameras.sampler import Sampler, TemporalPatch
from tvau_edge.runtime.cameras.source import Source, redact
from tvau_edge.runtime.manifest import Geometry

log = logging.getLogger(__name__)

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".h264", ".264")
LEAST = 8  # temporal patches that ranges can be taken from
STRETCH = 32  # temporal patches in a stretch that is compared
STRETCHES = 8
_DARK = 0.03  # of 0..1: what is darker throughout is a covered lens, not a night
_FLAT = 0.01  # of 0..1: so little difference between cells shows nothing
_DISTORTED = 0.1  # change of the aspect ratio that is worth a word
_ARRAYS = ("frames", "stretches", "lengths", "indices", "starts")


@dataclass(frozen=True, eq=False)
class Footage:
    """What was kept of the footage.

    Attributes:
        frames: [K, 2, H, W, 3] uint8, to calibrate on.
        indices: [K] number of each among all temporal patches that were seen.
        stretches: each [L, 2, H, W, 3] uint8, consecutive temporal patches to compare graphs on.
        starts: number of the first patch of each stretch.
        record: what was seen and chosen, for the bundle's report.
    """

    frames: NDArray[np.uint8]
    indices: NDArray[np.int64]
    stretches: tuple[NDArray[np.uint8], ...]
    starts: tuple[int, ...]
    record: dict[str, object]

    def save(self, path: Path) -> None:
        """Write all but the record to `path` (.npz)."""
        lengths = np.array([len(stretch) for stretch in self.stretches])
        arrays = (self.frames, np.concatenate(self.stretches), lengths, self.indices, np.array(self.starts))
        np.savez(path, **dict(zip(_ARRAYS, arrays, strict=True)))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path, record: dict[str, object]) -> "Footage":
        """What `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            frames, whole, lengths, indices, starts = (file[name] for name in _ARRAYS)
        stretches = tuple(np.split(whole, np.cumsum(lengths)[:-1]))
        return cls(frames, indices, stretches, tuple(int(start) for start in starts), record)


def collect(
    addresses: Sequence[str],
    geometry: Geometry,
    count: int = 32,
    seconds: float = 120.0,
    advance: Callable[[float, float], None] | None = None,
) -> Footage:
    """Watch the footage once, from end to end, and keep what calibration and comparison need.

    Args:
        addresses: videos, folders of videos or of images, or live sources (rtsp://…, /dev/video0).
        geometry: of the bundle.
        count: temporal patches to calibrate on; half of them with motion, where there are as many.
        seconds: for which a live source is watched.
        advance: told of progress as (seconds seen, seconds in all as far as is known, else 0).

    Raises:
        SourceError: a source cannot be read.
        CalibrationError: too short, all black, or without any picture.
    """
    watched = _Watched(count)
    sources: list[dict[str, object]] = []
    for address in addresses:
        for name in expand(address):
            before = watched.seen
            with Source(name, "calibration") as source:
                watched.begin()
                for patch in _patches(source, name, geometry, seconds, sources):
                    watched.take(source.name, patch)
                    if advance:
                        advance(watched.seen * geometry.seconds_per_patch, seconds if source.live else 0.0)
            sources[-1]["temporal_patches"] = watched.seen - before
    names = ", ".join(redact(address) for address in addresses)
    if watched.seen < LEAST:
        raise CalibrationError(
            f"{names} gives {watched.seen} temporal patches, at least {LEAST} are needed: "
            f"{LEAST * geometry.seconds_per_patch:g} s of video; take a longer one, or name several"
        )
    return watched.footage(names, geometry, count, sources)


def expand(address: str) -> list[str]:
    """The sources that an address stands for: a folder of videos (also in folders below) is each of them, in order."""
    folder = Path(address)
    if "://" in address or not folder.is_dir():
        return [address]
    videos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and path.is_file())
    return [str(path) for path in videos] or [address]


def _patches(
    source: Source, name: str, geometry: Geometry, seconds: float, sources: list[dict[str, object]]
) -> Iterator[TemporalPatch]:
    """The temporal patches of a source; a live one ends after `seconds`."""
    sampler = Sampler(geometry, upscale=True)
    facts: dict[str, object] = {"source": source.name}
    sources.append(facts)
    until = time.monotonic() + seconds
    for frame in source:
        if "size" not in facts:
            facts["size"] = "{}x{}".format(*frame.size)
            facts |= _notes(source.name, frame.size, geometry)
        yield from sampler.push(frame)
        if source.live and time.monotonic() >= until:
            return
    if source.truncated:
        facts["truncated"] = True


def _notes(name: str, size: tuple[int, int], geometry: Geometry) -> dict[str, object]:
    """Say when footage does not have the shape that the model was exported for."""
    width, height = size
    notes: dict[str, object] = {}
    if width < geometry.width or height < geometry.height:
        notes["upscaled"] = True
        log.warning(
            "%s is %dx%d, smaller than the model's input of %dx%d: it is scaled up, and ranges may come out too "
            "small; better calibrate on the camera's own size",
            *(name, width, height, geometry.width, geometry.height),
        )
    change = abs(width / height / (geometry.width / geometry.height) - 1)
    if change > _DISTORTED:
        notes["aspect_changed_percent"] = round(100 * change)
        log.warning(
            "%s is %dx%d, the model's input %dx%d: the picture is squeezed by %d %%, as it would be when the camera "
            "is watched; calibrate on footage of the scene's own size, or export with a --size of its shape",
            *(name, width, height, geometry.width, geometry.height, round(100 * change)),
        )
    return notes


class _Watched:
    """Takes the patches of all sources, one after the other."""

    def __init__(self, count: int) -> None:
        self.seen = 0
        self._moving, self._still = Pool(2 * count), Pool(2 * count)
        self._brightness: list[float] = []
        self._random = np.random.default_rng(0)
        self._stretch: list[NDArray[np.uint8]] = []
        self._begins: tuple[int, str, float] = (0, "", 0.0)  # number, source and second of its first patch
        self._stretches: list[tuple[tuple[int, str, float], list[NDArray[np.uint8]]]] = []
        self._whole = 0  # stretches seen
        self._contrast = 0.0

    def begin(self) -> None:
        """Another source: no stretch spans two."""
        self._end_stretch()

    def take(self, name: str, patch: TemporalPatch) -> None:
        if patch.index == 0:
            self._end_stretch()
        candidate = Candidate(name, patch.pts[1], self.seen, patch.frames, describe(patch.frames))
        self._brightness.append(candidate.brightness)
        colours = candidate.description[: -len(candidate.description) // 4]
        self._contrast = max(self._contrast, float(np.ptp(colours.reshape(-1, 3), axis=0).max()))
        (self._moving if candidate.moves else self._still).offer(candidate)
        if not self._stretch:
            self._begins = (self.seen, name, patch.pts[0])
        self._stretch.append(patch.frames)
        self.seen += 1
        if len(self._stretch) == STRETCH:
            self._end_stretch()

    def _end_stretch(self) -> None:
        """Keep the stretch, each seen so far as likely as another (reservoir sampling)."""
        if len(self._stretch) > 1:
            self._whole += 1
            entry = (self._begins, self._stretch)
            if len(self._stretches) < STRETCHES:
                self._stretches.append(entry)
            elif (place := int(self._random.integers(self._whole))) < STRETCHES:
                self._stretches[place] = entry
        self._stretch = []

    def footage(
        self, names: str, geometry: Geometry, count: int, sources: list[dict[str, object]]
    ) -> Footage:
        self._end_stretch()
        if max(self._brightness) < _DARK:
            raise CalibrationError(
                f"{names} is black throughout (brightest temporal patch: {max(self._brightness):.1%}); is the lens "
                "covered? Calibrate on footage that shows the scene"
            )
        if self._contrast < _FLAT:
            raise CalibrationError(
                f"{names} shows one flat colour throughout; calibrate on footage that shows the scene"
            )
        moving = choose(self._moving.held, max(count // 2, count - len(self._still.held)))
        still = choose(self._still.held, count - len(moving))
        chosen = sorted([*moving, *still], key=lambda candidate: candidate.index)
        stretches = sorted(self._stretches, key=lambda entry: entry[0])
        record = {
            "sources": sources,
            "seen": self.seen,
            "seconds": round(self.seen * geometry.seconds_per_patch, 1),
            "chosen": len(chosen),
            "with_motion": sum(candidate.moves for candidate in chosen),
            "still": sum(not candidate.moves for candidate in chosen),
            "brightness_seen": [round(float(np.quantile(self._brightness, q)), 3) for q in (0, 0.5, 1)],
            "brightness_chosen": [
                round(float(np.quantile([c.brightness for c in chosen], q)), 3) for q in (0, 0.5, 1)
            ],
            "patches": [
                {
                    "source": candidate.source,
                    "seconds": round(candidate.seconds, 2),
                    "motion": round(candidate.motion, 3),
                    "brightness": round(candidate.brightness, 3),
                }
                for candidate in chosen
            ],
            "compared": [
                {"source": source, "seconds": round(second, 2), "from_patch": start, "patches": len(frames)}
                for (start, source, second), frames in stretches
            ],
        }
        return Footage(
            np.stack([candidate.frames for candidate in chosen]),
            np.array([candidate.index for candidate in chosen]),
            tuple(np.stack(frames) for _, frames in stretches),
            tuple(start for (start, _, _), _ in stretches),
            record,
        )
