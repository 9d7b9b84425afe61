"""What a run saw, drawn over the video: heatmap, boxes, score, and the answers (extra: record)."""

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.frame import Frame
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.detection.heatmap import over_frame
from tvau_edge.runtime.detection.regions import find_regions
from tvau_edge.runtime.detection.timeline import Moment, Timeline
from tvau_edge.runtime.errors import DiskFullError, SourceError
from tvau_edge.runtime.extras import load

# Heat from 0 to 1 as red, green, blue at even steps: transparent black over violet and orange to light yellow.
_COLOURS = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float32
)
_OPAQUE = 0.65  # of the hottest cell
_BANNER = 66  # pixels at 640 wide
_QUESTIONS = (("target", "who"), ("motion", "does"), ("from", "from"), ("to", "to"))


def colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours of heat [...] in 0..1: [..., 3] in 0..255."""
    place = np.clip(heat, 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    part = (place - low)[..., None]
    return np.asarray(_COLOURS[low] * (1 - part) + _COLOURS[low + 1] * part, dtype=np.float32)


def blend(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a heatmap [H', W'] over a frame [H, W, 3] uint8; what is cold stays as it is."""
    full = over_frame(heat, image.shape[1], image.shape[0])
    weight = (np.clip(full, 0, 1) * _OPAQUE)[..., None]
    return (image * (1 - weight) + colours(full) * weight).astype(np.uint8)


@dataclass(frozen=True)
class Overlay:
    """Draws frames of one camera.

    Args:
        timeline: what the run saw.
        threshold: score from which a cell belongs to a box, 0..1.

    Raises:
        MissingExtraError: the extra `record` is not installed.
    """

    timeline: Timeline
    threshold: float

    def draw(self, image: NDArray[np.uint8], pts: float) -> NDArray[np.uint8]:
        """Draw over the frame [H, W, 3] uint8 at `pts` seconds; its size stays."""
        moment = self.timeline.at(pts)
        if moment is None:
            return image
        drawing = load("PIL.ImageDraw", "--record", "record")
        pictures = load("PIL.Image", "--record", "record")
        picture = pictures.fromarray(blend(image, moment.heatmap))
        pen = drawing.Draw(picture, "RGBA")
        unit = image.shape[1] / 640
        self._draw_boxes(pen, moment, image.shape[1], image.shape[0], unit)
        self._draw_score(pen, pts, moment, image.shape[1], image.shape[0], unit)
        if moment.event is not None:
            self._draw_banner(pen, moment, image.shape[1], unit)
        return np.asarray(picture)

    def _draw_boxes(self, pen: Any, moment: Moment, width: int, height: int, unit: float) -> None:
        for region in find_regions(moment.heatmap, self.threshold):
            x1, y1, x2, y2 = region.box
            box = (x1 * width, y1 * height, x2 * width - 1, y2 * height - 1)
            pen.rectangle(box, outline=(255, 220, 80, 255), width=max(1, round(1.5 * unit)))
            label = f"{region.score:.2f}"
            pen.text(
                (box[0] + 2 * unit, box[1] - 13 * unit), label, fill=(255, 220, 80), font=_font(11 * unit)
            )

    def _draw_score(self, pen: Any, pts: float, moment: Moment, width: int, height: int, unit: float) -> None:
        """The score over the whole clip as a strip at the lower edge, with the threshold and the present."""
        tall, top = 30 * unit, height - 30 * unit
        moments = list(self.timeline.moments)
        end = max(moments[-1].pts, 1e-6)
        pen.rectangle((0, top, width, height), fill=(0, 0, 0, 120))
        points = [(m.pts / end * width, height - 2 - m.score * (tall - 6)) for m in moments]
        level = height - 2 - self.threshold * (tall - 6)
        pen.line([(0, level), (width, level)], fill=(255, 255, 255, 90), width=1)
        if len(points) > 1:
            pen.line(points, fill=(252, 165, 10, 255), width=max(1, round(1.5 * unit)))
        now = min(pts / end, 1) * width
        pen.line([(now, top), (now, height)], fill=(255, 255, 255, 220), width=max(1, round(unit)))
        text = f"{self.timeline.camera}  {pts:5.1f} s  score {moment.score:.2f}"
        pen.text((6 * unit, top + 2 * unit), text, fill=(255, 255, 255), font=_font(11 * unit))

    def _draw_banner(self, pen: Any, moment: Moment, width: int, unit: float) -> None:
        answers = self.timeline.answers.get(moment.event, {}) if moment.event else {}
        lines = [f"anomaly: {answers['anomaly']}"] if "anomaly" in answers else ["anomaly"]
        lines += [f"{label}: {answers[key]}" for key, label in _QUESTIONS if key in answers]
        font = _font(12 * unit)
        rows: list[list[str]] = []
        for line in (_fit(line, 70) for line in lines):
            # Two lines share a row where each fits into half of it.
            if rows and len(rows[-1]) == 1 and all(_narrow(pen, it, font, width) for it in (*rows[-1], line)):
                rows[-1].append(line)
            else:
                rows.append([line])
        pen.rectangle((0, 0, width, (8 + 15 * len(rows)) * unit), fill=(150, 24, 24, 190))
        for row, shared in enumerate(rows):
            for column, line in enumerate(shared):
                place = 6 * unit + column * width / 2, (4 + 15 * row) * unit
                pen.text(place, line, fill=(255, 255, 255), font=font)


