import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from tvau_edge.quantize.fallback import products_of
from tvau_edge.quantize.prepared import agreement, run_graph
from tvau_edge.quantize.tensorrt_check import check
from tvau_edge.quantize.tensorrt_graph import LARGEST, peaks_of, rounded_up, run_typed, write_typed

OUTPUTS = ("h_c", "p_v")


@pytest.fixture(scope="module")
def loud(outlying, tmp_path_factory):
    """The outlying tower with its outliers so large that SwiGLU's product leaves fp16's range; feeds; expected."""
    path, feeds = outlying
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in (f"vision.blocks.2.mlp.{part}_proj.weight" for part in ("gate", "up")):
            value = numpy_helper.to_array(tensor).copy()
            value[:, 7] *= 40
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    loud = tmp_path_factory.mktemp("loud") / "vision.onnx"
    onnx.save(model, loud)
    return loud, feeds, run_graph(loud, feeds[8:], OUTPUTS)


@pytest.fixture(scope="module")
def peaks(loud):
    path, feeds, _ = loud
    return peaks_of(path, feeds[:8])


def kinds(path):
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    found = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    return model.graph, found


def test_plain_fp16_breaks_on_outliers_and_the_typed_graph_does_not(loud, peaks, tmp_path):
    path, feeds, expected = loud
    assert max(peaks[name] for name in peaks if name.startswith("mul")) > LARGEST
    # As a converter does it that knows nothing of ranges: every peak taken for small.
    write_typed(path, tmp_path / "plain.onnx", dict.fromkeys(peaks, 0.0), {}, ())
    assert agreement(expected, run_typed(tmp_path / "plain.onnx", feeds[8:], OUTPUTS)) < 0.5
    record = write_typed(path, tmp_path / "typed.onnx", peaks, {}, ())
    value = agreement(expected, run_typed(tmp_path / "typed.onnx", feeds[8:], OUTPUTS))
    print(f"cosine {value:.6f}", record)
    assert value >= 0.999
    assert record["products"]["half"] >= 18
    assert 1 <= record["products"]["float"] <= 3
    assert record["beyond_fp16"]
    assert check(tmp_path / "typed.onnx")[0].severity == "note"


def test_norms_and_the_residual_stream_are_fp32_by_the_graphs_own_types(loud, peaks, tmp_path):
    path, _, _ = loud
    write_typed(path, tmp_path / "typed.onnx", peaks, {}, ())
    graph, types = kinds(tmp_path / "typed.onnx")
    for node in graph.node:
        if node.op_type in ("Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal"):
            assert types.get(node.output[0], TensorProto.FLOAT) == TensorProto.FLOAT, node.name
    assert {o.type.tensor_type.elem_type for o in graph.output} == {TensorProto.FLOAT}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert softmaxes
    assert all(types[node.output[0]] == TensorProto.FLOAT16 for node in softmaxes)


def test_int8_has_tensorrts_form_and_agrees(outlying, prepared, tmp_path):
    _, feeds = outlying
    kept = {
        "vision.blocks.2.mlp.down_proj.weight",
        "vision.blocks.2.mlp.gate_proj.weight",
        "ahd.mlps.1.0.weight",
    }
    kept |= {"vision.blocks.2.mlp.up_proj.weight", "ahd.mlps.1.2.weight"}
    nodes = [node.name for node in products_of(onnx.load(prepared.path)) if node.input[1] not in kept]
    path = tmp_path / "int8.onnx"
    record = write_typed(prepared.path, path, peaks_of(prepared.path, feeds[:8]), prepared.ranges, nodes)
    assert record["products"]["int8"] == len(nodes) == 16
    assert [finding.severity for finding in check(path)] == ["note"]
    value = agreement(prepared.expected, run_typed(path, prepared.checked, OUTPUTS))
    print(f"cosine {value:.6f}")
    assert value >= 0.98
    graph = onnx.load(path).graph
    zeros = [numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("/zero")]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    # A weight's scales are per output channel: as many as its columns, on axis 1.
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(weights) == 16
    for node in weights:
        assert constants[node.input[1]].dims[0] == constants[node.input[0]].dims[1]
        assert next(a.i for a in node.attribute if a.name == "axis") == 1


@given(arrays(np.float32, 5, elements=st.floats(2**-20, 2**15, width=32)))
def test_scales_are_the_same_in_both_types_and_never_smaller(scales):
    rounded = rounded_up(scales)
    assert (rounded >= scales).all()
    np.testing.assert_array_equal(rounded.astype(np.float16).astype(np.float32), rounded)
    assert (rounded <= scales * (1 + 2**-10) + 6e-8).all()


def test_a_scale_beyond_fp16_stays():
    assert rounded_up(np.float32(1e6)) == np.float32(1e6)


def test_products_add_up_in_fp32_and_overflow_as_fp16_does(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "m")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 2])],
        [numpy_helper.from_array(np.stack([np.ones(4096), np.full(4096, 100)], 1).astype(np.float16), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    (found,) = run_typed(tmp_path / "m.onnx", [{"x": np.ones((1, 4096), np.float16)}], ["y"])
    # Added up in fp16, 4096 ones would stop at 2048.
    assert found["y"].tolist() == [[4096.0, np.inf]]
