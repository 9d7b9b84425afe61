"""What TensorRT would refuse, or not fuse, told from an ONNX graph alone, each rule with its source.

TensorRT's builder comes only from NVIDIA's own index or with a device, so this is what a machine without it has. It
reads TensorRT's rules, not its mind: what passes here can still fail there, and then a rule is missing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto
from onnx.external_data_helper import uses_external_data

from tvau_edge.quantize.errors import QuantizeError
from tvau_edge.quantize.weights import array_of

OPERATORS = "onnx-tensorrt 10.1, docs/operators.md"
IMPORTER = "onnx-tensorrt 10.1, onnxOpImporters.cpp, QuantDequantLinearHelper"
EXPLICIT = "docs.nvidia.com/deeplearning/tensorrt: Explicit Quantization, Q/DQ placement"
TYPING = "docs.nvidia.com/deeplearning/tensorrt: Strongly Typed Networks"
HALF = "IEEE 754 binary16: largest number 65,504"

Severity = Literal["refused", "slow", "note"]
_NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.DOUBLE: "FP64",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}
_WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose")
_SAME_TYPES = ("Add", "Sub", "Mul", "Div", "Pow", "MatMul", "Gemm", "Concat", "Where", "Min", "Max")
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity")


@dataclass(frozen=True)
class Finding:
    """One thing that TensorRT would not like.

    Attributes:
        severity: refused (the parser or builder stops), slow (runs, not in INT8 or not fused), note.
        node: name of the node, or of the graph.
        message: what, and what to do.
        source: of the rule.
    """

    severity: Severity
    node: str
    message: str
    source: str


def check(path: Path) -> list[Finding]:
    """Everything that is found in a graph, what is refused first.

    Raises:
        QuantizeError: the file is no ONNX graph, or its weights are missing.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # protobuf's, onnx's and the system's share no base but Exception
        raise QuantizeError(f"{path} is not a whole ONNX graph: {error}") from error
    graph = _Graph(inferred, path.parent)
    found: list[Finding] = []
    for rule in (
        _opset,
        _operators,
        _types,
        _quantizers,
        _integer_products,
        _fusion,
        _biases,
        _strong,
        _range,
        _shapes,
    ):
        found += rule(graph)
    order = ("refused", "slow", "note")
    return sorted(
        set(found), key=lambda finding: (order.index(finding.severity), finding.node, finding.message)
    )


class _Graph:
    """A graph with what the rules ask of it."""

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.model, self.graph, self.folder = model, model.graph, folder
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        values = (*self.graph.input, *self.graph.output, *self.graph.value_info)
        self.kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        self.kinds |= {tensor.name: tensor.data_type for tensor in self.constants.values()}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def kind(self, name: str) -> str:
        return _NAMES.get(self.kinds.get(name, 0), "")

    def value(self, name: str) -> NDArray[Any] | None:
        tensor = self.constants.get(name)
        return None if tensor is None else array_of(tensor, self.folder)


def _opset(graph: _Graph) -> Iterator[Finding]:
    low, high = _table()["opset"]
    for entry in graph.model.opset_import:
        if entry.domain in ("", "ai.onnx") and not low <= entry.version <= high:
            yield Finding(
                "refused",
                "graph",
                f"opset {entry.version}; TensorRT 10 reads {low} to {high}: export at opset {high}",
                OPERATORS,
            )
        elif entry.domain not in ("", "ai.onnx"):
            used = sorted({node.op_type for node in graph.nodes if node.domain == entry.domain})
            if used:
                yield Finding(
                    "refused", "graph", f"operators of {entry.domain}: {', '.join(used)}", OPERATORS
                )


def _operators(graph: _Graph) -> Iterator[Finding]:
    table = _table()
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type not in table["supported"]:
            yield Finding("refused", node.name, f"operator {node.op_type} is not supported", OPERATORS)


def _types(graph: _Graph) -> Iterator[Finding]:
    table = _table()["supported"]
    outer = {value.name for value in (*graph.graph.input, *graph.graph.output)}
    for node in graph.nodes:
        allowed = set(table.get(node.op_type, ()))
        if not allowed or node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
            continue
        kind = graph.kind(node.input[0]) if node.input else ""
        if kind and kind not in allowed and kind != "FP64":
            yield Finding(
                "refused",
                node.name,
                f"{node.op_type} on {kind}; it takes {', '.join(sorted(allowed))}",
                OPERATORS,
            )
    for name, kind in graph.kinds.items():
        if kind == TensorProto.DOUBLE:
            yield Finding("note", name, "FP64 is cast down to FP32, and clamped", OPERATORS)
        if kind == TensorProto.UINT8 and name not in outer and name not in graph.constants:
            yield Finding(
                "refused", name, "UINT8 inside the graph; only inputs and outputs may be", OPERATORS
            )


