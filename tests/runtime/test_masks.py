import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.masks import PrivacyMask
from tvau_edge.runtime.polygons import Polygon, covered
from tvau_edge.runtime.source import Source
from tvau_edge.runtime.vision import Evidence
from tvau_edge.runtime.zones import Zones

LEFT = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]
FORMATS = [
    "yuv420p",
    "yuvj420p",
    "yuv422p",
    "yuv444p",
    "nv12",
    "gray",
    "rgb24",
    "bgr24",
    "yuv420p10le",
    "yuyv422",
]


def picture(form="yuv420p", width=84, height=56, level=200):
    image = np.full((height, width, 3), level, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return frame if form == "rgb24" else frame.reformat(format=form)


def rgb(frame):
    return frame.to_ndarray(format="rgb24").astype(int)


# ---------------------------------------------------------------- polygons


def test_a_rectangle_covers_its_pixels():
    found = covered([[(0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (0.25, 1.0)]], 8, 4)
    expected = np.zeros((4, 8), bool)
    expected[2:, 2:6] = True
    np.testing.assert_array_equal(found, expected)


def test_a_triangle_and_an_l_shape():
    triangle = covered([[(0, 0), (1, 0), (0, 1)]], 100, 100)
    assert triangle.mean() == pytest.approx(0.5, abs=0.01)
    assert triangle[10, 10]
    assert not triangle[90, 90]
    corner = covered([[(0, 0), (1, 0), (1, 0.5), (0.5, 0.5), (0.5, 1), (0, 1)]], 100, 100)
    assert corner.mean() == pytest.approx(0.75)
    assert not corner[75, 75]


def test_several_polygons_add_up():
    assert covered([LEFT, LEFT], 10, 10).mean() == 0.5
    assert covered([LEFT, [(0.5, 0), (1, 0), (1, 1), (0.5, 1)]], 10, 10).all()
    assert not covered([], 10, 10).any()


corner = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.lists(corner, min_size=3, max_size=8), st.integers(1, 40), st.integers(1, 40))
def test_any_polygon_stays_within_its_bounds(points, width, height):
    found = covered([points], width, height)
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    xs, ys = zip(*points, strict=True)
    outside = (x < min(xs)) | (x > max(xs)) | (y < min(ys)) | (y > max(ys))
    assert not found[outside].any()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 0), (1, 1)], "at least 3"),
        ([(0, 0), (0.5, 0.5), (1, 1)], "no area"),
        ([(0, 0), (1, 1), (1, 0), (0, 1)], "cross each other"),
        ([(0, 0), (1.5, 0), (1, 1)], "less than or equal to 1"),
        ([(0, 0), (float("nan"), 0), (1, 1)], "greater than or equal to 0|less than or equal to 1|finite"),
        ([(0, 0, 0), (1, 0), (1, 1)], "at most 2"),
    ],
)
def test_what_is_no_polygon(points, expected):
    with pytest.raises(ValidationError, match=expected):
        TypeAdapter(Polygon).validate_python(points)


# ---------------------------------------------------------------- privacy masks


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [(84, 56), (85, 57)])
def test_what_is_masked_is_black_and_the_rest_stays(form, size):
    if form == "yuyv422" and size[0] % 2:
        pytest.skip("packed 4:2:2 has no odd widths")
    before = picture(form, *size)
    expected = rgb(before).copy()
    after = rgb(PrivacyMask([LEFT]).hide(before, "door"))
    half = size[0] // 2
    assert after[:, : half + 1].max() <= 8
    np.testing.assert_allclose(after[:, half + 4 :], expected[:, half + 4 :], atol=3)


def test_no_colour_is_left_under_a_mask():
    image = np.zeros((56, 84, 3), np.uint8)
    image[:] = (230, 20, 20)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    after = rgb(PrivacyMask([LEFT]).hide(frame, "door"))[:, :42]
    assert after.max() <= 8


