"""Graphs for TensorRT: FP16 that survives outliers, and INT8 in its explicit-quantization form, strongly typed.

Every tensor has the type that the graph says, which is what a strongly typed network computes. The residual stream,
the norms and AHD's cosine are fp32; matrix products and what lies between them are fp16, except where a value came
near fp16's 65,504 on the calibration footage: those stay in fp32. Nothing is left to a builder's choice, which on the
real tower gave NaN (TensorRT-LLM issue 3223).

INT8: activations symmetric per tensor, weights symmetric per output channel on the axis of the channels, zero points
0, no quantized bias, one Q and DQ right before each product and nothing quantized behind it, so that TensorRT fuses
DQ, DQ, product and bias into one kernel.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tvau_edge.quantize.activations import Feed, Range, open_session
from tvau_edge.quantize.fallback import Choice, Layer, products_of
from tvau_edge.quantize.prepared import Advance, Arrays, Prepared, agreement, settle
from tvau_edge.quantize.weights import array_of, loaded, size_of, write_graph

LARGEST = 65504.0  # of fp16
HEADROOM = 4.0  # what calibration did not show
# Operators that may be computed in fp16 between products; what adds up squares is not among them.
_BETWEEN = {
    *("Add", "Mul", "Neg", "Sigmoid", "Gelu", "Softmax", "MatMul"),
    *("Split", "Reshape", "Transpose", "Slice", "Concat", "Gather", "Unsqueeze", "Squeeze"),
}
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def peaks_of(source: Path, feeds: Sequence[Feed]) -> dict[str, float]:
    """Largest magnitude of every float tensor that a node of the graph makes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    graph = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    made = {output for node in graph.node for output in node.output}
    names = sorted(name for name in made if kinds.get(name) == _FLOAT)
    del graph.output[:]
    for name in names:
        graph.node.append(helper.make_node("Abs", [name], [f"peak/{name}/abs"]))
        graph.node.append(helper.make_node("ReduceMax", [f"peak/{name}/abs"], [f"peak/{name}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"peak/{name}", _FLOAT, []))
    session = open_session(model, source.parent)
    seen = np.array([session.run(None, dict(feed)) for feed in feeds]).max(axis=0)
    return {name: float(value) for name, value in zip(names, seen, strict=True)}


def write_typed(
    source: Path,
    target: Path,
    peaks: Mapping[str, float],
    ranges: Mapping[str, Range],
    quantized: Collection[str],
) -> dict[str, Any]:
    """Write the strongly typed graph.

    Args:
        source: float ONNX.
        target: .onnx.
        peaks: of `peaks_of`.
        ranges: of the inputs of quantized products, by the name of the tensor.
        quantized: names of the products in INT8; none for a graph in FP16.

    Returns:
        What was typed how: "half", "float" products, and the tensors that would leave fp16's range.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    del graph.value_info[:]
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    writer = _Typed(graph, tensors, peaks, {node.name for node in products_of(model)}, set(quantized))
    nodes = list(writer.nodes())
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    size = sum(size_of(tensor) for tensor in tensors.values()) // (4 if quantized else 2)
    write_graph(model, target, writer.constants(source.parent, ranges), size)
    onnx.checker.check_model(str(target))
    return writer.record()


def quantize_tensorrt(
    prepared: Prepared, target: Path, feeds: Sequence[Feed], goal: float, advance: Advance | None = None
) -> tuple[Choice, dict[str, Any]]:
    """Write the typed INT8 graph, layers left in float until its outputs agree by `goal`.

    Args:
        prepared: the smoothed graph, and what it is compared on.
        target: .onnx.
        feeds: calibration inputs, which show what leaves fp16's range.
        goal: least cosine, 0..1.
        advance: told of progress.

    Returns:
        The choice, and the record of `write_typed`.
    """
    peaks, outputs = peaks_of(prepared.path, feeds), list(prepared.expected[0])
    typed: dict[str, Any] = {}

    def attempt(left: Sequence[Layer]) -> float:
        nodes = {layer.node for layer in prepared.layers} - {layer.node for layer in left}
        typed.update(write_typed(prepared.path, target, peaks, prepared.ranges, nodes))
        if advance:
            advance(len(left), len(prepared.layers))
        return agreement(prepared.expected, run_typed(target, prepared.checked, outputs))

    return settle(prepared.layers, attempt, goal), typed


class _Typed:
    """Walks a graph in order and decides the type of each node."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        tensors: dict[str, TensorProto],
        peaks: Mapping[str, float],
        products: set[str],
        quantized: set[str],
    ) -> None:
        self._graph, self._tensors, self._peaks = graph, tensors, peaks
        self._products, self._quantized = products, quantized
        self._half: set[str] = set()  # tensors in fp16
        self._outputs = {output.name for output in graph.output}
        self._casts: set[str] = set()
        self._halved: set[str] = set()  # constants that are needed in fp16
        self._whole: set[str] = set()  # constants that are needed as they are
        self._int8: dict[str, bool] = {}  # weight -> whether it comes out in fp16
        self._scaled: dict[str, tuple[bool, bool]] = {}  # input -> whether Q reads, and DQ gives, fp16
        self._wide: list[str] = []
        self._count = {"half": 0, "float": 0, "int8": 0}

    def record(self) -> dict[str, Any]:
        return {"products": dict(self._count), "beyond_fp16": sorted(self._wide)}

    def _fits(self, name: str) -> bool:
        return HEADROOM * self._peaks.get(name, 0.0) <= LARGEST

    def nodes(self) -> Iterator[NodeProto]:
        floats = set(self._peaks) | {
            value.name for value in self._graph.input if value.type.tensor_type.elem_type == _FLOAT
        }
        for node in list(self._graph.node):
            product = node.name in self._products
            active = [name for name in node.input if name in floats]
            fits = all(self._fits(name) for name in (*active, *node.output))
            wanted = product or (
                node.op_type in _BETWEEN and active and all(name in self._half for name in active)
            )
            half = bool(wanted and fits)
            if wanted and not fits:
                self._wide += [name for name in (*active, *node.output) if not self._fits(name)]
            if product:
                kind = "int8" if node.name in self._quantized else "half" if half else "float"
                self._count[kind] += 1
            changed = NodeProto()
            changed.CopyFrom(node)
            if product and node.name in self._quantized:
                yield from self._quantize(changed, half)
            else:
                yield from self._convert(changed, half, active)
            if half:
                self._half.update(node.output)
            yield from self._finish(changed, half)

    def _convert(self, node: NodeProto, half: bool, active: list[str]) -> Iterator[NodeProto]:
        for index, name in enumerate(node.input):
            if name in active:
                if (name in self._half) != half:
                    kind = "half" if half else "float"
                    if f"{name}/{kind}" not in self._casts:
                        self._casts.add(f"{name}/{kind}")
                        yield _cast(name, f"{name}/{kind}", _HALF if half else _FLOAT)
                    node.input[index] = f"{name}/{kind}"
            elif name in self._tensors:
                if half and self._tensors[name].data_type == _FLOAT:
                    self._halved.add(name)
                    node.input[index] = f"{name}/half"
                else:
                    self._whole.add(name)

    def _quantize(self, node: NodeProto, half: bool) -> Iterator[NodeProto]:
        x, w = node.input[:2]
        if x not in self._scaled:
            self._scaled[x] = (x in self._half, half)
            # Q reads the type that its input has, DQ gives the one that the product computes in.
            read = [x, f"{x}/scale/Q", f"{x}/zero"]
            yield helper.make_node("QuantizeLinear", read, [f"{x}/int8"], f"{x}/Q")
            give = [f"{x}/int8", f"{x}/scale/DQ", f"{x}/zero"]
            yield helper.make_node("DequantizeLinear", give, [f"{x}/dequantized"], f"{x}/DQ")
        given = f"{x}/dequantized"
        if self._scaled[x][1] != half:
            kind = "half" if half else "float"
            if f"{given}/{kind}" not in self._casts:
                self._casts.add(f"{given}/{kind}")
                yield _cast(given, f"{given}/{kind}", _HALF if half else _FLOAT)
            given = f"{given}/{kind}"
        self._int8[w] = half
        parts = [f"{w}/int8", f"{w}/scale", f"{w}/zero"]
        yield helper.make_node("DequantizeLinear", parts, [f"{w}/dequantized"], f"{w}/DQ", axis=1)
        node.input[0], node.input[1] = given, f"{w}/dequantized"

    def _finish(self, node: NodeProto, half: bool) -> Iterator[NodeProto]:
        """The node, and a cast where it gives an output of the graph, whose type stays."""
        for index, name in enumerate(node.output):
            if half and name in self._outputs:
                node.output[index] = f"{name}/half"
                self._half.discard(name)
                yield node
                yield _cast(f"{name}/half", name, _FLOAT)
                return
        yield node

    def constants(self, folder: Path, ranges: Mapping[str, Range]) -> Iterator[TensorProto]:
        for name, tensor in self._tensors.items():
            if name in self._int8:
                yield from _int8_weight(name, tensor, folder, self._int8[name])
            if name in self._whole:
                yield loaded(tensor, folder)
            if name in self._halved:
                value = np.asarray(array_of(tensor, folder), np.float32)
                clipped = np.clip(value, -LARGEST, LARGEST).astype(np.float16)
                yield numpy_helper.from_array(clipped, f"{name}/half")
        for name, (reads, gives) in sorted(self._scaled.items()):
            scale = rounded_up(np.asarray(ranges[name].symmetric()))
            for part, half in (("Q", reads), ("DQ", gives)):
                value = scale.astype(np.float16 if half else np.float32)
                yield numpy_helper.from_array(np.asarray(value), f"{name}/scale/{part}")
            yield numpy_helper.from_array(np.asarray(np.int8(0)), f"{name}/zero")


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/Cast", to=kind)


def _int8_weight(name: str, tensor: TensorProto, folder: Path, half: bool) -> Iterator[TensorProto]:
    weight = np.asarray(array_of(tensor, folder), np.float32)
    scales = rounded_up(np.maximum(np.abs(weight).max(axis=0) / 127, 1e-12))  # [out]
    values = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
    yield numpy_helper.from_array(values, f"{name}/int8")
    yield numpy_helper.from_array(scales.astype(np.float16 if half else np.float32), f"{name}/scale")
    yield numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{name}/zero")


def rounded_up(scales: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The least fp16 number that is no smaller than each scale; one beyond fp16 stays.

    So a scale means the same in fp16 and in fp32, and Q and DQ agree whatever type they have.
    """
    scales = np.asarray(scales, np.float32)
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16)
        low = halves.astype(np.float32) < scales
        halves = np.where(low, np.nextafter(halves, np.float16(np.inf)), halves)
    return np.where(np.isfinite(halves), halves, scales).astype(np.float32)


class MatMul(OpRun):
    """Product of fp16 as a tensor core computes it: sums in fp32, one rounding at the end."""

    def _run(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any]]:
        with np.errstate(over="ignore", invalid="ignore"):
            return (np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),)


class Softmax(OpRun):
    """Softmax with its sum in fp32."""

    def _run(self, x: NDArray[Any], axis: int | None = None) -> tuple[NDArray[Any]]:
        y = x.astype(np.float32)
        y = np.exp(y - y.max(axis=axis, keepdims=True))
        return ((y / y.sum(axis=axis, keepdims=True)).astype(x.dtype),)


def run_typed(
    path: Path,
    feeds: Sequence[Feed],
    outputs: Sequence[str],
    advance: Callable[[int, int], None] | None = None,
) -> list[Arrays]:
    """Compute a typed graph in numpy, each operator's result rounded to its type, overflow included.

    ONNX Runtime's CPU has no fp16 kernels for most of these operators: it computes them in fp32, and a graph that
    gives NaN on a GPU looks right there. OpenVINO does the same.
    """
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    evaluator = ReferenceEvaluator(model, new_ops=[MatMul, Softmax])
    found = []
    for number, feed in enumerate(feeds, 1):
        with np.errstate(all="ignore"):
            results = evaluator.run(list(outputs), dict(feed))
        found.append({n: np.asarray(v, np.float32) for n, v in zip(outputs, results, strict=True)})
        if advance:
            advance(number, len(feeds))
    return found