def _quantizers(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = graph.value(node.input[1])
        zero = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if scale is None:
            yield Finding("refused", node.name, "its scale is computed; it must be a constant", IMPORTER)
            continue
        if not (np.asarray(scale, np.float64) > 0).all():
            yield Finding("refused", node.name, "a scale is not positive", IMPORTER)
        if zero is not None and np.asarray(zero).any():
            yield Finding(
                "refused",
                node.name,
                "a zero point is not 0: TensorRT quantizes symmetrically; calibrate with signed, symmetric activations",
                IMPORTER,
            )
        kind = _quantized_kind(graph, node)
        if kind not in ("INT8", ""):
            yield Finding(
                "refused", node.name, f"quantized type {kind}; TensorRT takes INT8 (or FP8, INT4)", IMPORTER
            )
        if zero is not None and np.asarray(zero).size != np.asarray(scale).size:
            yield Finding("refused", node.name, "scale and zero point differ in number", IMPORTER)
        if np.asarray(scale).size > 1:
            yield from _per_channel(graph, node, np.asarray(scale))


def _quantized_kind(graph: _Graph, node: NodeProto) -> str:
    if node.op_type == "DequantizeLinear":
        return graph.kind(node.input[0])
    return graph.kind(node.input[2]) if len(node.input) > 2 and node.input[2] else "UINT8"


def _per_channel(graph: _Graph, node: NodeProto, scale: NDArray[Any]) -> Iterator[Finding]:
    weight = graph.constants.get(node.input[0])
    if weight is None:
        yield Finding(
            "refused",
            node.name,
            "one scale per channel on an activation; only weights may have that",
            IMPORTER,
        )
        return
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if weight.dims[axis] != scale.size:
        yield Finding(
            "refused",
            node.name,
            f"{scale.size} scales for {weight.dims[axis]} channels on axis {axis}",
            IMPORTER,
        )
    for reader in graph.readers.get(node.output[0], ()):
        wanted = _channel_axis(reader)
        if reader.op_type in _WEIGHTED and axis % len(weight.dims) != wanted % len(weight.dims):
            yield Finding(
                "slow",
                node.name,
                f"scales on axis {axis}, but the output channels of {reader.op_type} are on axis {wanted}: it "
                "cannot run in INT8",
                EXPLICIT,
            )


def _channel_axis(node: NodeProto) -> int:
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    return {"MatMul": 1, "Gemm": 1, "Conv": 0, "ConvTranspose": 1}.get(node.op_type, 0)


def _integer_products(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            for reader in graph.readers.get(node.output[0], ()):
                if reader.op_type not in ("DequantizeLinear", *_MOVES):
                    yield Finding(
                        "refused",
                        reader.name,
                        f"{reader.op_type} reads integers: behind every QuantizeLinear stands a DequantizeLinear",
                        EXPLICIT,
                    )


def _fusion(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type not in _WEIGHTED:
            continue
        sides = [_dequantizer(graph, name) is not None for name in node.input[:2]]
        if sides[0] != sides[1]:
            which = "its weight" if sides[1] else "its activation"
            yield Finding(
                "slow",
                node.name,
                f"only {which} is quantized: {node.op_type} runs in floating point; quantize both inputs or none",
                EXPLICIT,
            )
        for name in node.input[:2]:
            made = graph.makers.get(name)
            if made is not None and made.op_type == "Cast" and _dequantizer(graph, made.input[0]) is not None:
                yield Finding(
                    "slow",
                    node.name,
                    "a Cast stands between DequantizeLinear and the product, which are then not fused: give the scale "
                    "the product's type",
                    EXPLICIT,
                )


def _dequantizer(graph: _Graph, name: str) -> NodeProto | None:
    """The DequantizeLinear that a tensor comes from, through what only moves numbers."""
    node = graph.makers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = graph.makers.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        bias = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else ""
        candidates = [bias] if bias else []
        if node.op_type == "Add":
            products = [
                n for n in node.input if (m := graph.makers.get(n)) is not None and m.op_type in _WEIGHTED
            ]
            candidates = [n for n in node.input if n not in products] if products else []
        for name in candidates:
            made = _dequantizer(graph, name)
            if made is not None and made.input[0] in graph.constants:
                kind = graph.kind(made.input[0])
                yield Finding(
                    "refused" if kind == "INT32" else "slow",
                    made.name,
                    f"a bias is quantized ({kind}); TensorRT wants it in floating point",
                    EXPLICIT,
                )


def _strong(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.op_type in _SAME_TYPES:
            kinds = {graph.kind(name) for name in node.input[-2:] if name} - {""}
            kinds &= {"FP32", "FP16", "BF16"}
            if len(kinds) > 1:
                yield Finding(
                    "refused",
                    node.name,
                    f"{node.op_type} of {' and '.join(sorted(kinds))}: a strongly typed network converts nothing by "
                    "itself; add a Cast",
                    TYPING,
                )
        elif node.op_type == "QuantizeLinear":
            given, scale = graph.kind(node.input[0]), graph.kind(node.input[1])
            if given and scale and given != scale:
                yield Finding(
                    "refused",
                    node.name,
                    f"input {given}, scale {scale}: they must be the same type",
                    IMPORTER,
                )


def _range(graph: _Graph) -> Iterator[Finding]:
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT16:
            continue
        if uses_external_data(tensor) and not (graph.folder / _location(tensor)).is_file():
            continue  # the checker has said so
        value = array_of(tensor, graph.folder)
        if not np.isfinite(value).all():
            yield Finding("refused", tensor.name, "an FP16 constant is infinite or not a number", HALF)
    for node in graph.nodes:
        kinds = {graph.kind(name) for name in (*node.input, *node.output)}
        if node.op_type in ("Pow", "ReduceMean", "ReduceSum") and "FP16" in kinds:
            yield Finding(
                "note",
                node.name,
                f"{node.op_type} in FP16: sums of squares leave its range on the Qwen2.5-VL tower; keep norms in FP32",
                "NVIDIA/TensorRT-LLM issue 3223; " + HALF,
            )


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _shapes(graph: _Graph) -> Iterator[Finding]:
    for value in graph.graph.input:
        free = [
            dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim if not dim.HasField("dim_value")
        ]
        if free:
            yield Finding(
                "note",
                value.name,
                f"free dimension {', '.join(free)}: the engine needs an optimization profile for it",
                "docs.nvidia.com/deeplearning/tensorrt: Working with Dynamic Shapes",
            )


@cache
def _table() -> dict[str, Any]:
    """Operators with their types, from `OPERATORS`."""
    text = (files("tvau_edge.quantize") / "tensorrt_operators.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
