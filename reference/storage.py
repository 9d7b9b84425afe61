"""Drawn clips as files: H.264 video with its ground truth as JSON, and whole splits in UBnormal's layout."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import av
import cv2
import numpy as np

from tvau_edge.benchmarks.clips import spans
from tvau_edge.benchmarks.description import (
    DescribedFrame,
    DescribedStretch,
    Description,
    Thing,
    ThingInFrame,
)
from tvau_edge.reference.clip import FRAMES_PER_SECOND, Clip, DrawnFrame, Seen, cell_name
from tvau_edge.reference.narration import MIN_AREA, answers, is_abnormal, narrate, tracks
from tvau_edge.reference.samples import GEOMETRY, anomalies_of
from tvau_edge.reference.scene import HEIGHT, WIDTH

_SPLIT_WORDS = {"train": "training", "validation": "validation", "test": "test"}
# UBnormal's layout has three splits; in a folder of their own, ours go as one of them.
_WRITTEN_AS = {"pretrain": "train", "familiar": "test"}


def write_clip(
    clip: Clip,
    path: Path,
    crf: int = 23,
    advance: Callable[[int, int], None] | None = None,
    split: str = "none",
) -> list[DrawnFrame]:
    """Write a clip as H.264 to `path` (.mp4) and its ground truth beside it (.json).

    Args:
        clip: to be drawn.
        path: of the video; appears when it is whole.
        crf: x264's quality, lower is better.
        advance: told of progress as (frames done, frames in all).
        split: that the clip belongs to.

    Returns:
        The frames, as they were drawn.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    frames = []
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for frame in clip.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
            frames.append(frame)
            if advance:
                advance(len(frames), len(clip))
        container.mux(stream.encode())
    path.with_suffix(".json").write_text(describe(clip, frames, split).model_dump_json() + "\n")
    partial.rename(path)
    return frames


def describe(clip: Clip, frames: Sequence[DrawnFrame], split: str) -> Description:
    """The ground truth of a clip, short of its masks."""
    return Description(
        origin=f"drawn by tvau-edge from seed {clip.seed}; not real",
        split=split,
        anomalies=_shown(clip, frames),
        size=(WIDTH, HEIGHT),
        frames_per_second=FRAMES_PER_SECOND,
        objects=list(_things(clip, frames)),
        frames=[
            DescribedFrame(frame=index, objects=[_in_frame(thing) for thing in frame.objects])
            for index, frame in enumerate(frames)
        ],
        stretches=list(_stretches(clip, frames)),
    )


def _shown(clip: Clip, frames: Sequence[DrawnFrame]) -> list[str]:
    """The anomalies that can be seen, in the clip's order."""
    seen = {clip.actors[number - 1].behaviour for number, _, _ in abnormal_tracks(frames)}
    return [anomaly for anomaly in clip.anomalies if anomaly in seen]


def _things(clip: Clip, frames: Sequence[DrawnFrame]) -> Iterator[Thing]:
    seen: dict[int, list[Seen]] = {}
    for frame in frames:
        for thing in frame.objects:
            seen.setdefault(thing.number, []).append(thing)
    for number, things in sorted(seen.items()):
        yield Thing(
            track=number,
            kind=clip.looks[number].kind,
            appearance=clip.looks[number].appearance,
            anomaly=clip.actors[number - 1].behaviour if any(t.state.abnormal for t in things) else None,
            from_=cell_name(things[0].box),
            to=cell_name(things[-1].box),
        )


def _in_frame(thing: Seen) -> ThingInFrame:
    return ThingInFrame(
        track=thing.number,
        box=thing.box,
        area=thing.area,
        motion=thing.state.motion,
        abnormal=thing.state.abnormal,
        place=cell_name(thing.box),
    )


