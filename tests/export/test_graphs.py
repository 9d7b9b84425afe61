import json
import subprocess
import sys

import numpy as np
import onnx
import openvino
import pytest
import torch
from torch import nn

from tvau_edge.export import graphs
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.graphs import OPSET, convert_to_openvino, export_rae, export_vision, turn_products
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.vision import MLP, VisionConfig
from tvau_edge.export.verify import relative_error
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.openvino import OpenVinoGraph

# (height, width): whole windows; merged grids 5x9, 3x1 and 9x16, which no window of 4 divides.
SIZES = [(112, 224), (140, 252), (84, 28), (252, 448)]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return Checkpoint.open(tiny_checkpoint)


@pytest.fixture(scope="module")
def features(checkpoint):
    return checkpoint.class_features().numpy()


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: "x".join(map(str, size)))
def exported(request, checkpoint, tmp_path_factory):
    """One size: its folder, with vision.onnx and vision.xml, and what torch computes for three patches."""
    height, width = request.param
    folder = tmp_path_factory.mktemp("graphs")
    frames = np.random.default_rng(5).integers(0, 256, (3, 2, height, width, 3), dtype=np.uint8)
    module = checkpoint.vision_module(width, height)
    with torch.no_grad():
        expected = [part.numpy() for part in module(torch.from_numpy(frames), checkpoint.class_features())]
    export_vision(module, folder / "vision.onnx")
    convert_to_openvino(folder / "vision.onnx", folder / "vision.xml")
    return folder, frames, expected


@pytest.mark.parametrize(("load", "name"), [(OnnxGraph, "vision.onnx"), (OpenVinoGraph, "vision.xml")])
def test_graphs_compute_what_torch_does_whatever_the_batch(exported, features, load, name):
    folder, frames, expected = exported
    graph = load(str(folder / name), 1)
    for rows in (slice(0, 3), slice(1, 2), slice(0, 2)):
        found = graph.run({"frames": frames[rows], "class_features": features}, ("h_c", "p_v"))
        for output, mine, theirs in zip(("h_c", "p_v"), found, expected, strict=True):
            assert mine.shape == theirs[rows].shape
            error = relative_error(mine, theirs[rows])
            print(f"{name} {frames.shape[2:4]} {output}: relative error {error:.2g}")
            assert error < 1e-5
    graph.close()


def test_the_vision_graph_is_described(exported, checkpoint):
    folder, frames, _ = exported
    model = onnx.load(folder / "vision.onnx")
    _, _, height, width, _ = frames.shape
    rows, columns, merged = height // 14, width // 14, height // 28 * (width // 28)
    size = checkpoint.text.hidden_size
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "frames": ["batch", 2, height, width, 3],
        "class_features": [2, size],
        "h_c": ["batch", 2, rows, columns],
        "p_v": ["batch", merged, size],
    }
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    assert model.graph.name == "vision"


def test_the_vision_graph_is_clean(exported):
    folder, _, _ = exported
    model = onnx.load(folder / "vision.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Identity", "Shape", "If", "Loop"}
    assert not any(node.metadata_props for node in model.graph.node)
    assert b"File " not in (folder / "vision.onnx").read_bytes()  # of a stack trace
    # Each weight of a product stands once, as the product reads it.
    constants = {tensor.name for tensor in model.graph.initializer}
    turned = [
        n
        for n in model.graph.node
        if n.op_type == "Transpose" and n.input[0] in constants and "patch_embed" not in n.input[0]
    ]
    assert not turned


