"""Drawn clips as files: H.264 video, and its ground truth as JSON beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import av

from tvau_edge.reference.clip import FRAMES_PER_SECOND, Clip, DrawnFrame, cell_name
from tvau_edge.reference.scene import HEIGHT, WIDTH


def write_clip(
    clip: Clip, path: Path, crf: int = 23, advance: Callable[[int, int], None] | None = None
) -> None:
    """Write a clip as H.264 to `path` (.mp4) and its ground truth beside it (.json).

    Args:
        clip: to be drawn.
        path: of the video; appears when it is whole.
        crf: x264's quality, lower is better.
        advance: told of progress as (frames done, frames in all).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    truth = []
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast"}
        for index, frame in enumerate(clip.frames()):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
            truth.append(_describe(clip, index, frame))
            if advance:
                advance(index + 1, len(clip))
        container.mux(stream.encode())
    table = {
        "schema": "tvau.drawn/1",
        "seed": clip.seed,
        "anomaly": clip.anomaly,
        "size": [WIDTH, HEIGHT],
        "frames_per_second": FRAMES_PER_SECOND,
        "frames": truth,
    }
    path.with_suffix(".json").write_text(json.dumps(table) + "\n")
    partial.rename(path)


def _describe(clip: Clip, index: int, frame: DrawnFrame) -> dict[str, object]:
    return {
        "frame": index,
        "objects": [
            {
                "track": thing.number,
                "kind": clip.looks[thing.number].kind,
                "appearance": clip.looks[thing.number].appearance,
                "motion": thing.state.motion,
                "abnormal": thing.state.abnormal,
                "box": thing.box,
                "area": thing.area,
                "place": cell_name(thing.box),
            }
            for thing in frame.objects
        ],
    }
