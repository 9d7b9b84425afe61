"""Two graphs of the forms that vision and RAE have, small enough to read, and inputs for them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)


def vision_model():
    """Frames [batch, 2, 3] uint8 and class_features [2, 4] -> h_c [batch, 2, 2] and p_v [batch, 4]."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["p_v"]),
        helper.make_node("Transpose", ["class_features"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["p_v", "turned"], ["similar"]),
        helper.make_node("Reshape", ["similar", "pair"], ["once"]),
        helper.make_node("Concat", ["once", "once"], ["h_c"], axis=2),
    ]
    constants = {"weight": WEIGHT, "flat": np.array([-1, 6]), "pair": np.array([-1, 2, 1])}
    graph = helper.make_graph(
        nodes,
        "vision",
        [
            helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 2, 3]),
            helper.make_tensor_value_info("class_features", TensorProto.FLOAT, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("h_c", TensorProto.FLOAT, ["batch", 2, 2]),
            helper.make_tensor_value_info("p_v", TensorProto.FLOAT, ["batch", 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rae_model(zero=None):
    """h_c [3, 2] -> p_an [3, 2]; through Q and DQ with a zero point, where one is given."""
    nodes = [helper.make_node("Neg", ["h_c"], ["p_an"])]
    constants = []
    if zero is not None:
        nodes = [
            helper.make_node("QuantizeLinear", ["h_c", "scale", "zero"], ["q"], "h_c/Q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["p_an"]),
        ]
        constants = [
            numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
            numpy_helper.from_array(zero, "zero"),
        ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 2]) for name in ("h_c", "p_an"))
    graph = helper.make_graph(nodes, "rae", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def patches(batch):
    frames = RNG.integers(0, 256, (batch, 2, 3), dtype=np.uint8)
    return {"frames": frames, "class_features": RNG.normal(size=(2, 4)).astype(np.float32)}
