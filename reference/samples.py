"""Drawn clips as the vision tower sees them: temporal patches after H.264, with labels on the patch grid."""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.actors import COLOURS, TROUSERS, Kind, Posture
from tvau_edge.reference.anomalies import ABNORMAL, TEST, TRAINING, VALIDATION
from tvau_edge.reference.clip import FRAMES_PER_SECOND, HELD_OUT, Clip, DrawnFrame
from tvau_edge.reference.narration import MIN_AREA, answers, is_abnormal, narrate, tracks
from tvau_edge.runtime.manifest import Geometry

GEOMETRY = Geometry(width=252, height=140, frames_per_second=4.0, temporal_patches=8)
# The first seed of each split. All behaviours occur in what the tower and the language model are pre-trained on, as
# people running occur in what Qwen2.5-VL has seen; nothing tells there that they are abnormal. What AHD, RAE and the
# LoRA learn from shows the kinds of `TRAINING` alone.
SPLITS = {"pretrain": 0, "train": 50_000, "validation": HELD_OUT, "test": 1_000_000, "familiar": 2_000_000}
SHOWN = {
    "pretrain": list(ABNORMAL),
    "train": list(TRAINING),
    "validation": list(VALIDATION),
    "test": list(TEST),
    "familiar": list(TRAINING),  # the kinds of training on streets that no training has seen
}
_SECOND = 0.3  # share of the clips with an anomaly that have two
_MOVING: tuple[Posture, ...] = ("walk", "run", "limp", "stagger", "skate", "ride", "drive", "crawl")
EVERY = round(FRAMES_PER_SECOND / GEOMETRY.frames_per_second)

KINDS: tuple[str, ...] = ("none", *get_args(Kind))
POSTURES: tuple[str, ...] = ("none", *get_args(Posture))
ZONES: tuple[str, ...] = ("none", "footpath", "road", "off")
HEADINGS: tuple[str, ...] = ("none", "left", "right", "still")
JACKETS: tuple[str, ...] = ("none", *COLOURS, "brown")
LOWERS: tuple[str, ...] = ("none", *TROUSERS)
# What the tower learns to tell of each cell, and how many classes each attribute has.
ATTRIBUTES = {
    "kind": len(KINDS),
    "posture": len(POSTURES),
    "zone": len(ZONES),
    "heading": len(HEADINGS),
    "colour": len(JACKETS),
    "lower": len(LOWERS),
}


@dataclass(frozen=True)
class Window:
    """T' temporal patches of a clip and what is said of them.

    Attributes:
        start: index of the first temporal patch.
        narration: of the largest objects.
        abnormal: whether it shows an anomaly; None where nobody could tell.
        answers: to the paper's questions, by key, in wordings that mean the same.
    """

    start: int
    narration: str
    abnormal: bool | None
    answers: dict[str, list[str]]


@dataclass(frozen=True)
class Sample:
    """One clip, cut into K temporal patches.

    Attributes:
        seed, anomalies: what it was drawn from.
        frames: [K, 2, 140, 252, 3] uint8 RGB, after H.264 and the runtime's scaling.
        attributes: [K, 6, H', W'] uint8 class of the object in each cell, in the order of `ATTRIBUTES`.
        abnormal: [K, H', W'] float16 share of each cell that shows something abnormal.
        behaviour: [K, H', W'] uint8, which key of `ABNORMAL` those cells show, counted from 1; 0 for none.
        labels: [K] bool, whether the patch shows an anomaly large enough to be seen.
        windows: stretches of T' patches.
    """

    seed: int
    anomalies: tuple[str, ...]
    frames: NDArray[np.uint8]
    attributes: NDArray[np.uint8]
    abnormal: NDArray[np.float16]
    behaviour: NDArray[np.uint8]
    labels: NDArray[np.bool_]
    windows: tuple[Window, ...]


def make_sample(seed: int, anomalies: Sequence[str]) -> Sample:
    """Draw, encode, decode and label one clip."""
    clip = Clip.draw(seed, anomalies)
    drawn = list(clip.frames(every=EVERY))
    pairs = [drawn[k : k + 2] for k in range(0, len(drawn) - 1, 2)]
    decoded = through_h264(
        [frame.image for frame in drawn], crf=int(np.random.default_rng(seed).integers(20, 31))
    )
    count = len(pairs)
    window = GEOMETRY.temporal_patches
    return Sample(
        seed=seed,
        anomalies=clip.anomalies,
        frames=decoded[: 2 * count].reshape(count, 2, *decoded.shape[1:]),
        attributes=np.stack([_attributes(clip, pair[1]) for pair in pairs]),
        abnormal=np.stack([_abnormal(pair) for pair in pairs]).astype(np.float16),
        behaviour=np.stack([_behaviour(clip, pair) for pair in pairs]),
        labels=np.array([_abnormal_area(pair[1]) >= MIN_AREA for pair in pairs]),
        windows=tuple(_window(clip, drawn, start, window) for start in range(0, count - window + 1, 2)),
    )


def first_seed(split: str) -> int:
    """The first seed of a split; splits never meet.

    Raises:
        TvauError: the split is unknown.
    """
    if split not in SPLITS:
        raise TvauError(f"--split {split}: unknown; known: {', '.join(SPLITS)}")
    return SPLITS[split]


