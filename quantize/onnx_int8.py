"""INT8 for ONNX Runtime: the tower's matrix products in QDQ form, calibrated; everything else stays in float.

AHD's cosine and softmax compare small differences, and the patch embedding reads pixels that are exact already:
both stay in float, as do norms, attention scores and biases.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds calibration patches one at a time, under the name that ONNX Runtime looks for."""

    def __init__(self, frames: NDArray[np.uint8], class_features: NDArray[np.float32]) -> None:
        self._items: Iterator[dict[str, NDArray[np.generic]]] = iter(
            [{"frames": frames[k : k + 1], "class_features": class_features} for k in range(len(frames))]
        )

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:
        return next(self._items, None)


def quantize_vision(
    source: Path, target: Path, frames: NDArray[np.uint8], class_features: NDArray[np.float32]
) -> dict[str, object]:
    """Quantize the vision graph.

    Weights are symmetric INT8 per output channel; activations are unsigned, which x86 with VNNI multiplies fastest.

    Args:
        source: fp32 ONNX.
        target: INT8 ONNX in QDQ form.
        frames: calibration patches [K, 2, H, W, 3] uint8.
        class_features: [2, D].

    Returns:
        A report: what was quantized, and on how many patches.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        names = products_with_weights(onnx.load(prepared, load_external_data=False))
        quantize_static(
            prepared,
            target,
            _Reader(frames, class_features),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=names,
        )
    return {
        "quantizer": "onnxruntime static QDQ",
        "activations": "uint8 per tensor",
        "weights": "int8 per channel",
        "quantized_nodes": len(names),
        "calibration_patches": len(frames),
    }


def products_with_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the tower's matrix products with constant weights, without the patch embedding.

    The tower's nodes are those that `p_v` follows from; AHD's are not among them.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    tower: set[str] = set()
    waiting = ["p_v"]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.name not in tower:
            tower.add(node.name)
            waiting += node.input
    products = [
        node.name
        for node in model.graph.node
        if node.name in tower and node.op_type in ("MatMul", "Gemm") and node.input[1] in constants
    ]
    return products[1:]  # in the order of the graph, the patch embedding is the first
