"""Operations and bytes of one sample, counted from the graph; nothing is taken from a data sheet or a formula."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvau_edge.benchmarks.latency.record import Work
from tvau_edge.runtime.extras import load

_PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulInteger", "QLinearMatMul", "ConvInteger", "QLinearConv")


def count_onnx(path: Path) -> Work:
    """Count an ONNX graph at a batch of one.

    Operations are those of matrix products and convolutions, a multiplication and an addition each; of the rest, a
    transformer has about one in a hundred. A product counts as int8 when both its inputs come from DequantizeLinear,
    which is where back ends compute in int8. Weights in a file beside the graph are counted by their shapes.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    onnx = load("onnx", "counting a graph's operations", "bench")
    model = onnx.load(str(path), load_external_data=False)
    graph = model.graph
    for value in graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = 1
    del graph.value_info[:]  # their batch is still a name
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    sizes = _Sizes(onnx, graph)
    made_by = {output: node for node in graph.node for output in node.output}
    operations: dict[str, float] = {}
    moved = 0
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        moved += sum(sizes.bytes(name) for name in (*node.input, *node.output))
        if node.op_type in _PRODUCTS:
            kind = "int8" if _is_int8(node, made_by) else "fp32"
            operations[kind] = operations.get(kind, 0.0) + sizes.operations(node)
    weights = sum(sizes.bytes(tensor.name) for tensor in graph.initializer)
    ends = sum(sizes.bytes(value.name) for value in (*graph.input, *graph.output))
    return Work(operations=operations, weights=weights, least=weights + ends, most=moved)


def _is_int8(node: Any, made_by: dict[str, Any]) -> bool:
    if "Integer" in node.op_type or node.op_type.startswith("QLinear"):
        return True
    sources = [made_by.get(name) for name in node.input[:2]]
    return all(source is not None and source.op_type == "DequantizeLinear" for source in sources)


class _Sizes:
    """Shapes and bytes of a graph's tensors."""

    def __init__(self, onnx: Any, graph: Any) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._item: dict[str, int] = {}
        for tensor in graph.initializer:
            self._shapes[tensor.name] = tuple(tensor.dims)
            self._item[tensor.name] = _item_bytes(onnx, tensor.data_type)
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            self._shapes[value.name] = tuple(dimension.dim_value for dimension in kind.shape.dim)
            self._item[value.name] = _item_bytes(onnx, kind.elem_type)

    def bytes(self, name: str) -> int:
        """Of a tensor; 0 for an input that is left out."""
        return math.prod(self._shapes.get(name, (0,))) * self._item.get(name, 0)

    def operations(self, node: Any) -> float:
        """Multiplications and additions of one product."""
        made = math.prod(self._shapes[node.output[0]])
        if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
            depth = self._shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            turned = any(item.name == "transA" and item.i for item in node.attribute)
            depth = self._shapes[node.input[0]][0 if turned else 1]
        else:
            place = 3 if node.op_type == "QLinearConv" else 1
            depth = math.prod(self._shapes[node.input[place]][1:])  # channels of the group, kernel
        return 2.0 * made * depth


def _item_bytes(onnx: Any, kind: int) -> int:
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except KeyError:
        return 0


def count_gguf(path: Path) -> Work:
    """Count one decoded token of a GGUF: every weight is read once, of the embedding one row.

    Where the output is tied to the embedding, the embedding is read whole. Keys and values are left out: at a clip's
    length they are a few hundredths of the weights.

    Raises:
        MissingExtraError: gguf is not installed.
    """
    gguf = load("gguf", "counting a language model's bytes", "bench")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    read = dict(_read_per_token(tensors))
    parameters = sum(
        int(math.prod(int(n) for n in tensors[name].shape)) for name in read if len(tensors[name].shape) > 1
    )
    return Work(
        operations={"weights": 2.0 * parameters},
        weights=sum(int(tensor.n_bytes) for tensor in tensors.values()),
        least=sum(read.values()),
        most=sum(read.values()),
    )


def _read_per_token(tensors: dict[str, Any]) -> Iterator[tuple[str, int]]:
    tied = "output.weight" not in tensors
    for name, tensor in tensors.items():
        if name != "token_embd.weight" or tied:
            yield name, int(tensor.n_bytes)
