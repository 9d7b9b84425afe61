"""Pictures of hits and misses: frames with their heatmap, what is abnormal in them, and what was detected."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tvau_edge.benchmarks.clips import LabelledClip, component_boxes
from tvau_edge.benchmarks.looking import detect
from tvau_edge.benchmarks.records import ClipRecord, Moment
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.detection.overlay import blend

_TRUTH, _DETECTED = (90, 230, 120), (255, 220, 80)
_WIDTH, _GAP, _CAPTION = 480, 6, 20


def write_pictures(records: Sequence[ClipRecord], folder: Path, most: int = 12) -> list[Path]:
    """Write hits.png, misses.png and alarms.png: at most one frame of each clip, the most telling first.

    Hits are the abnormal frames of the highest score, misses those of the lowest, alarms the normal frames of the
    highest. What is abnormal is framed in green, what was detected in yellow with its score.

    Args:
        records: what was measured.
        folder: made when it is missing.
        most: frames in each picture.

    Returns:
        The files that there was something for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    best = sorted((r.best for r in records if r.best), key=lambda moment: -moment.score)
    worst = sorted((r.worst for r in records if r.worst), key=lambda moment: moment.score)
    alarms = sorted((r.alarm for r in records if r.alarm), key=lambda moment: -moment.score)
    written = []
    for name, moments in (("hits", best), ("misses", worst), ("alarms", alarms)):
        if moments:
            written.append(folder / f"{name}.png")
            _sheet([_tile(moment) for moment in moments[:most]]).save(written[-1])
    return written


def write_contact_sheet(clips: Sequence[LabelledClip], path: Path, most: int = 30) -> None:
    """Write a picture of clips, evenly over a data set: the middle of what is abnormal, framed in green.

    Args:
        clips: of the data set.
        path: of the .png file.
        most: clips in the picture.
    """
    tiles = []
    for index in np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int):
        clip = clips[index]
        frames = np.flatnonzero(clip.labels)
        frame = int(frames[len(frames) // 2]) if frames.size else len(clip) // 2
        picture = Image.fromarray(_frame(clip, frame))
        _frame_truth(picture, clip, frame)
        tiles.append(_caption(picture, f"{clip.name}{_types(clip)}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    _sheet(tiles, columns=5).save(path)


def _tile(moment: Moment) -> Image.Image:
    picture = Image.fromarray(blend(_frame(moment.clip, moment.frame), moment.heatmap))
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    stroke = _stroke(picture)
    for region in detect(moment.heatmap, moment.threshold):
        x1, y1, x2, y2 = region.box
        place = x1 * width - stroke, y1 * height - stroke, x2 * width - 1 + stroke, y2 * height - 1 + stroke
        pen.rectangle(place, outline=_DETECTED, width=stroke)
        font = ImageFont.load_default(width / 40)
        pen.text((place[0] + 2 * stroke, place[1] + stroke), f"{region.score:.2f}", fill=_DETECTED, font=font)
    _frame_truth(picture, moment.clip, moment.frame)
    return _caption(
        picture, f"{moment.clip.name}{_types(moment.clip)}  frame {moment.frame}  score {moment.score:.2f}"
    )


def _stroke(picture: Image.Image) -> int:
    return max(2, picture.width // 320)


def _frame_truth(picture: Image.Image, clip: LabelledClip, frame: int) -> None:
    pen = ImageDraw.Draw(picture)
    for box in component_boxes(clip.abnormal(frame)):
        pen.rectangle(box, outline=_TRUTH, width=_stroke(picture))


def _types(clip: LabelledClip) -> str:
    return f" ({', '.join(clip.anomalies)})" if clip.anomalies else ""


def _caption(picture: Image.Image, text: str) -> Image.Image:
    tall = round(picture.height * _WIDTH / picture.width)
    tile = Image.new("RGB", (_WIDTH, tall + _CAPTION), (24, 24, 28))
    tile.paste(picture.resize((_WIDTH, tall)), (0, _CAPTION))
    ImageDraw.Draw(tile).text((4, 3), text, fill=(230, 230, 230), font=ImageFont.load_default(12))
    return tile


def _frame(clip: LabelledClip, number: int) -> NDArray[np.uint8]:
    with Source(str(clip.video), clip.name, image_rate=clip.frames_per_second) as source:
        return next(frame.image for frame in source if frame.index == number)


def _sheet(tiles: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + _GAP) + _GAP), (24, 24, 28))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP)))
    return sheet