def test_openvino_keeps_its_weights_in_fp32(exported):
    folder, _, _ = exported
    model = openvino.Core().read_model(folder / "vision.xml")
    kinds = {
        node.get_element_type().to_string() for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    assert "f16" not in kinds
    assert "f32" in kinds


@pytest.mark.parametrize(("height", "width"), [(140, 252), (112, 196), (28, 28), (56, 420)])
def test_rae_of_any_grid(checkpoint, tmp_path, height, width):
    """3 divides neither 10 x 18 nor 8 x 14; 2 x 2 is smaller than the pooling itself."""
    module = checkpoint.rae_module(width, height)
    h_c = torch.randn(5, 2, height // 14, width // 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(h_c).numpy()
    export_rae(module, 5, tmp_path / "rae.onnx")
    convert_to_openvino(tmp_path / "rae.onnx", tmp_path / "rae.xml")
    for load, name in ((OnnxGraph, "rae.onnx"), (OpenVinoGraph, "rae.xml")):
        graph = load(str(tmp_path / name), 1)
        (p_an,) = graph.run({"h_c": h_c.numpy()}, ("p_an",))
        assert p_an.shape == expected.shape
        assert relative_error(p_an, expected) < 1e-5
        graph.close()


def test_large_weights_lie_beside_the_graph(tmp_path, monkeypatch):
    module = small_module()
    frames = torch.randint(0, 256, (2, 2, 56, 84, 3), dtype=torch.uint8)
    features = torch.randn(2, 128)
    with torch.no_grad():
        expected = module(frames, features)
    monkeypatch.setattr(graphs, "_LARGEST", 1024)
    export_vision(module, tmp_path / "vision.onnx")
    convert_to_openvino(tmp_path / "vision.onnx", tmp_path / "vision.xml")
    beside = {"vision.onnx", "vision.onnx.data", "vision.xml", "vision.bin"}
    assert {file.name for file in tmp_path.iterdir()} == beside
    assert (tmp_path / "vision.onnx").stat().st_size < (tmp_path / "vision.onnx.data").stat().st_size
    for load, name in ((OnnxGraph, "vision.onnx"), (OpenVinoGraph, "vision.xml")):
        graph = load(str(tmp_path / name), 1)
        found = graph.run({"frames": frames.numpy(), "class_features": features.numpy()}, ("h_c", "p_v"))
        for mine, theirs in zip(found, expected, strict=True):
            assert relative_error(mine, theirs.numpy()) < 1e-5
        graph.close()


def small_module():
    torch.manual_seed(0)
    config = VisionConfig(2, 64, 4, 96, 128, (1,))
    return AnomalyVision(config, AHDConfig(2, 64, 48, 128), 56, 84, (1, 2)).eval()


def test_products_compute_what_linear_layers_do():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.Sequential(nn.GELU(), nn.Linear(7, 3, bias=False)))
    x = torch.randn(4, 2, 5)
    with torch.no_grad():
        expected = module(x)
        turn_products(module)
        torch.testing.assert_close(module(x), expected)
    assert not [child for child in module.modules() if isinstance(child, nn.Linear)]
    assert module[0].weight.is_contiguous()


@pytest.mark.parametrize(("inner", "filled"), [(3420, 3456), (3456, 3456), (100, 100), (1300, 1300)])
def test_an_inner_width_is_filled_up_to_whole_tiles_where_that_is_little(inner, filled):
    torch.manual_seed(0)
    block = nn.Sequential(MLP(VisionConfig(hidden_size=32, num_heads=2, intermediate_size=inner)))
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        expected = block(x)
        turn_products(block)
        torch.testing.assert_close(block(x), expected)
    (mlp,) = block
    assert mlp.gate_proj.weight.shape == mlp.up_proj.weight.shape == (32, filled)
    assert mlp.gate_proj.bias.shape == mlp.up_proj.bias.shape == (filled,)
    assert mlp.down_proj.weight.shape == (filled, 32)


def test_openvino_rotates_in_one_step(exported):
    """Its pattern of rotary embedding is met: each is one operation, not eight."""
    folder, _, _ = exported
    request = openvino.Core().compile_model(folder / "vision.xml", "CPU")
    kinds = [op.get_rt_info()["layerType"] for op in request.get_runtime_model().get_ops()]
    blocks = sum("qkv.weight" in t.name for t in onnx.load(folder / "vision.onnx").graph.initializer)
    assert kinds.count("RoPE") == 2 * blocks


PEAK = """
import gc, json, resource, sys, weakref
from pathlib import Path
import torch
from tvau_edge.export.bundle import _return_freed_memory
from tvau_edge.export.graphs import export_vision
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.vision import VisionConfig

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

_return_freed_memory()
torch.set_num_threads(1)
def make(depth, width):
    config = VisionConfig(depth, width, 16, int(width * 2.67), 2 * width, (depth - 1,))
    return AnomalyVision(config, AHDConfig(1, width, 2 * width, 2 * width), 56, 84, (depth,)).eval()
# A small one first: what libraries need by themselves is not counted.
export_vision(make(4, 64), Path(sys.argv[1]) / "small.onnx")
before = peak()
with torch.no_grad():
    module = make(4, 1280)
size = sum(p.numel() * 4 for p in module.parameters())
export_vision(module, Path(sys.argv[1]) / "vision.onnx")
grown = peak() - before
weights = [weakref.ref(parameter) for parameter in module.parameters()]
del module
gc.collect()
held = [weight() for weight in weights if weight() is not None]
print(json.dumps([size, grown, sum(weight.numel() * 4 for weight in held)]))
"""


def test_the_export_needs_little_more_than_one_copy_of_the_weights(tmp_path):
    """In a process of its own: the peak is the process's, and pytest's capture of logs would hold weights."""
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    size, grown, held = json.loads(found.stdout.splitlines()[-1])
    print(f"{size / 1e6:.0f} MB of weights, {grown / 1e6:.0f} MB more at the peak: {grown / size:.2f}")
    assert size > 300e6
    assert grown < 1.5 * size
    assert held < size / 50  # the exporter keeps a tensor or two
