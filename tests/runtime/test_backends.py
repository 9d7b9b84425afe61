import subprocess
import sys

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvau_edge.runtime.backends.graphs import BACKENDS
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.openvino import OpenVinoGraph
from tvau_edge.runtime.errors import BackendError, MissingExtraError

CPU = [name for name in BACKENDS if name != "tensorrt"]  # which has its own tests
WEIGHT = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)
X = np.array([[1, 0, 0], [0, 1, 1]], dtype=np.float32)


def model(operator="MatMul"):
    """A graph x [batch, 3] -> y = x WEIGHT [batch, 2] and z = -y."""
    weight = onnx.numpy_helper.from_array(WEIGHT, "w")
    nodes = [helper.make_node(operator, ["x", "w"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "yz"]
    graph = helper.make_graph(nodes, "g", [x], outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The graph in the form of each back end, by its name."""
    folder = tmp_path_factory.mktemp("graphs")
    onnx.save(model(), folder / "graph.onnx")
    openvino.save_model(
        openvino.convert_model(folder / "graph.onnx"), folder / "graph.xml", compress_to_fp16=False
    )
    return {"onnxruntime": folder / "graph.onnx", "openvino": folder / "graph.xml"}


@pytest.fixture(params=CPU)
def opened(request, files):
    load, _ = BACKENDS[request.param]
    graph = load(str(files[request.param]), 1)
    yield graph
    graph.close()


def test_it_runs_batches_of_any_size(opened):
    for batch in (2, 1, 5, 2):
        x = np.tile(X, (3, 1))[:batch]
        (y,) = opened.run({"x": x}, ("y",))
        np.testing.assert_array_equal(y, x @ WEIGHT)
        assert y.dtype == np.float32


def test_outputs_come_in_the_order_that_was_asked_for(opened):
    z, y = opened.run({"x": X}, ("z", "y"))
    np.testing.assert_array_equal(y, X @ WEIGHT)
    np.testing.assert_array_equal(z, -y)


def test_an_output_is_not_overwritten_by_the_next_run(opened):
    (first,) = opened.run({"x": X}, ("y",))
    kept = first.copy()
    opened.run({"x": X * 100}, ("y",))
    np.testing.assert_array_equal(first, kept)


def test_it_knows_its_name(opened):
    assert BACKENDS[opened.backend][0] is type(opened)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, r"x \[2, 4\] float32"),
        ({"x": np.zeros((2, 3, 1), np.float32)}, r"x \[2, 3, 1\] float32"),
        ({"x": np.zeros((2, 3))}, r"x \[2, 3\] float64"),
        ({"other": X}, r"other \[2, 3\] float32"),
    ],
)
def test_what_a_graph_refuses(opened, inputs, said):
    with pytest.raises(BackendError, match=rf"cannot run .*graph\.\w+ on {said}: "):
        opened.run(inputs, ("y",))


def test_an_output_that_is_not_there(opened):
    with pytest.raises(BackendError, match="cannot run"):
        opened.run({"x": X}, ("heatmap",))


@pytest.mark.parametrize("name", CPU)
@pytest.mark.parametrize("content", [None, b"", b"\x00\x01 not a graph", "half"])
def test_a_damaged_graph(files, tmp_path, name, content):
    good = files[name].read_bytes()
    path = tmp_path / files[name].name
    if content is not None:
        path.write_bytes(good[: len(good) // 2] if content == "half" else content)
    load, _ = BACKENDS[name]
    with pytest.raises(BackendError, match=r"cannot load .*graph\.\w+: \S") as caught:
        load(str(path), None)
    assert "\n" not in str(caught.value).strip()


def test_an_ir_without_its_weights(files, tmp_path):
    path = tmp_path / "graph.xml"
    path.write_bytes(files["openvino"].read_bytes())
    with pytest.raises(BackendError, match=r"cannot load .*graph\.xml"):
        OpenVinoGraph(str(path))
    path.with_suffix(".bin").write_bytes(files["openvino"].with_suffix(".bin").read_bytes()[:5])
    with pytest.raises(BackendError, match=r"cannot load .*graph\.xml"):
        OpenVinoGraph(str(path))


def test_an_operator_that_onnx_runtime_does_not_know(tmp_path):
    onnx.save(model("Divine"), tmp_path / "graph.onnx")
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot load.*Divine"):
        OnnxGraph(str(tmp_path / "graph.onnx"))


def test_openvino_reads_onnx_as_well(files):
    (y,) = OpenVinoGraph(str(files["onnxruntime"])).run({"x": X}, ("y",))
    np.testing.assert_array_equal(y, X @ WEIGHT)


def test_openvino_that_is_not_installed(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"back end openvino needs the extra 'openvino'.*pip install"):
        OpenVinoGraph(str(files["openvino"]))


def test_importing_the_runtime_loads_no_back_end():
    code = (
        "import sys, tvau_edge.runtime.service.watching\n"
        "print({'onnxruntime', 'openvino', 'tensorrt', 'llama_cpp', 'torch', 'onnx'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


SIGNALLED = """
import gc, os, signal, sys
from tvau_edge.runtime.backends.openvino import OpenVinoGraph

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
first = OpenVinoGraph(sys.argv[1])
second = OpenVinoGraph(sys.argv[1])
first.close()
second.close()
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
assert told == [1]
"""


def test_a_signal_reaches_us_after_graphs_of_openvino_have_gone(tmp_path):
    """On CPUs with AMX OpenVINO brings a stack for signals, and may leave one behind that is no longer there."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 64])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    assert subprocess.run([sys.executable, "-c", SIGNALLED, str(path)], check=False).returncode == 0
