import numpy as np
import openvino
import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.graphs import convert_to_openvino, export_rae
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.openvino import OpenVinoGraph
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.errors import BackendError


@pytest.fixture(scope="module")
def checkpoint(tiny_language):
    return Checkpoint.open(tiny_language)


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rae")
    export_rae(checkpoint.rae_module(), checkpoint.config.clip.temporal_patches, folder / "rae.onnx")
    convert_to_openvino(folder / "rae.onnx", folder / "rae.xml")
    return folder


@pytest.fixture(params=["rae.onnx", "rae.xml"])
def rae(files, request):
    load = OnnxGraph if request.param.endswith("onnx") else OpenVinoGraph
    opened = Rae(load(str(files / request.param), 1))
    yield opened
    opened.close()


@pytest.fixture
def window(checkpoint):
    clip = checkpoint.config.clip
    shape = (clip.temporal_patches, 2, *clip.grid)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_it_computes_what_torch_does_with_one_row_per_token(rae, checkpoint, window):
    with torch.no_grad():
        expected = checkpoint.rae_module()(torch.from_numpy(window)).numpy()
    found = rae.run(window)
    steps, tokens = len(window) - 1, checkpoint.config.base_tokens + 10
    assert expected.shape == (steps, tokens, checkpoint.text.hidden_size)
    np.testing.assert_allclose(found, expected.reshape(steps * tokens, -1), atol=1e-5)
    # Oldest step first, and in each the learnt tokens first.
    base = dict(checkpoint.rae_tensors())["base"].float().numpy()
    for step in range(steps):
        np.testing.assert_allclose(found[step * tokens :][: len(base)], base, atol=1e-6)


def test_it_takes_windows_however_they_lie_in_memory(rae, window):
    expected = rae.run(window)
    np.testing.assert_array_equal(rae.run(window.astype(np.float64)), expected)
    np.testing.assert_array_equal(rae.run(np.asfortranarray(window)), expected)


def test_stillness_gives_the_same_at_every_step(rae, window):
    still = np.repeat(window[:1], len(window), axis=0)
    found = rae.run(still).reshape(len(window) - 1, -1)
    np.testing.assert_allclose(found, np.repeat(found[:1], len(found), axis=0), atol=1e-6)


@pytest.mark.parametrize("patches", range(2, 9))
def test_a_stretch_of_any_length_is_what_torch_makes_of_it_at_once(rae, checkpoint, window, patches):
    shape = (patches, *window.shape[1:])
    stretch = np.random.default_rng(patches).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = checkpoint.rae_module()(torch.from_numpy(stretch)).numpy()
    found = rae.run_longer(stretch, len(window))
    np.testing.assert_allclose(found, expected.reshape(-1, expected.shape[-1]), atol=1e-5)


def test_a_window_of_another_length(rae, window):
    with pytest.raises(BackendError, match=r"h_c \[2, 2, 4, 6\] float32"):
        rae.run(window[:2])


def test_the_graphs_size_is_fixed(files, checkpoint):
    clip = checkpoint.config.clip
    (port,) = openvino.Core().read_model(files / "rae.xml").inputs
    assert port.partial_shape.to_shape() == [clip.temporal_patches, 2, *clip.grid]
