"""INT8 for ONNX Runtime: the tower's matrix products in QDQ form, calibrated; everything else stays in float.

AHD's cosine and softmax compare small differences, and the patch embedding reads pixels that are exact already:
both stay in float, as do norms, attention scores, biases, and what a product gives. ONNX Runtime makes one integer
kernel of a product whose two inputs come out of DequantizeLinear, and its output is float without another rounding.

Written out, not by ONNX Runtime's own quantizer. That holds a model in memory six times over: 3.6 GB for 0.6 GB of
weights, where this needs 0.8, most of it the session that calibrates. It also rounds what each product gives: P_V of
a miniature had 44 dB of signal to noise, here 52, and took 7 % longer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data, uses_external_data

# Bytes up to which the weights of the target stay inside its .onnx file; larger ones go to a file beside it.
LARGEST = 256 << 20
_ALIGNMENT = 4096  # of weights in that file, so that it can be mapped
_LEAST = 1e-12  # no scale is smaller: a channel or an activation may be zero throughout


@dataclass(frozen=True)
class Range:
    """The least and the largest value of an activation on the calibration patches."""

    low: float
    high: float

    def affine(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of uint8 for this range, with zero exactly on a step."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max((high - low) / 255, _LEAST)
        return np.float32(scale), np.uint8(np.clip(round(-low / scale), 0, 255))


def quantize_vision(
    source: Path, target: Path, frames: NDArray[np.uint8], class_features: NDArray[np.float32]
) -> dict[str, object]:
    """Quantize the vision graph.

    Weights are symmetric INT8 per output channel. Activations are unsigned, per tensor: on x86 with VNNI, the
    reference graph takes 14 ms like this, 21 with signed ones, 19 in fp32 (one core of a Sapphire Rapids).

    Args:
        source: fp32 ONNX, its weights inside or beside it.
        target: INT8 ONNX in QDQ form.
        frames: calibration patches [K, 2, H, W, 3] uint8.
        class_features: [2, D].

    Returns:
        A report: what was quantized, and on how many patches.
    """
    model = onnx.load(source, load_external_data=False)
    products = products_with_weights(model)
    nodes = [node for node in model.graph.node if node.name in products]
    ranges = activation_ranges(source, [node.input[0] for node in nodes], frames, class_features)
    weights = {node.input[1] for node in nodes}
    large = sum(_size(tensor, weights) for tensor in model.graph.initializer) > LARGEST
    _write(model, source.parent, target, nodes, ranges, large=large)
    return {
        "quantizer": "QDQ, least and largest values",
        "activations": "uint8 per tensor",
        "weights": "int8 per channel",
        "quantized_nodes": len(nodes),
        "calibration_patches": len(frames),
    }


def products_with_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the tower's matrix products with constant weights, without the patch embedding.

    The tower's nodes are those that `p_v` follows from; AHD's are not among them. The patch embedding is the
    product that follows from no other.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    tower = _ancestors(makers, ["p_v"])
    return [
        node.name
        for node in model.graph.node
        if node.name in tower
        and _is_product(node)
        and node.input[1] in constants
        and any(_is_product(other) for other in _ancestors(makers, [node.input[0]]).values())
    ]


def _is_product(node: NodeProto) -> bool:
    return node.op_type in ("MatMul", "Gemm")


def _ancestors(makers: dict[str, NodeProto], tensors: list[str]) -> dict[str, NodeProto]:
    """The nodes, by name, that some tensors follow from."""
    found: dict[str, NodeProto] = {}
    waiting = list(tensors)
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting += node.input
    return found


def activation_ranges(
    source: Path, tensors: list[str], frames: NDArray[np.uint8], class_features: NDArray[np.float32]
) -> dict[str, Range]:
    """The range of each of some tensors of the graph, over calibration patches [K, 2, H, W, 3]."""
    model = onnx.load(source, load_external_data=False)
    del model.graph.output[:]
    names = sorted(set(tensors))
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            model.graph.node.append(helper.make_node(kind, [name], [f"{name}/{kind}"], keepdims=0))
            value = helper.make_tensor_value_info(f"{name}/{kind}", TensorProto.FLOAT, [])
            model.graph.output.append(value)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    # The graph comes from memory, its weights from where they lie.
    folder = str(source.parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seen = np.array(
        [
            session.run(None, {"frames": frames[k : k + 1], "class_features": class_features})
            for k in range(len(frames))
        ]
    )  # [K, 2 len(names)]
    return {
        name: Range(float(seen[:, 2 * index].min()), float(seen[:, 2 * index + 1].max()))
        for index, name in enumerate(names)
    }


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric INT8 per output channel: weight [in, out] -> int8 [in, out], scales [out]."""
    scales = np.maximum(np.abs(weight).max(axis=0) / 127, _LEAST).astype(np.float32)  # [out]
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def _write(
    model: onnx.ModelProto,
    folder: Path,
    target: Path,
    products: list[NodeProto],
    ranges: dict[str, Range],
    *,
    large: bool,
) -> None:
    """Put Q and DQ around the products, and write the graph, one weight after the other."""
    graph = model.graph
    weights = {node.input[1] for node in products}
    graph_nodes = list(_with_qdq(graph.node, {node.name for node in products}))
    tensors = list(graph.initializer)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(graph_nodes)
    data = target.with_name(f"{target.name}.data")
    with data.open("wb") as file:
        while tensors:
            tensor = tensors.pop(0)
            for part in _quantized(tensor, folder) if tensor.name in weights else [_loaded(tensor, folder)]:
                if large and len(part.raw_data) >= _ALIGNMENT:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    offset = file.tell()
                    file.write(part.raw_data)
                    set_external_data(part, data.name, offset, len(part.raw_data))
                    part.ClearField("raw_data")
                graph.initializer.append(part)
    for name, values in ranges.items():
        scale, zero = values.affine()
        graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}/scale"))
        graph.initializer.append(numpy_helper.from_array(np.asarray(zero), f"{name}/zero"))
    if not large:
        data.unlink()
    onnx.save(model, target)