def split_of(seed: int) -> str:
    """The split that a seed belongs to."""
    return max((split for split, first in SPLITS.items() if first <= seed), key=SPLITS.__getitem__)


def anomalies_of(seed: int) -> tuple[str, ...]:
    """What the clip of a seed shows: every second one is normal, the others take the anomalies of its split in turn.

    Some show a second anomaly at the same time.
    """
    if seed % 2:
        return ()
    kinds = SHOWN[split_of(seed)]
    first, rng = kinds[seed // 2 % len(kinds)], np.random.default_rng([seed, 31])
    others = [kind for kind in kinds if kind != first]
    return (first, others[rng.integers(len(others))]) if rng.random() < _SECOND else (first,)


def samples(seeds: Sequence[int], cache: Path, workers: int = 2) -> Iterator[Sample]:
    """Make the clips of `seeds` with several processes, or read those that `cache` already holds, in order."""
    cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        paths = [cache / f"{seed}.npz" for seed in seeds]
        yield from map(_read, pool.map(_make_file, seeds, paths, chunksize=4))


def _make_file(seed: int, path: Path) -> Path:
    if not path.exists():
        sample = make_sample(seed, anomalies_of(seed))
        about = {
            "seed": seed,
            "anomalies": sample.anomalies,
            "windows": [asdict(window) for window in sample.windows],
        }
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.savez(
                file,
                frames=sample.frames,
                attributes=sample.attributes,
                abnormal=sample.abnormal,
                behaviour=sample.behaviour,
                labels=sample.labels,
                about=np.array(json.dumps(about)),
            )
        partial.rename(path)
    return path


def _read(path: Path) -> Sample:
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        return Sample(
            about["seed"],
            tuple(about["anomalies"]),
            file["frames"],
            file["attributes"],
            file["abnormal"],
            file["behaviour"],
            file["labels"],
            tuple(Window(**window) for window in about["windows"]),
        )


def through_h264(images: Sequence[NDArray[np.uint8]], crf: int) -> NDArray[np.uint8]:
    """Encode frames as H.264 in memory, decode them and scale them as the runtime does: [F, 140, 252, 3] uint8."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND // EVERY)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf), "preset": "veryfast"}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    memory.seek(0)
    with av.open(memory) as container:
        scaled = [
            frame.reformat(GEOMETRY.width, GEOMETRY.height, "rgb24", interpolation="BICUBIC").to_ndarray()
            for frame in container.decode(video=0)
        ]
    return np.stack(scaled)


def _abnormal_area(frame: DrawnFrame) -> int:
    return sum(thing.area for thing in frame.objects if thing.state.abnormal)


def _share(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of each cell of the patch grid that `mask` [360, 640] covers."""
    rows, columns = GEOMETRY.grid
    return cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)


def _abnormal(pair: Sequence[DrawnFrame]) -> NDArray[np.float32]:
    shares = []
    for frame in pair:
        numbers = [thing.number for thing in frame.objects if thing.state.abnormal]
        shares.append(_share(np.isin(frame.mask, numbers)))
    return np.maximum(*shares)


def _behaviour(clip: Clip, pair: Sequence[DrawnFrame]) -> NDArray[np.uint8]:
    """The abnormal behaviour [H', W'] that each cell shows most of, in either frame; 0 where it shows none."""
    best = np.zeros(GEOMETRY.grid, np.float32)
    found = np.zeros(GEOMETRY.grid, np.uint8)
    for frame in pair:
        for thing in frame.objects:
            if thing.state.abnormal:
                share = _share(frame.mask == thing.number)
                here = share > best
                best[here] = share[here]
                found[here] = 1 + list(ABNORMAL).index(clip.actors[thing.number - 1].behaviour)
    return found


def _attributes(clip: Clip, frame: DrawnFrame) -> NDArray[np.uint8]:
    rows, columns = GEOMETRY.grid
    best = np.full((rows, columns), 0.08, np.float32)  # less than this of a cell shows nothing
    classes = np.zeros((len(ATTRIBUTES), rows, columns), np.uint8)
    for thing in frame.objects:
        share = _share(frame.mask == thing.number)
        state = thing.state
        moving = state.posture in _MOVING
        heading = ("right" if state.facing > 0 else "left") if moving else "still"
        values = (
            KINDS.index(clip.looks[thing.number].kind),
            POSTURES.index(state.posture),
            ZONES.index(clip.layout.zone(state.depth)),
            HEADINGS.index(heading),
            JACKETS.index(clip.looks[thing.number].colour),
            LOWERS.index(clip.looks[thing.number].lower) if clip.looks[thing.number].kind == "person" else 0,
        )
        here = share > best
        best[here] = share[here]
        for attribute, value in enumerate(values):
            classes[attribute][here] = value
    return classes


def _window(clip: Clip, drawn: Sequence[DrawnFrame], start: int, patches: int) -> Window:
    frames = drawn[2 * start : 2 * (start + patches)]
    found = tracks(clip, frames)
    return Window(start, narrate(found), is_abnormal(found, len(frames)), answers(found))
