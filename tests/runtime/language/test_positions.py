from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from tvau_edge.runtime.language.positions import moments_differ, text_positions, video_positions
from tvau_edge.runtime.manifest import Geometry

BEFORE, AFTER = 11, 5
RATES = [0.5, 1, 2, 3, 4, 24 / 7, 12.5]


def of_huggingface(geometry, patches, tokens_per_second):
    """Positions [n, 3] by transformers: text, the video, text; the rule reads nothing of the model but its config."""
    rows, columns = geometry.merged_grid
    kinds = torch.tensor([[0] * BEFORE + [2] * (patches * rows * columns) + [0] * AFTER])
    vision = SimpleNamespace(spatial_merge_size=geometry.merge_size, tokens_per_second=tokens_per_second)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = MethodType(Qwen2_5_VLModel.get_vision_position_ids, model)
    positions, _ = Qwen2_5_VLModel.get_rope_index(
        model,
        torch.zeros_like(kinds),
        kinds,
        video_grid_thw=torch.tensor([[patches, *geometry.grid]]),
        second_per_grid_ts=torch.tensor([geometry.seconds_per_patch]),
        attention_mask=torch.ones_like(kinds),
    )
    return positions[:, 0].T.numpy()


@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("width", "height", "patches"), [(252, 140, 8), (56, 28, 3), (28, 112, 2), (448, 252, 5)]
)
def test_video_has_the_positions_of_transformers(width, height, patches, rate, tokens_per_second):
    geometry = Geometry(width=width, height=height, frames_per_second=rate, temporal_patches=patches)
    found = video_positions(BEFORE, patches, geometry, tokens_per_second)
    expected = of_huggingface(geometry, patches, tokens_per_second)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected[BEFORE:-AFTER])
    np.testing.assert_array_equal(text_positions(0, BEFORE), expected[:BEFORE])


def test_text_after_a_short_video_goes_on_as_in_transformers():
    # Where a video lasts longer than its grid is wide, transformers 5 goes on below its last temporal position; the
    # paper's base, and transformers 4, go on after the largest position, and so do we.
    geometry = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=8)
    start = int(video_positions(BEFORE, 8, geometry, 2).max()) + 1
    np.testing.assert_array_equal(text_positions(start, AFTER), of_huggingface(geometry, 8, 2)[-AFTER:])


@settings(max_examples=50, deadline=None)
@given(
    start=st.integers(0, 5000),
    patches=st.integers(1, 12),
    rows=st.integers(1, 9),
    columns=st.integers(1, 16),
    rate=st.sampled_from(RATES),
    tokens_per_second=st.sampled_from([1.0, 2.0, 25.0]),
)
def test_video_positions_are_a_grid(start, patches, rows, columns, rate, tokens_per_second):
    geometry = Geometry(width=28 * columns, height=28 * rows, frames_per_second=rate, temporal_patches=2)
    found = video_positions(start, patches, geometry, tokens_per_second).reshape(patches, rows, columns, 3)
    assert (found[0, 0, 0] == start).all()
    assert (found[..., 1] == start + np.arange(rows)[:, None]).all()
    assert (found[..., 2] == start + np.arange(columns)).all()
    moments = found[:, 0, 0, 0]
    assert (found[..., 0] == moments[:, None, None]).all()
    assert (np.diff(moments) >= 0).all()


def test_text_positions_are_the_same_on_every_axis():
    assert text_positions(7, 3).tolist() == [[7, 7, 7], [8, 8, 8], [9, 9, 9]]
    assert text_positions(7, 0).shape == (0, 3)


@pytest.mark.parametrize(
    ("rate", "tokens_per_second", "differ"), [(4, 2, True), (4.1, 2, False), (8, 2, False), (8, 4, True)]
)
def test_temporal_patches_that_share_a_position_are_noticed(rate, tokens_per_second, differ):
    geometry = Geometry(width=56, height=28, frames_per_second=rate, temporal_patches=8)
    assert moments_differ(geometry, tokens_per_second) == differ
