import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.runtime.detection.heatmap import heatmap, over_frame, patch_score


def test_is_the_abnormal_channel_of_the_softmax():
    h_c = np.random.default_rng(0).normal(0, 4, (3, 2, 5, 7)).astype(np.float32)
    powers = np.exp(h_c.astype(np.float64))
    heat = heatmap(h_c)
    assert heat.shape == (3, 5, 7)
    assert heat.dtype == np.float32
    assert heat == pytest.approx((powers / powers.sum(axis=1, keepdims=True))[:, 1], abs=1e-6)
    assert heatmap(h_c[1]) == pytest.approx(heat[1])


def test_values_beyond_all_measure_stay_in_bounds():
    h_c = np.array([[[1e30, -1e30]], [[-1e30, 1e30]]], np.float32)
    with np.errstate(all="raise"):
        assert heatmap(h_c) == pytest.approx(np.array([[0, 1]]))


def test_score_is_the_mean_of_the_hottest_cells():
    heat = np.zeros((10, 18), np.float32)  # 180 cells, of which 3 count
    heat[0, 0], heat[9, 17], heat[5, 5] = 1, 0.8, 0.6
    assert patch_score(heat) == pytest.approx(0.8)
    assert patch_score(heat, share=1) == pytest.approx(2.4 / 180)
    assert patch_score(heat, share=0) == 1


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 2))
def test_score_lies_between_mean_and_maximum(rows, columns, share):
    heat = np.random.default_rng(rows * columns).random((rows, columns), np.float32)
    assert heat.mean() - 1e-5 <= patch_score(heat, share) <= heat.max() + 1e-6


@pytest.mark.parametrize("size", [(180, 100), (768, 432), (181, 97)])
def test_a_hot_cell_lands_on_its_pixels(size):
    width, height = size
    for row, column in ((0, 0), (3, 7), (9, 17), (9, 0)):
        heat = np.zeros((10, 18), np.float32)
        heat[row, column] = 1
        full = over_frame(heat, width, height)
        assert full.shape == (height, width)
        assert full.dtype == np.float32
        y, x = np.unravel_index(full.argmax(), full.shape)
        assert (int(y * 10 / height), int(x * 18 / width)) == (row, column)
        middle = full[int((row + 0.5) * height / 10), int((column + 0.5) * width / 18)]
        assert middle > 0.9
        ys, xs = np.mgrid[:height, :width]
        far = (abs((ys + 0.5) * 10 / height - row - 0.5) > 1) | (
            abs((xs + 0.5) * 18 / width - column - 0.5) > 1
        )
        assert full[far].max() == pytest.approx(0, abs=1e-6)


def test_the_middle_of_heat_is_not_moved():
    heat = np.zeros((10, 18), np.float32)
    heat[4, 6] = 1
    full = over_frame(heat, 180, 100)
    ys, xs = np.mgrid[:100, :180] + 0.5
    assert (full * ys).sum() / full.sum() == pytest.approx(45)
    assert (full * xs).sum() / full.sum() == pytest.approx(65)


def test_a_ramp_stays_a_ramp_and_the_border_is_held():
    heat = np.tile(np.arange(4, dtype=np.float32), (3, 1))
    row = over_frame(heat, 40, 30)[15]
    assert row[:5] == pytest.approx(0)
    assert row[-5:] == pytest.approx(3)
    assert np.diff(row[5:35]) == pytest.approx(0.1, abs=1e-5)


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1, width=32)
)
def test_even_heat_stays_even(rows, columns, width, height, value):
    assert over_frame(np.full((rows, columns), value, np.float32), width, height) == pytest.approx(
        value, abs=1e-5
    )
