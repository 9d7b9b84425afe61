"""INT8 for OpenVINO by NNCF: the transformer scheme, its SmoothQuant and bias correction, on our smoothed graph."""

import io
import logging
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from tvau_edge.quantize.activations import Feed
from tvau_edge.quantize.prepared import Arrays
from tvau_edge.runtime.backends.openvino import ARITHMETIC, OpenVinoGraph

# Operators that stay in float wherever they stand: they compare small differences, or add up squares.
_FLOAT = ("Softmax", "SoftMax", "Power", "ReduceMean", "ReduceSum", "Sqrt", "Divide", "Gelu", "Convolution")


def quantize_openvino(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    left: Collection[str],
    arithmetic: str = "f32",
) -> None:
    """Write an OpenVINO IR in INT8.

    Args:
        source: float ONNX.
        target: .xml; the weights lie in a .bin beside it.
        feeds: calibration inputs.
        left: names of the nodes that stay in float.
        arithmetic: of what stays in float, f32 or bf16: written into the IR, obeyed by the runtime where the CPU
            computes bf16 itself.
    """
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core = openvino.Core()
    model = core.read_model(source)
    names = {op.get_friendly_name() for op in model.get_ordered_ops()}
    kept = [name for name in left if name in names]
    kept += [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _FLOAT]
    kept += _compared(model)
    with redirect_stdout(io.StringIO()):  # its progress bars, which would break into ours
        quantized = nncf.quantize(
            model,
            nncf.Dataset([dict(feed) for feed in feeds]),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=sorted(set(kept)), validate=False),
        )
    quantized.set_rt_info(arithmetic, list(ARITHMETIC))
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _compared(model: Any) -> list[str]:
    """AHD's cosines: products of two activations of which one follows from the class features alone."""
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() != "MatMul":
            continue
        for port in range(2):
            names = _inputs_of(op.input_value(port).get_node())
            if names == {"class_features"}:
                found.append(op.get_friendly_name())
    return found


def _inputs_of(node: Any) -> set[str]:
    """Names of the graph's inputs that a node follows from."""
    found, seen, waiting = set(), set(), [node]
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() == "Parameter":
            found.add(name)
            if len(found) > 1:
                break
        waiting += [value.get_node() for value in node.input_values()]
    return found


def run_openvino(path: Path, feeds: Sequence[Feed], outputs: Sequence[str]) -> list[Arrays]:
    """Outputs by name of a graph in the runtime's own OpenVINO back end, one dictionary per feed."""
    graph = OpenVinoGraph(str(path))
    try:
        return [
            {n: np.asarray(v) for n, v in zip(outputs, graph.run(dict(f), outputs), strict=True)}
            for f in feeds
        ]
    finally:
        graph.close()


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU computes bf16 itself."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
