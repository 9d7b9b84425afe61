import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.runtime.detection.regions import find_regions, place


def heat(*rows):
    return np.array([[int(cell) / 10 for cell in row] for row in rows], np.float32)


def test_nothing_is_hot():
    assert find_regions(heat("000", "010"), 0.5) == []
    assert find_regions(np.full((3, 3), np.nan, np.float32), 0.5) == []


def test_box_score_and_name():
    (region,) = find_regions(heat("0000", "0790", "0060", "0000"), 0.5)
    assert region.box == (0.25, 0.25, 0.75, 0.75)
    assert region.score == pytest.approx(0.9)
    assert region.name == "center"


def test_the_threshold_itself_is_hot():
    assert len(find_regions(np.full((1, 1), 0.5, np.float32), 0.5)) == 1


def test_cells_that_touch_at_a_corner_are_one():
    assert len(find_regions(heat("900", "090", "009"), 0.5)) == 1


def test_a_ring_is_one_region_and_its_hole_is_not_another():
    (region,) = find_regions(heat("00000", "09990", "09090", "09990", "00000"), 0.5)
    assert region.box == pytest.approx((0.2, 0.2, 0.8, 0.8))


def test_the_hottest_first_and_no_more_than_asked():
    field = heat("6070809", "0000000", "9060708")
    regions = find_regions(field, 0.5)
    assert [round(region.score, 1) for region in regions] == [0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.6, 0.6]
    assert regions == find_regions(field.copy(), 0.5)
    assert find_regions(field, 0.5, most=3) == regions[:3]


def test_the_whole_frame():
    (region,) = find_regions(np.ones((10, 18), np.float32), 0.5)
    assert region.box == (0, 0, 1, 1)
    assert region.name == "center"


def test_names_of_the_nine_places():
    names = [place((x / 3, y / 3, (x + 1) / 3, (y + 1) / 3)) for y in range(3) for x in range(3)]
    assert names == [
        "upper left",
        "upper center",
        "upper right",
        "middle left",
        "center",
        "middle right",
        "lower left",
        "lower center",
        "lower right",
    ]
    assert place((1, 1, 1, 1)) == "lower right"


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1), st.floats(0.3, 0.9))
def test_agrees_with_flooding(rows, columns, seed, threshold):
    """Against a slow and plain labelling: each cell takes the smallest label around it until nothing changes."""
    field = np.random.default_rng(seed).random((rows, columns), np.float32)
    hot = field >= threshold
    labels = np.where(hot, np.arange(field.size).reshape(field.shape), field.size)
    while True:
        padded = np.pad(labels, 1, constant_values=field.size)
        around = [padded[dy : dy + rows, dx : dx + columns] for dy in range(3) for dx in range(3)]
        spread = np.where(hot, np.min(around, axis=0), field.size)
        if (spread == labels).all():
            break
        labels = spread
    expected = set()
    for label in set(labels[hot].tolist()):
        ys, xs = np.nonzero(labels == label)
        box = (xs.min() / columns, ys.min() / rows, (xs.max() + 1) / columns, (ys.max() + 1) / rows)
        expected.add((box, float(field[labels == label].max())))
    found = find_regions(field, threshold, most=field.size)
    assert {(region.box, region.score) for region in found} == expected
    assert len(found) == len(expected)
    assert all(0 <= edge <= 1 for region in found for edge in region.box)