def _with_qdq(nodes: list[NodeProto], products: set[str]) -> Iterator[NodeProto]:
    """The nodes, in order, with Q and DQ before the first product that reads an activation, DQ before each weight."""
    done: set[str] = set()
    for node in nodes:
        if node.name not in products:
            yield node
            continue
        x, w = node.input[:2]
        if x not in done:
            done.add(x)
            scale = [f"{x}/scale", f"{x}/zero"]
            yield helper.make_node("QuantizeLinear", [x, *scale], [f"{x}/int8"], f"{x}/Q")
            yield helper.make_node("DequantizeLinear", [f"{x}/int8", *scale], [f"{x}/float"], f"{x}/DQ")
        if w not in done:
            done.add(w)
            parts = [f"{w}/int8", f"{w}/scale", f"{w}/zero"]
            yield helper.make_node("DequantizeLinear", parts, [f"{w}/float"], f"{w}/DQ", axis=1)
        changed = NodeProto()
        changed.CopyFrom(node)
        changed.input[0], changed.input[1] = f"{x}/float", f"{w}/float"
        yield changed


def _quantized(tensor: TensorProto, folder: Path) -> list[TensorProto]:
    """A weight as INT8, its scales and its zero points, which are all 0."""
    weight, scales = quantize_weight(_array(tensor, folder))
    parts = {"int8": weight, "scale": scales, "zero": np.zeros(len(scales), np.int8)}
    return [numpy_helper.from_array(value, f"{tensor.name}/{part}") for part, value in parts.items()]


def _loaded(tensor: TensorProto, folder: Path) -> TensorProto:
    """The tensor with its numbers inside."""
    if not uses_external_data(tensor):
        return tensor
    return numpy_helper.from_array(_array(tensor, folder), tensor.name)


def _array(tensor: TensorProto, folder: Path) -> NDArray[np.float32]:
    return np.asarray(numpy_helper.to_array(tensor, str(folder)))


def _size(tensor: TensorProto, quantized: set[str]) -> int:
    """Bytes of an initializer in the target."""
    elements = int(np.prod(tensor.dims))
    return elements if tensor.name in quantized else elements * (4 if tensor.data_type == 1 else 8)
