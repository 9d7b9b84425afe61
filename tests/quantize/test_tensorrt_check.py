import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from tvau_edge.quantize.errors import QuantizeError
from tvau_edge.quantize.tensorrt_check import check
from tvau_edge.runtime.cli import build_app


def write(
    path, nodes, constants, *, inputs=(("x", TensorProto.FLOAT, [2, 4]),), opset=20, output=TensorProto.FLOAT
):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info("y", output, ["rows", "columns"])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


def product(
    *,
    weight=np.int8,
    zero=0,
    activation=np.int8,
    axis=1,
    scales=3,
    scale=0.1,
    quantize_x=True,
    quantize_w=True,
    bias=None,
    extra=(),
):
    """Nodes and constants of x [2, 4] @ w [4, 3], quantized as TensorRT wants it unless told otherwise."""
    nodes, constants = [], {"w": np.ones((4, 3), np.float32)}
    x, w = "x", "w"
    if quantize_x:
        constants |= {"sx": np.float32(scale), "zx": activation(zero)}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"], "Q"),
            helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"], "DQ"),
        ]
        x = "xd"
    if quantize_w:
        constants |= {
            "w": np.ones((4, 3), weight),
            "sw": np.full(scales, 0.1, np.float32),
            "zw": np.zeros(scales, weight),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], "WDQ", axis=axis))
        w = "wd"
    nodes.append(helper.make_node("MatMul", [x, w], ["p"], "product"))
    if bias is not None:
        constants |= {"b": np.ones(3, bias), "sb": np.float32(0.01), "zb": bias(0)}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["bd"], "BDQ"))
        nodes.append(helper.make_node("Add", ["p", "bd"], ["y"], "bias"))
    elif extra:
        nodes += extra
    else:
        nodes.append(helper.make_node("Identity", ["p"], ["y"], "out"))
    return nodes, constants


def found(path):
    return {(finding.severity, finding.node) for finding in check(path)}


def test_the_form_that_tensorrt_wants_has_no_finding(tmp_path):
    assert check(write(tmp_path / "m.onnx", *product())) == []
    assert check(write(tmp_path / "m.onnx", *product(quantize_x=False, quantize_w=False))) == []


@pytest.mark.parametrize(
    ("settings", "expected", "words"),
    [
        ({"zero": 3}, ("refused", "Q"), "symmetrically"),
        ({"activation": np.uint8}, ("refused", "Q"), "UINT8"),
        ({"scale": -0.1}, ("refused", "Q"), "not positive"),
        ({"scale": 0.0}, ("refused", "Q"), "not positive"),
        ({"axis": 0, "scales": 4}, ("slow", "WDQ"), "output channels"),
        ({"quantize_x": False}, ("slow", "product"), "only its weight"),
        ({"quantize_w": False}, ("slow", "product"), "only its activation"),
        ({"bias": np.int32}, ("refused", "BDQ"), "bias is quantized"),
        ({"bias": np.int8}, ("slow", "BDQ"), "bias is quantized"),
        (
            {"extra": [helper.make_node("BitwiseNot", ["p"], ["y"], "odd")]},
            ("refused", "odd"),
            "BitwiseNot is not supported",
        ),
    ],
)
def test_each_rule(tmp_path, settings, expected, words):
    nodes, constants = product(**settings)
    if "extra" in settings:  # the checker wants integers there
        nodes.insert(-1, helper.make_node("Cast", ["p"], ["i"], "cast", to=TensorProto.INT32))
        nodes[-1].input[0] = "i"
        path = write(tmp_path / "m.onnx", nodes, constants, output=TensorProto.INT32)
    else:
        path = write(tmp_path / "m.onnx", nodes, constants)
    here = [finding for finding in check(path) if (finding.severity, finding.node) == expected]
    assert any(words in finding.message for finding in here)
    assert all(finding.source for finding in here)


def test_integer_operators_are_refused(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "Q"),
        helper.make_node("MatMulInteger", ["q", "w"], ["i"], "integers"),
        helper.make_node("Cast", ["i"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3), np.int8)}
    messages = {
        f.message for f in check(write(tmp_path / "m.onnx", nodes, constants)) if f.node == "integers"
    }
    assert any("not supported" in message for message in messages)
    assert any("behind every QuantizeLinear" in message for message in messages)


