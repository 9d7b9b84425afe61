from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvau_edge.benchmarks.latency.counts import count_gguf, count_onnx


def save(path: Path, nodes, inputs, outputs, constants) -> Path:
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_product_is_counted_at_a_batch_of_one(tmp_path):
    path = save(
        tmp_path / "g.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        [("x", TensorProto.FLOAT, ["batch", 4, 8])],
        [("z", ["batch", 4, 16])],
        {"w": np.zeros((8, 16), np.float32)},
    )
    work = count_onnx(path)
    assert work.operations == {"fp32": 2 * 4 * 8 * 16}
    assert work.weights == 8 * 16 * 4
    assert work.least == 4 * (8 * 16 + 4 * 8 + 4 * 16)
    assert work.most == work.least + 4 * (2 * 4 * 16)  # y is written, and read


def test_convolution_and_gemm_are_counted(tmp_path):
    path = save(
        tmp_path / "g.onnx",
        [
            helper.make_node("Conv", ["x", "k"], ["c"], group=2, kernel_shape=[3, 3]),
            helper.make_node("Flatten", ["c"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 4, 5, 5])],
        [("y", ["batch", 7])],
        {"k": np.zeros((6, 2, 3, 3), np.float32), "w": np.zeros((54, 7), np.float32)},
    )
    # Each of 6 x 3 x 3 outputs reads the two channels of its group under a kernel of nine.
    assert count_onnx(path).operations == {"fp32": 2 * 54 * 18 + 2 * 54 * 7}


def test_products_between_dequantized_tensors_are_int8(tmp_path):
    path = save(
        tmp_path / "g.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["w"]),
            helper.make_node("MatMul", ["xd", "w"], ["y"]),
            helper.make_node("MatMul", ["y", "v"], ["u"]),
        ],
        [("x", TensorProto.FLOAT, ["batch", 4])],
        [("u", ["batch", 2])],
        {
            "s": np.float32(0.1), "z": np.int8(0),
            "wq": np.zeros((4, 8), np.int8), "v": np.zeros((8, 2), np.float32),
        },
    )  # fmt: skip
    work = count_onnx(path)
    assert work.operations == {"int8": 2 * 4 * 8, "fp32": 2 * 8 * 2}
    assert work.weights == 4 * 8 + 8 * 2 * 4 + 4 + 1


def test_the_tower_of_the_tests_is_counted_in_full(red_bundle):
    work = count_onnx(red_bundle / "vision.onnx")
    cells, tokens = 4 * 6, 6
    assert work.operations == {"fp32": 2.0 * cells * 2 * 3 + 2.0 * tokens * 3 * 64}


@pytest.mark.parametrize("tied", [False, True])
def test_a_token_reads_each_weight_once(tmp_path, tied):
    from gguf import GGUFWriter

    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "qwen2vl")
    writer.add_tensor("token_embd.weight", np.zeros((100, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(8, np.float32))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((100, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    work = count_gguf(path)
    head = 100 * 8 * (4 if tied else 2)
    assert work.least == head + 16 * 8 * 2 + 8 * 4
    assert work.operations == {"weights": 2.0 * (100 * 8 + 16 * 8)}
