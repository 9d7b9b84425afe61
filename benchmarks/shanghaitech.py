"""ShanghaiTech Campus's layout: normal videos to train on, frames of test videos with arrays of what is abnormal.

    training/videos/<video>.avi                 normal; no ground truth
    testing/frames/<video>/<number>.jpg         24 frames per second
    testing/test_frame_mask/<video>.npy         [F] 0 or 1
    testing/test_pixel_mask/<video>.npy         [F, H, W] 0 or 1

The data set has no tracks. Ours are the connected parts of the masks, followed from frame to frame where they
overlap; what TBDC makes of them is not comparable with papers that marked tracks by hand.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.clips import ALL, LabelledClip, component_boxes
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.problems import Problem, settle, some
from tvau_edge.benchmarks.videos import image_size, list_images, probe

FRAMES_PER_SECOND = 24.0
_LEAST = 10  # pixels of a part of a mask; smaller ones are left over from how the masks were drawn


@dataclass(frozen=True)
class ShanghaiTechMasks:
    """The masks of one test video: an array on disk, [F, H, W]."""

    path: Path

    @cached_property
    def _array(self) -> NDArray[np.generic]:
        return load_array(self.path)

    def abnormal(self, frame: int) -> NDArray[np.bool_]:
        """What is abnormal in a frame, [H, W]."""
        return np.asarray(self._array[frame]) != 0

    def regions(self) -> NDArray[np.float64]:
        """Every abnormal region, [G, 6]: track, frame, box."""
        return self._regions

    @cached_property
    def _regions(self) -> NDArray[np.float64]:
        found: list[tuple[int, ...]] = []
        before: list[tuple[int, tuple[int, int, int, int]]] = []
        tracks = 0
        for frame in range(len(self._array)):
            boxes = [box for box in component_boxes(self.abnormal(frame)) if _area(box) >= _LEAST]
            now = []
            for box in boxes:
                near = max(before, key=lambda item: _overlap(item[1], box), default=None)
                if near is not None and _overlap(near[1], box) > 0:
                    before.remove(near)
                    track = near[0]
                else:
                    track, tracks = tracks, tracks + 1
                now.append((track, box))
                found.append((track, frame, *box))
            before = now
        return np.array(found, dtype=np.float64).reshape(-1, 6)


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Pixels that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)


def load_array(path: Path) -> NDArray[np.generic]:
    """Open a .npy file without reading it into memory, and without running what it may hold.

    Raises:
        DataError: it is absent or no plain array of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: is absent") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: is no .npy array of numbers, or it is cut off") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise DataError(f"{path}: is no .npy array of numbers")
    return array


def recognizes(root: Path) -> bool:
    """Whether a folder looks like this layout."""
    return (root / "testing").is_dir() or (root / "training" / "videos").is_dir()


def names_of(root: Path, split: str) -> list[str]:
    """Names of a split's videos, in order.

    Raises:
        DataError: the split is empty, or the data set has none of that name.
    """
    if split == "validation":
        raise DataError(f"{root}: ShanghaiTech has no validation split; it has train and test")
    if split == ALL:
        return [*_names(root / "training" / "videos"), *_names(root / "testing" / "frames")]
    folder = root / "training" / "videos" if split == "train" else root / "testing" / "frames"
    names = _names(folder)
    if not names:
        raise DataError(f"{folder}: the {split} split is empty")
    return names


def survey(root: Path) -> tuple[dict[str, list[str]], list[Problem]]:
    """Names of each split's clips, and what is wrong with the folders that hold them."""
    places = {"train": root / "training" / "videos", "test": root / "testing" / "frames"}
    splits = {split: _names(folder) for split, folder in places.items()}
    problems = []
    for split, folder in places.items():
        if not folder.is_dir():
            problems.append(Problem(folder, f"is absent: the {split} split", blocking=split == "test"))
        elif not splits[split]:
            problems.append(Problem(folder, f"is empty: the {split} split"))
    for kind in ("frame", "pixel"):
        folder = root / "testing" / f"test_{kind}_mask"
        stray = sorted({path.stem for path in folder.glob("*.npy")} - set(splits["test"]))
        if stray:
            what = f"has arrays of {len(stray)} videos without frames, such as {stray[0]}"
            problems.append(Problem(folder, what, blocking=False))
    return {split: names for split, names in splits.items() if names}, problems


