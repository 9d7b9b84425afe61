"""UBnormal's layout: videos by scene, a mask of object numbers for each frame, and the abnormal objects' tracks.

    Scene<k>/<video>.mp4
    Scene<k>/<video>_annotations/<video>_<frame:04d>_gt.png    object numbers; 0 is background
    Scene<k>/<video>_annotations/<video>_tracks.txt            object,first frame,last frame of what is abnormal
    {normal,abnormal}_{training,validation,test}_video_names.txt, here or in scripts/
    Scene<k>/<video>.json                                      only beside drawn clips: `description.Description`

As its authors read it: frames count from 0, a track's ends are both included, every line is a track of its own,
a frame is abnormal inside a track, and an object's box is that of its largest connected part. Of the two lists of
tracks that some videos have, `_new_tracks.txt` is the corrected one.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.clips import ALL, LabelledClip, Stretch
from tvau_edge.benchmarks.description import Description, read_description
from tvau_edge.benchmarks.errors import DataError
from tvau_edge.benchmarks.problems import Problem, settle, some
from tvau_edge.benchmarks.ubnormal_masks import Track, UbnormalMasks, read_tracks, wrong_size
from tvau_edge.benchmarks.videos import VideoFacts, image_size, probe

_SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
_SCENE = re.compile(r"Scene\w+")
_MASK = re.compile(r"_(\d{4,})_gt\.png$")
_LIST_ADVICE = "the six lists are in the folder scripts/ of UBnormal's repository: copy them here"


def recognizes(root: Path) -> bool:
    """Whether a folder looks like this layout."""
    return any(_scenes(root)) or bool(_list_files(root))


def names_of(root: Path, split: str) -> list[str]:
    """Names of a split's videos, in order.

    Raises:
        DataError: there is no list for the split, it is empty, or nothing is in the folder.
    """
    if split == ALL:
        names = sorted(video.stem for video in _videos(root))
        if not names:
            raise DataError(f"{root}: holds no video (Scene<k>/<video>.mp4)")
        return names
    files = _list_files(root, split)
    if not files:
        word = _SPLIT_WORDS[split]
        raise DataError(
            f"{root}: has no list of the {split} split ({{normal,abnormal}}_{word}_video_names.txt); {_LIST_ADVICE}, "
            f"or take every clip with --split {ALL}"
        )
    names = [name for file in files for name in _listed(file)]
    if not names:
        raise DataError(f"{files[0]}: the {split} split is empty")
    return names


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
    """Read one clip and say all that is wrong with it, short of opening its masks; None where it cannot be read."""
    video = find_video(root, name)
    if video is None:
        return None, [Problem(root, f"the clip {name} of the {split} split is not in any Scene folder")]
    problems: list[Problem] = []
    try:
        facts = probe(video)
    except DataError as error:
        return None, [Problem.of(video, error)]
    described = _description(video, facts, problems)
    folder = video.with_name(f"{name}_annotations")
    # UBnormal's names say which kind a clip is; of other names nothing follows.
    abnormal = {"abnormal": True, "normal": False}.get(name.split("_")[0])
    tracks: tuple[Track, ...] = ()
    if not folder.is_dir():
        if abnormal is not False:
            kind = "an abnormal clip" if abnormal else "a clip whose name does not begin with normal_"
            problems.append(Problem(folder, f"is absent: {kind} needs masks and tracks"))
    else:
        tracks = read_tracks(folder, name, abnormal, facts.frames, problems)
    labels = np.zeros(facts.frames, dtype=bool)
    for track in tracks:
        labels[track.first : track.last + 1] = True
    if folder.is_dir():
        _gaps(folder, name, labels, problems)
    clip = LabelledClip(
        name=name,
        split=split,
        video=video,
        size=facts.size,
        frames_per_second=facts.frames_per_second,
        labels=labels,
        masks=UbnormalMasks(folder, name, facts.size, tracks) if tracks else None,
        anomalies=tuple(described.anomalies) if described else (),
        stretches=_stretches(described),
    )
    return clip, problems


def survey(root: Path) -> tuple[dict[str, list[str]], list[Problem]]:
    """Names of each split's clips, and what is wrong with the lists; without lists, all clips as one split."""
    problems: list[Problem] = []
    splits: dict[str, list[str]] = {}
    there = {video.stem for video in _videos(root)}
    if not there:
        return {}, [Problem(root, "holds no video (Scene<k>/<video>.mp4)")]
    for split in _SPLIT_WORDS:
        for file in _list_files(root, split):
            try:
                names = _listed(file)
            except DataError as error:
                problems.append(Problem.of(file, error))
                continue
            if not names:
                problems.append(Problem(file, "is empty", blocking=False))
            splits.setdefault(split, []).extend(names)
    if not splits:
        problems.append(Problem(root, f"has no lists of splits; {_LIST_ADVICE}", blocking=False))
        return {ALL: sorted(there)}, problems
    problems += [Problem(root, f"the {split} split is empty") for split, names in splits.items() if not names]
    of: dict[str, list[str]] = {}
    for split, names in splits.items():
        for name in names:
            of.setdefault(name, []).append(split)
    problems += [
        Problem(root, f"the clip {name} is listed more than once: {', '.join(listed)}")
        for name, listed in of.items()
        if len(listed) > 1
    ]
    unlisted = sorted(there - set(of))
    if unlisted:
        few = ", ".join(unlisted[:3])
        what = f"{len(unlisted)} clips are in no list of a split, such as {few}"
        problems.append(Problem(root, what, blocking=False))
    return splits, problems