def test_a_scale_that_is_computed(tmp_path):
    nodes, constants = product()
    nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["sx"], "max", keepdims=0))
    del constants["sx"]
    assert ("refused", "Q") in found(write(tmp_path / "m.onnx", nodes, constants))


def test_scales_per_channel_on_an_activation(tmp_path):
    nodes, constants = product()
    constants |= {"sx": np.full(4, 0.1, np.float32), "zx": np.zeros(4, np.int8)}
    assert ("refused", "Q") in found(write(tmp_path / "m.onnx", nodes, constants))


def test_uint8_may_come_in_but_not_go_on(tmp_path):
    inputs = (("x", TensorProto.UINT8, [2, 4]),)
    cast = [helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT)]
    assert check(write(tmp_path / "m.onnx", cast, {}, inputs=inputs)) == []
    moved = [helper.make_node("Transpose", ["x"], ["t"], "turn"), *cast]
    moved[1].input[0] = "t"
    assert ("refused", "turn") in found(write(tmp_path / "m.onnx", moved, {}, inputs=inputs))


def test_types_that_a_strongly_typed_network_does_not_mix(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"], "Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "DQ"),
    ]
    constants = {"s": np.float32(0.1), "z": np.int8(0)}
    assert ("refused", "Q") in found(write(tmp_path / "m.onnx", nodes, constants))


def test_a_cast_between_dequantizer_and_product(tmp_path):
    nodes, constants = product()
    nodes.insert(2, helper.make_node("Cast", ["xd"], ["xc"], "cast", to=TensorProto.FLOAT))
    nodes[-2].input[0] = "xc"
    assert ("slow", "product") in found(write(tmp_path / "m.onnx", nodes, constants))


def test_infinite_halves_and_norms_in_half(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Pow", ["h", "two"], ["p"], "square"),
        helper.make_node("Mul", ["p", "big"], ["m"], "scale"),
        helper.make_node("Cast", ["m"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    constants = {"two": np.float16(2), "big": np.array([np.inf, 1, 1, 1], np.float16)}
    findings = found(write(tmp_path / "m.onnx", nodes, constants))
    assert {("refused", "big"), ("note", "square")} <= findings


def test_an_opset_that_is_too_new(tmp_path):
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"], "r")], {}, opset=22)
    assert ("refused", "graph") in found(path)


@pytest.mark.parametrize("damage", ["garbage", "weights"])
def test_what_is_no_whole_graph(tmp_path, damage):
    path = tmp_path / "m.onnx"
    if damage == "garbage":
        path.write_bytes(b"no graph")
    else:
        write(path, *product())
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
        (tmp_path / "m.data").unlink()
    with pytest.raises(QuantizeError, match=r"m\.onnx is not a whole ONNX graph"):
        check(path)


def test_the_graphs_of_a_bundle(float_bundle):
    assert {f.severity for f in check(float_bundle / "vision.onnx")} == {"note"}  # its batch is free
    assert check(float_bundle / "rae.onnx") == []
    refused = [f for f in check(float_bundle / "vision.int8.onnx") if f.severity == "refused"]
    assert any("UINT8" in finding.message for finding in refused)  # made for ONNX Runtime


def test_the_verb(float_bundle, tmp_path):
    runner = CliRunner()
    good = runner.invoke(
        build_app(),
        ["doctor", "--tensorrt", str(float_bundle / "vision.onnx"), "--json", str(tmp_path / "f.json")],
    )
    assert good.exit_code == 0, good.output
    assert "0 refused, 0 slow" in good.output
    assert json.loads((tmp_path / "f.json").read_text())[0]["severity"] == "note"
    bad = runner.invoke(build_app(), ["doctor", "--tensorrt", str(float_bundle / "vision.int8.onnx")])
    assert isinstance(bad.exception, QuantizeError)
    assert "refused" in bad.output
    absent = runner.invoke(build_app(), ["doctor", "--tensorrt", str(float_bundle)])
    assert "give the .onnx of a bundle, not its folder" in str(absent.exception)