def look_into(clip: LabelledClip) -> list[Problem]:
    """Open every frame and mask of a test clip: sizes must agree, and frame labels with masks."""
    if not clip.video.is_dir():
        return []
    problems: list[Problem] = []
    for path in sorted(list_images(clip.video)):
        try:
            size = image_size(path)
        except DataError as error:
            problems.append(Problem.of(path, error))
            continue
        if size != clip.size:
            problems.append(
                Problem(path, f"is {size[0]}x{size[1]}, the first frame {clip.size[0]}x{clip.size[1]}")
            )
    if isinstance(clip.masks, ShanghaiTechMasks):
        masks = clip.masks
        marked = np.array([masks.abnormal(frame).any() for frame in range(len(clip))])
        differ = np.flatnonzero(marked != clip.labels).tolist()
        if differ:
            what = (
                f"disagrees with test_frame_mask on whether {len(differ)} frames are abnormal: {some(differ)}"
            )
            problems.append(Problem(masks.path, what, blocking=False))
    return problems


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    if folder.name == "frames":
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    return sorted(path.stem for path in folder.glob("*.avi"))


def read_clip(root: Path, name: str, split: str) -> LabelledClip:
    """Read one clip.

    Raises:
        DataError: what is wrong with it, the first problem of all.
    """
    clip, problems = examine(root, name, split)
    settle(name, problems)
    assert clip is not None  # only a blocking problem leaves none
    return clip


def examine(root: Path, name: str, split: str) -> tuple[LabelledClip | None, list[Problem]]:
    """Read one clip and say all that is wrong with it; None where it cannot be read."""
    video = root / "training" / "videos" / f"{name}.avi"
    if split == "train" or (split == ALL and video.exists()):
        try:
            facts = probe(video)
        except DataError as error:
            return None, [Problem.of(video, error)]
        labels = np.zeros(facts.frames, dtype=bool)
        return LabelledClip(name, "train", video, facts.size, facts.frames_per_second, labels), []
    return _examine_test(root / "testing", name)


def _examine_test(testing: Path, name: str) -> tuple[LabelledClip | None, list[Problem]]:
    folder = testing / "frames" / name
    if not folder.is_dir():
        return None, [Problem(folder, "is absent: the frames of this test video")]
    problems: list[Problem] = []
    images = list_images(folder)
    if not images:
        return None, [Problem(folder, "holds no images")]
    numbers = sorted(int(path.stem) for path in images if path.stem.isdecimal())
    strange = sorted(path.name for path in images if not path.stem.isdecimal())
    if strange:
        problems.append(Problem(folder, f"has images whose names are no numbers: {', '.join(strange[:3])}"))
    if numbers:
        missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
        if missing:
            problems.append(Problem(folder, f"has gaps: the frames {some(missing)} are missing"))
    try:
        size = image_size(min(images))
    except DataError as error:
        return None, [*problems, Problem.of(min(images), error)]
    labels = _labels(testing / "test_frame_mask" / f"{name}.npy", len(images), problems)
    masks = _masks(testing / "test_pixel_mask" / f"{name}.npy", len(images), size, problems)
    if labels is None:
        return None, problems
    clip = LabelledClip(name, "test", folder, size, FRAMES_PER_SECOND, labels, masks)
    return clip, problems


def _labels(path: Path, frames: int, problems: list[Problem]) -> NDArray[np.bool_] | None:
    try:
        array = load_array(path)
    except DataError as error:
        problems.append(Problem.of(path, error))
        return None
    if array.shape != (frames,):
        problems.append(
            Problem(path, f"has shape {list(array.shape)}, expected [{frames}], one value per frame")
        )
        return None
    if not np.isin(array, (0, 1)).all():
        problems.append(Problem(path, "holds other values than 0 and 1"))
    return np.asarray(array) != 0


def _masks(
    path: Path, frames: int, size: tuple[int, int], problems: list[Problem]
) -> ShanghaiTechMasks | None:
    try:
        array = load_array(path)
    except DataError as error:
        problems.append(Problem.of(path, error))
        return None
    expected = (frames, size[1], size[0])
    if array.shape != expected:
        problems.append(
            Problem(path, f"has shape {list(array.shape)}, expected {list(expected)}, a mask per frame")
        )
        return None
    return ShanghaiTechMasks(path)