def look_into(clip: LabelledClip) -> list[Problem]:
    """Look at every mask of a clip: each must be of the video's size, and hold what the tracks name.

    Only masks within tracks are read as a whole, since a figure depends on them; of the others the size is read.
    """
    folder = clip.video.with_name(f"{clip.name}_annotations")
    tracks = clip.masks.tracks if isinstance(clip.masks, UbnormalMasks) else ()
    masks = UbnormalMasks(folder, clip.name, clip.size, tracks)
    problems: list[Problem] = []
    hidden: dict[Track, list[int]] = {}
    for frame in range(len(clip)):
        path = masks.path(frame)
        if not path.exists():
            continue  # told as a gap
        try:
            size = image_size(path)
            if size != clip.size:
                problems.append(Problem(path, wrong_size(size, clip.size)))
            elif clip.labels[frame]:
                shown = np.bincount(masks.objects(frame).ravel(), minlength=256)
                for track in tracks:
                    if track.first <= frame <= track.last and not shown[track.number]:
                        hidden.setdefault(track, []).append(frame)
        except DataError as error:
            problems.append(Problem.of(path, error))
    for track, frames in hidden.items():
        length = track.last - track.first + 1
        what = f"do not show object {track.number} in {len(frames)} of the {length} frames of its track: {some(frames)}"
        problems.append(Problem(folder, what, blocking=len(frames) == length))
    return problems


def find_video(root: Path, name: str) -> Path | None:
    """The file of a video, by its name."""
    parts = name.split("_")
    if len(parts) > 2:
        usual = root / f"Scene{parts[2]}" / f"{name}.mp4"
        if usual.exists():
            return usual
    return next((video for video in _videos(root) if video.stem == name), None)


def _scenes(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and _SCENE.fullmatch(folder.name))


def _videos(root: Path) -> list[Path]:
    return [video for scene in _scenes(root) for video in sorted(scene.glob("*.mp4"))]


def _list_files(root: Path, split: str | None = None) -> list[Path]:
    words = [_SPLIT_WORDS[split]] if split else list(_SPLIT_WORDS.values())
    places = [folder / f"{kind}_{word}_video_names.txt"
              for word in words for kind in ("abnormal", "normal") for folder in (root, root / "scripts")]  # fmt: skip
    return [place for place in places if place.is_file()]


def _listed(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of names: {error}") from error


def _description(video: Path, facts: VideoFacts, problems: list[Problem]) -> Description | None:
    path = video.with_suffix(".json")
    if not path.exists():
        return None
    try:
        described = read_description(path)
    except DataError as error:
        problems.append(Problem.of(path, error))
        return None
    for what, here, there in (
        ("size", described.size, facts.size),
        ("number of frames", len(described.frames), facts.frames),
    ):
        if here != there:
            problems.append(Problem(path, f"its {what} is {here}, that of {video.name} is {there}"))
    late = [stretch for stretch in described.stretches if not stretch.first <= stretch.last < facts.frames]
    problems += [
        Problem(path, f"the stretch {s.first} to {s.last} is outside the frames 0 to {facts.frames - 1}")
        for s in late
    ]
    return described


def _stretches(described: Description | None) -> tuple[Stretch, ...]:
    if described is None:
        return ()
    return tuple(
        Stretch(s.first, s.last, s.abnormal, {key: tuple(wordings) for key, wordings in s.answers.items()})
        for s in described.stretches
    )


def _gaps(folder: Path, name: str, labels: NDArray[np.bool_], problems: list[Problem]) -> None:
    """Say which frames have no mask, and which masks no frame."""
    numbers = set()
    for path in folder.iterdir():
        found = _MASK.search(path.name)
        if found and path.name == f"{name}_{int(found[1]):04d}_gt.png":
            numbers.add(int(found[1]))
    missing = sorted(set(range(len(labels))) - numbers)
    beyond = sorted(number for number in numbers if number >= len(labels))
    if missing:
        what = f"has no mask of {len(missing)} of {len(labels)} frames: {some(missing)}"
        problems.append(Problem(folder, what, blocking=bool(labels[missing].any())))
    if beyond:
        what = f"has masks beyond the video's {len(labels)} frames: {some(beyond)}"
        problems.append(Problem(folder, what, blocking=False))
