import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tvau_edge.runtime.cameras.polygons import Polygon, covered

LEFT = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]


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
