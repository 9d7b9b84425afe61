"""The masks and tracks of one video in UBnormal's layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from tvau_edge.benchmarks.clips import component_boxes
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.problems import Problem


@dataclass(frozen=True, slots=True)
class Track:
    """One line of a list of tracks: an object number and its abnormal frames, both ends included."""

    number: int
    first: int
    last: int


@dataclass(frozen=True)
class UbnormalMasks:
    """The masks of one video.

    Attributes:
        folder, video: `<folder>/<video>_<frame>_gt.png`.
        size: width and height that they must have.
        tracks: what is abnormal in them.
    """

    folder: Path
    video: str
    size: tuple[int, int]
    tracks: tuple[Track, ...]

    def path(self, frame: int) -> Path:
        """The file of a frame's mask."""
        return self.folder / f"{self.video}_{frame:04d}_gt.png"

    def objects(self, frame: int) -> NDArray[np.uint8]:
        """Object numbers in a frame, [H, W] uint8; 0 is background."""
        path = self.path(frame)
        try:
            with Image.open(path) as image:
                if image.size != self.size:
                    raise DataError(f"{path}: {wrong_size(image.size, self.size)}")
                return np.asarray(image.convert("L"))
        except FileNotFoundError as error:
            raise DataError(f"{path}: is absent") from error
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise DataError(f"{path}: is no image that can be read") from error

    def abnormal(self, frame: int) -> NDArray[np.bool_]:
        """What is abnormal in a frame, [H, W]."""
        return np.isin(self.objects(frame), [track.number for track in self._during(frame)])

    def regions(self) -> NDArray[np.float64]:
        """Every abnormal region, [G, 6]: track, frame, box. A frame in which an object is hidden has none of it."""
        return self._regions

    @cached_property
    def _regions(self) -> NDArray[np.float64]:
        frames = sorted({frame for track in self.tracks for frame in range(track.first, track.last + 1)})
        found: list[tuple[int, ...]] = []
        for frame in frames:
            objects = self.objects(frame)
            places = ndimage.find_objects(objects)  # by object number, from 1; None where it does not show
            for index, track in enumerate(self.tracks):
                if track.first <= frame <= track.last and track.number <= len(places):
                    found += [(index, frame, *box) for box in _largest(objects, track.number, places)]
        return np.array(found, dtype=np.float64).reshape(-1, 6)

    def _during(self, frame: int) -> Iterator[Track]:
        return (track for track in self.tracks if track.first <= frame <= track.last)


def read_tracks(
    folder: Path, name: str, abnormal: bool | None, frames: int, problems: list[Problem]
) -> tuple[Track, ...]:
    """Read a video's tracks, and say what is wrong with them.

    Args:
        folder: of its annotations.
        name: of the video.
        abnormal: what its name says of it; None where it says nothing.
        frames: that it has.
        problems: added to.
    """
    corrected, usual = folder / f"{name}_new_tracks.txt", folder / f"{name}_tracks.txt"
    path = corrected if corrected.exists() else usual
    if not path.exists():
        if abnormal:
            problems.append(Problem(path, "is absent: an abnormal clip needs its tracks"))
        return ()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(path, f"cannot be read as text: {error}"))
        return ()
    tracks = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            track = _parse(line)
            wrong = "is not object,first frame,last frame" if track is None else _out_of_range(track, frames)
            if wrong:
                problems.append(Problem(path, f"line {number} ({line.strip()[:60]}) {wrong}"))
            elif track:
                tracks.append(track)
    if abnormal and not tracks and not problems:
        problems.append(Problem(path, "names no track, though the clip's name says that it is abnormal"))
    if tracks and abnormal is False:
        problems.append(Problem(path, "names tracks, though the clip's name says that it is normal"))
    return tuple(tracks)


def _parse(line: str) -> Track | None:
    try:
        values = [float(part) for part in line.split(",")]
        track = Track(*map(int, values))
    except (ValueError, OverflowError, TypeError):
        return None
    return track if values == [track.number, track.first, track.last] else None


def _out_of_range(track: Track, frames: int) -> str | None:
    if not 1 <= track.number <= 255:
        return f"names object {track.number}; the masks hold 1 to 255"
    if track.first > track.last:
        return f"ends in frame {track.last}, before its first frame {track.first}"
    if not 0 <= track.first <= track.last < frames:
        return f"goes from frame {track.first} to {track.last}, outside the video's frames 0 to {frames - 1}"
    return None


def wrong_size(size: tuple[int, int], expected: tuple[int, int]) -> str:
    """What is wrong with a mask of another size than its video's."""
    return f"is {size[0]}x{size[1]}, its video {expected[0]}x{expected[1]}"


def _largest(
    objects: NDArray[np.uint8], number: int, places: list[tuple[slice, slice] | None]
) -> list[tuple[int, int, int, int]]:
    """The box of the largest part of an object, or none."""
    place = places[number - 1]
    if place is None:
        return []
    top, left = place[0].start, place[1].start
    x1, y1, x2, y2 = component_boxes(objects[place] == number)[0]
    return [(x1 + left, y1 + top, x2 + left, y2 + top)]
