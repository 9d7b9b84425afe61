import errno
import sys
from itertools import pairwise
from uuid import uuid4

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.detection import overlay as module
from tvau_edge.runtime.detection.overlay import Overlay, blend, colours, contact_sheet, record
from tvau_edge.runtime.detection.timeline import Moment, Timeline
from tvau_edge.runtime.errors import DiskFullError, MissingExtraError, SourceError

EVENT = uuid4()
SIZE = (160, 120)


def heat_at(row, column, value=0.95):
    heat = np.zeros((4, 4), np.float32)
    heat[row, column] = value
    return heat


def timeline(*moments):
    line = Timeline("door")
    line.moments += moments or [
        Moment(0.5, heat_at(0, 0, 0.0), 0.0, None),
        Moment(1.0, heat_at(0, 0), 0.95, EVENT),
        Moment(1.5, heat_at(3, 3), 0.95, EVENT),
    ]
    return line


@pytest.fixture(scope="module")
def clip(tmp_path_factory, draw_clip):
    return draw_clip(tmp_path_factory.mktemp("overlay") / "clip.mp4", 2, (1, 2), size=SIZE)


def source(clip):
    return Source(str(clip), "door")


def grey(width=160, height=120):
    return np.full((height, width, 3), 100, np.uint8)


def changed(before, after):
    """Share of pixels that differ in each quarter: upper left, upper right, lower left, lower right."""
    differs = np.any(before != after, axis=2)
    rows, columns = differs.shape[0] // 2, differs.shape[1] // 2
    return [
        differs[y : y + rows, x : x + columns].mean()
        for y in (0, differs.shape[0] - rows)
        for x in (0, differs.shape[1] - columns)
    ]


def test_colours_rise_in_brightness_and_take_any_number():
    scale = colours(np.linspace(0, 1, 20).astype(np.float32))
    assert scale.shape == (20, 3)
    assert np.all(np.diff(scale @ [0.2126, 0.7152, 0.0722]) > 0)
    np.testing.assert_array_equal(
        colours(np.array([-1, 2], np.float32)), colours(np.array([0, 1], np.float32))
    )


def test_what_is_cold_stays_as_it_is():
    image = grey()
    np.testing.assert_array_equal(blend(image, heat_at(0, 0, 0.0)), image)
    quarters = changed(image, blend(image, heat_at(0, 0)))
    assert quarters[0] > 0.3
    assert quarters[1] == quarters[2] == quarters[3] == 0


def test_the_frame_keeps_its_size_and_its_type():
    drawn = Overlay(timeline(), 0.5).draw(grey(), 1.0)
    assert (drawn.shape, drawn.dtype) == ((120, 160, 3), np.uint8)


def test_nothing_was_seen():
    image = grey()
    assert Overlay(Timeline("door"), 0.5).draw(image, 1.0) is image


def test_the_heat_of_the_moment_is_drawn_where_it_is(monkeypatch):
    overlay = Overlay(timeline(Moment(1.0, heat_at(0, 3), 0.9, None)), 0.5)
    monkeypatch.setattr(Overlay, "_draw_score", lambda *_: None)
    upper_left, upper_right, lower_left, lower_right = changed(grey(), overlay.draw(grey(), 1.0))
    assert upper_right > 0.2
    assert upper_left == lower_left == lower_right == 0


def test_an_event_has_a_banner_and_its_answers(monkeypatch):
    line = timeline()
    plain = Overlay(line, 0.5).draw(grey(640, 480), 1.0)
    calm = Overlay(line, 0.5).draw(grey(640, 480), 0.5)
    assert plain[2, -1, 0] > plain[2, -1, 1] + 20  # the banner is red, up to the right edge
    assert np.ptp(calm[2, -1].astype(int)) == 0
    line.explain(EVENT, {"anomaly": "Yes.", "target": "a very long " * 20, "motion": "runs", "to": "[right]"})
    told = Overlay(line, 0.5).draw(grey(640, 480), 1.0)
    assert np.any(told[20:40] != plain[20:40])


class Noting:
    """An ImageDraw that notes where each text begins and ends."""

    def __init__(self, size):
        self.pen, self.texts = ImageDraw.Draw(Image.new("RGB", size)), []

    def rectangle(self, *_, **__):
        pass

    def textlength(self, line, font):
        return self.pen.textlength(line, font)

    def text(self, place, line, *, fill, font):
        self.texts.append((place[1], place[0], place[0] + self.pen.textlength(line, font)))