def _stretches(clip: Clip, frames: Sequence[DrawnFrame]) -> Iterator[DescribedStretch]:
    """Windows of the checkpoint's length, one from every second on."""
    length = round(GEOMETRY.temporal_patches * GEOMETRY.seconds_per_patch * FRAMES_PER_SECOND)
    for first in range(0, len(frames) - length + 1, FRAMES_PER_SECOND):
        window = frames[first : first + length]
        found = tracks(clip, window)
        yield DescribedStretch(
            first=first,
            last=first + length - 1,
            abnormal=is_abnormal(found, len(window)),
            narration=narrate(found),
            answers=answers(found),
        )


def write_split(out: Path, split: str, seeds: Sequence[int], workers: int = 2) -> Iterator[Path]:
    """Draw clips in UBnormal's layout below `out`, and name them in the lists of the split.

    A clip that is there and whole is left as it is, so that an interrupted run goes on where it was.

    Args:
        out: folder of the data set; other splits may be in it.
        split: a key of `SPLITS`.
        seeds: one for each clip.
        workers: processes.

    Yields:
        The video of each clip, in the order of `seeds`.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = []
    with ProcessPoolExecutor(workers) as pool:
        for video in pool.map(_write_labelled, repeat(out), repeat(split), seeds):
            names.append(video.stem)
            yield video
    for kind in ("abnormal", "normal"):
        _add_names(
            out / f"{kind}_{_SPLIT_WORDS[_WRITTEN_AS.get(split, split)]}_video_names.txt",
            [n for n in names if n.startswith(kind)],
        )


def _write_labelled(out: Path, split: str, seed: int) -> Path:
    clip = Clip.draw(seed, anomalies_of(seed))
    scene = clip.layout.seed
    folder = out / f"Scene{scene}"
    names = {kind: f"{kind}_scene_{scene}_scenario_{seed}" for kind in ("abnormal", "normal")}
    for name in names.values():
        if (folder / f"{name}.mp4").exists():
            return folder / f"{name}.mp4"
    # The video appears last: a clip that has one is whole.
    partial = folder / f".{seed}.drawing"
    frames = write_clip(clip, partial, crf=int(np.random.default_rng(seed).integers(20, 31)), split=split)
    found = abnormal_tracks(frames)
    name = names["abnormal" if found else "normal"]
    annotations = folder / f"{name}_annotations"
    annotations.mkdir(exist_ok=True)
    for index, frame in enumerate(frames):
        cv2.imwrite(str(annotations / f"{name}_{index:04d}_gt.png"), frame.mask)
    if found:
        lines = [f"{number},{first},{last}\n" for number, first, last in found]
        (annotations / f"{name}_tracks.txt").write_text("".join(lines))
    partial.with_suffix(".json").rename(folder / f"{name}.json")
    return partial.rename(folder / f"{name}.mp4")


def abnormal_tracks(frames: Sequence[DrawnFrame]) -> list[tuple[int, int, int]]:
    """What is abnormal, as UBnormal's tracks: object, first frame, last frame.

    A track goes from the first to the last frame in which a person could be asked to see the abnormal object, and
    ends where it shows and is normal. While something hides the object, or a thrown one is in its thrower's hand,
    its track goes on.
    """
    abnormal: dict[int, dict[int, bool]] = {}  # by object and frame in which it shows
    clear: dict[int, set[int]] = {}
    for index, frame in enumerate(frames):
        for thing in frame.objects:
            abnormal.setdefault(thing.number, {})[index] = thing.state.abnormal
            if thing.state.abnormal and thing.area >= MIN_AREA:
                clear.setdefault(thing.number, set()).add(index)
    found = []
    for number, seen in sorted(clear.items()):
        for first, last in spans([abnormal[number].get(index, True) for index in range(len(frames))]):
            within = [index for index in sorted(seen) if first <= index <= last]
            if within:
                found.append((number, within[0], within[-1]))
    return found


def _add_names(path: Path, names: Sequence[str]) -> None:
    there = path.read_text().split() if path.exists() else []
    partial = path.with_suffix(".part")
    partial.write_text("".join(f"{name}\n" for name in sorted({*there, *names})))
    partial.rename(path)