def _narrow(pen: Any, line: str, font: Any, width: int) -> bool:
    return bool(pen.textlength(line, font) < 0.48 * width)


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


_fonts: dict[int, Any] = {}


def _font(size: float) -> Any:
    pixels = max(8, round(size))
    if pixels not in _fonts:
        _fonts[pixels] = load("PIL.ImageFont", "--record", "record").load_default(pixels)
    return _fonts[pixels]


def record(source: Source, overlay: Overlay, path: Path) -> int:
    """Draw over every frame of a source and write an H.264 file, which appears when it is whole.

    Args:
        source: opened anew; its time stamps are kept.
        overlay: draws.
        path: of the .mp4 file.

    Returns:
        Frames written.

    Raises:
        DiskFullError: no room; nothing is left behind.
        SourceError: the source cannot be read, or the file not be written.
    """
    load("PIL", "--record", "record")
    partial = path.with_name(f".{path.name}.part")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(partial), "w", format="mp4") as container:
            stream: Any = None
            for frame in source:
                if stream is None:
                    stream = _stream(container, frame)
                width, height = stream.width, stream.height
                drawn = overlay.draw(np.ascontiguousarray(frame.image[:height, :width]), frame.pts)
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn), format="rgb24")
                picture.pts = round(frame.pts * 1000)
                picture.time_base = Fraction(1, 1000)
                container.mux(stream.encode(picture))
                count += 1
            if stream is not None:
                container.mux(stream.encode())
        partial.rename(path)
    except OSError as error:  # FFmpeg's errors are OSErrors as well
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"{path}: the disk is full; nothing was left there") from error
        raise SourceError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # its folder may be none
            partial.unlink(missing_ok=True)
    return count


def _stream(container: Any, first: Frame) -> Any:
    stream = container.add_stream("libx264", rate=30)
    width, height = first.size
    stream.width, stream.height = width - width % 2, height - height % 2  # yuv420p has no odd sizes
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, 1000)
    stream.options = {"crf": "23", "preset": "veryfast"}
    return stream


def contact_sheet(source: Source, overlay: Overlay, path: Path, tiles: int = 12, columns: int = 4) -> None:
    """Write a picture of `tiles` moments, evenly over the clip, each with its heatmap, boxes and score.

    Raises:
        MissingExtraError: the extra `record` is not installed.
        SourceError: the source cannot be read, or the picture not be written.
    """
    moments = overlay.timeline.moments
    if not moments:
        raise SourceError(f"{source.name}: nothing was seen of it, so there is no contact sheet")
    chosen = np.linspace(0, len(moments) - 1, min(tiles, len(moments))).round().astype(int)
    wanted = [moments[index].pts for index in chosen]
    pictures = load("PIL.Image", "the contact sheet", "record")
    cells: list[Any] = []
    for frame in source:
        while len(cells) < len(wanted) and frame.pts >= wanted[len(cells)] - 1e-3:
            cell = pictures.fromarray(overlay.draw(frame.image, frame.pts))
            cell.thumbnail((480, 480))
            cells.append(cell)
        if len(cells) == len(wanted):
            break
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _grid(cells, columns).save(path)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such ending
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path}: cannot be written: {reason}; give the name of a .png file") from error


def _grid(cells: Sequence[Any], columns: int) -> Any:
    pictures = load("PIL.Image", "the contact sheet", "record")
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    gap = 6
    sheet = pictures.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), (24, 24, 28))
    for number, cell in enumerate(cells):
        place = gap + number % columns * (width + gap), gap + number // columns * (height + gap)
        sheet.paste(cell, place)
    return sheet