@pytest.mark.parametrize("who", ["A dog.", "The target is a person in a purple jacket and brown trousers."])
def test_answers_never_lie_over_each_other(who):
    line = timeline()
    does = "It is seen running injured along the footpath."
    line.explain(
        EVENT, {"anomaly": "Yes.", "target": who, "motion": does, "from": "From the left.", "to": "Away."}
    )
    pen = Noting((640, 360))
    Overlay(line, 0.5)._draw_banner(pen, Moment(1.0, heat_at(0, 3), 0.9, EVENT), 640, 1.0)
    assert len(pen.texts) == 5
    for (row, _, end), (next_row, start, _) in pairwise(pen.texts):
        assert next_row > row or start >= end


def test_record_writes_every_frame_with_its_stamp(clip, tmp_path):
    path = tmp_path / "new" / "seen.mp4"
    with source(clip) as frames:
        assert record(frames, Overlay(timeline(), 0.5), path) == 16
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == SIZE
        stamps = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
    assert stamps == pytest.approx([k / 8 for k in range(16)], abs=2e-3)
    assert [entry.name for entry in path.parent.iterdir()] == ["seen.mp4"]


def test_odd_sizes_are_cut_by_a_pixel(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(grey(161, 121)).save(folder / "1.png")
    with source(folder) as frames:
        assert record(frames, Overlay(timeline(), 0.5), tmp_path / "odd.mp4") == 1
    with av.open(str(tmp_path / "odd.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == SIZE


def test_what_is_half_written_does_not_stay(clip, tmp_path, monkeypatch):
    path = tmp_path / "seen.mp4"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Overlay, "draw", full)
    with source(clip) as frames, pytest.raises(DiskFullError, match=r"seen.mp4: the disk is full"):
        record(frames, Overlay(timeline(), 0.5), path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(clip, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with source(clip) as frames, pytest.raises(SourceError, match="cannot be written: "):
        record(frames, Overlay(timeline(), 0.5), tmp_path / "file" / "seen.mp4")


def test_the_contact_sheet_has_a_tile_for_each_moment(clip, tmp_path):
    with source(clip) as frames:
        contact_sheet(frames, Overlay(timeline(), 0.5), tmp_path / "new" / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    gap = 6
    assert sheet.shape == (2 * (SIZE[1] + gap) + gap, 2 * (SIZE[0] + gap) + gap, 3)
    tiles = [
        sheet[y : y + SIZE[1], x : x + SIZE[0]]
        for y in (gap, 2 * gap + SIZE[1])
        for x in (gap, 2 * gap + SIZE[0])
    ]
    colours_in = [len(np.unique(tile.reshape(-1, 3), axis=0)) for tile in tiles]
    assert min(colours_in[:3]) > 10
    assert colours_in[3] == 1  # three moments, so the fourth place is empty


def test_many_moments_are_thinned_out(clip, tmp_path):
    moments = [Moment(k / 8, heat_at(0, 0), 0.9, None) for k in range(16)]
    with source(clip) as frames:
        contact_sheet(frames, Overlay(timeline(*moments), 0.5), tmp_path / "sheet.png", tiles=5, columns=5)
    assert Image.open(tmp_path / "sheet.png").size == (5 * (SIZE[0] + 6) + 6, SIZE[1] + 12)


@pytest.mark.parametrize("place", ["sheet.xyz", "sheet", "file/sheet.png"])
def test_a_contact_sheet_that_cannot_be_written(clip, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with source(clip) as frames, pytest.raises(SourceError, match="cannot be written: "):
        contact_sheet(frames, Overlay(timeline(), 0.5), tmp_path / place)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_no_contact_sheet_of_nothing(clip, tmp_path):
    with source(clip) as frames, pytest.raises(SourceError, match="nothing was seen"):
        contact_sheet(frames, Overlay(Timeline("door"), 0.5), tmp_path / "sheet.png")


def test_the_extra_is_named(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_fonts", {})
    for name in ("PIL", "PIL.Image", "PIL.ImageDraw", "PIL.ImageFont"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"--record needs the extra 'record'"):
        Overlay(timeline(), 0.5).draw(grey(), 1.0)
    with source(clip) as frames, pytest.raises(MissingExtraError, match="record"):
        record(frames, Overlay(timeline(), 0.5), tmp_path / "seen.mp4")