def test_another_size_or_format_fits_as_well():
    mask = PrivacyMask([LEFT])
    for form, size in [
        ("yuv420p", (84, 56)),
        ("yuv420p", (168, 112)),
        ("nv12", (168, 112)),
        ("yuv420p", (84, 56)),
    ]:
        after = rgb(mask.hide(picture(form, *size), "door"))
        assert after[:, : size[0] // 2].max() <= 8
        assert after[:, -1].min() > 150


def test_a_mask_of_everything():
    whole = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    assert rgb(PrivacyMask([whole]).hide(picture(), "door")).max() <= 8


def test_the_decoder_goes_on_as_before(tmp_path, draw_clip):
    """Pictures that refer to earlier ones are not spoilt by the mask in those."""
    clip = str(draw_clip(tmp_path / "clip.mp4", 4, (1, 2), rate=8, corner=(56, 28), size=(168, 112)))
    with Source(clip, "door") as plain, Source(clip, "door", mask=PrivacyMask([LEFT])) as masked:
        pairs = [(a.image.astype(int), b.image.astype(int)) for a, b in zip(plain, masked, strict=True)]
    assert len(pairs) == 32
    for original, hidden in pairs:
        assert hidden[:, :85].max() <= 8
        np.testing.assert_array_equal(hidden[:, 88:], original[:, 88:])


def test_everything_a_frame_gives_is_masked(tmp_path, draw_clip):
    clip = str(draw_clip(tmp_path / "clip.mp4", 1, size=(168, 112)))
    with Source(clip, "door", mask=PrivacyMask([LEFT])) as source:
        for frame in source:
            assert frame.image[:, :84].max() <= 8
            assert frame.scaled(84, 56)[:, :41].max() <= 8
            assert rgb(frame.picture)[:, :84].max() <= 8


def test_masks_lie_on_the_upright_picture(monkeypatch):
    frame = picture(width=84, height=56)
    monkeypatch.setattr("tvau_edge.runtime.frame.Frame.turns", property(lambda self: 1))
    hidden = rgb(PrivacyMask([LEFT]).hide(frame, "door"))
    upright = np.rot90(hidden, 1)  # [84, 56, 3]
    assert upright[:, :28].max() <= 8
    assert upright[:, 32:].min() > 150


# ---------------------------------------------------------------- zones


def evidence(heat):
    heat = np.asarray(heat, np.float32)
    return Evidence(
        "door", 0, 0.0, 0.0, np.zeros((2, *heat.shape)), heat, float(heat.max()), np.zeros((1, 1))
    )


def test_only_what_is_included_counts():
    heat = np.full((4, 4), 0.1)
    heat[0, 3] = 0.9
    seen = Zones([LEFT], [], (4, 4), "door").apply(evidence(heat))
    assert seen.score == pytest.approx(0.1)
    np.testing.assert_array_equal(seen.heatmap[:, 2:], 0)
    np.testing.assert_allclose(seen.heatmap[:, :2], 0.1)


def test_what_is_excluded_does_not_count():
    heat = np.full((4, 4), 0.1)
    heat[0, 0] = 0.9
    assert Zones([], [LEFT], (4, 4), "door").apply(evidence(heat)).score == pytest.approx(0.1)
    upper = [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]
    both = Zones([LEFT], [upper], (4, 4), "door")
    np.testing.assert_array_equal(both.counts, [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])


def test_a_cell_counts_when_half_of_it_does():
    half = [(0.0, 0.0), (0.13, 0.0), (0.13, 1.0), (0.0, 1.0)]  # a bit more than half a cell of four
    less = [(0.0, 0.0), (0.1, 0.0), (0.1, 1.0), (0.0, 1.0)]
    assert Zones([half], [], (4, 4), "door").counts.sum() == 4
    with pytest.raises(ConfigError, match="camera door: its zones leave no cell of the 4x4 heatmap"):
        Zones([less], [], (4, 4), "door")


def test_no_zones_change_nothing():
    seen = evidence(np.full((4, 4), 0.3))
    assert Zones([], [], (4, 4), "door").apply(seen) is seen


def test_few_cells_are_judged_like_many():
    """The score is the mean of as many cells as in the whole map, where the zone has so many."""
    heat = np.zeros((18, 32))
    heat[:4, :4] = 0.8
    whole = Zones([], [], (18, 32), "door").apply(evidence(heat))
    small = [(0.0, 0.0), (0.125, 0.0), (0.125, 0.2222), (0.0, 0.2222)]
    zone = Zones([small], [], (18, 32), "door").apply(evidence(heat))
    assert zone.score == pytest.approx(0.8)
    assert whole.score == pytest.approx(0.8)
