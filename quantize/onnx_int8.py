"""INT8 for ONNX Runtime: matrix products in QDQ form, calibrated; everything else stays in float.

AHD's cosine and softmax compare small differences, and the patch embedding reads pixels that are exact already:
both stay in float, as do norms, attention scores, biases, and what a product gives. ONNX Runtime makes one integer
kernel of a product whose two inputs come out of DequantizeLinear, and its output is float without another rounding.

Written out, not by ONNX Runtime's own quantizer. That holds a model in memory six times over: 3.6 GB for 0.6 GB of
weights, where this needs 0.8, most of it the session that calibrates. It also rounds what each product gives: P_V of
a miniature had 44 dB of signal to noise, here 52, and took 7 % longer.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tvau_edge.quantize.activations import Range, observe
from tvau_edge.quantize.simulate import quantize_weight
from tvau_edge.quantize.weights import array_of, loaded, size_of, write_graph


def quantize_vision(
    source: Path, target: Path, frames: NDArray[np.uint8], class_features: NDArray[np.float32]
) -> dict[str, object]:
    """Quantize the products of the vision graph's tower, as export does it without further ado.

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
    feeds = [{"frames": frames[k : k + 1], "class_features": class_features} for k in range(len(frames))]
    seen = observe(source, [node.input[0] for node in nodes], feeds)
    return quantize_products(source, target, products, {name: seen[name].range for name in seen}) | {
        "calibration_patches": len(frames)
    }


def quantize_products(
    source: Path, target: Path, products: Collection[str], ranges: Mapping[str, Range]
) -> dict[str, object]:
    """Write a graph with some of its products in INT8.

    Weights are symmetric INT8 per output channel. Activations are unsigned, per tensor: on x86 with VNNI, the
    reference graph takes 14 ms like this, 21 with signed ones, 19 in fp32 (one core of a Sapphire Rapids).

    Args:
        source: fp32 ONNX, its weights inside or beside it.
        target: INT8 ONNX in QDQ form.
        products: names of the nodes.
        ranges: of the products' inputs, by the name of the tensor.

    Returns:
        A report: what was quantized, and how.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    chosen = [node for node in graph.node if node.name in products]
    weights = {node.input[1] for node in chosen}
    nodes = list(with_qdq(graph.node, {node.name for node in chosen}))
    tensors = list(graph.initializer)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)

    def parts() -> Iterator[TensorProto]:
        for tensor in tensors:
            if tensor.name in weights:
                yield from quantized(tensor, source.parent)
            else:
                yield loaded(tensor, source.parent)
        for name in sorted({node.input[0] for node in chosen}):
            scale, zero = ranges[name].affine()
            yield numpy_helper.from_array(np.asarray(scale), f"{name}/scale")
            yield numpy_helper.from_array(np.asarray(zero), f"{name}/zero")

    size = sum(size_of(tensor) // (4 if tensor.name in weights else 1) for tensor in tensors)
    write_graph(model, target, parts(), size)
    return {
        "quantizer": "QDQ, least and largest values",
        "activations": "uint8 per tensor",
        "weights": "int8 per channel",
        "quantized_nodes": len(chosen),
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


def with_qdq(nodes: list[NodeProto], products: set[str]) -> Iterator[NodeProto]:
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


def quantized(tensor: TensorProto, folder: Path) -> list[TensorProto]:
    """A weight as INT8, its scales and its zero points, which are all 0."""
    weight, scales = quantize_weight(np.asarray(array_of(tensor, folder), np.float32))
    parts = {"int8": weight, "scale": scales, "zero": np.zeros(len(scales), np.int8)}
    return [numpy_helper.from_array(value, f"{tensor.name}/{part}") for part, value in parts.items()]
