"""INT8 for OpenVINO by NNCF: its transformer scheme and bias correction, on our smoothed graph.

Three of NNCF's defaults are not taken. On a miniature with one outlier channel, 16 products in INT8 agreed with float
by a cosine of 0.920 with them, and by 0.999 like this: only products with trained weights are given to it, not what
attention multiplies nor residual sums; ranges are the least and largest values, not their means over the patches; and
its SmoothQuant, which ours has come before, is off.
"""

import io
import logging
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from tvau_edge.quantize.activations import Feed
from tvau_edge.quantize.fallback import Choice, Layer
from tvau_edge.quantize.prepared import Advance, Arrays, Prepared, agreement, settle
from tvau_edge.runtime.backends.openvino import ARITHMETIC, OpenVinoGraph, core


def quantize_openvino(
    source: Path, target: Path, feeds: Sequence[Feed], products: Collection[str], arithmetic: str = "f32"
) -> None:
    """Write an OpenVINO IR in INT8.

    Args:
        source: float ONNX.
        target: .xml; the weights lie in a .bin beside it.
        feeds: calibration inputs.
        products: names of the nodes in INT8.
        arithmetic: of what stays in float, f32 or bf16: written into the IR, obeyed by the runtime where the CPU
            computes bf16 itself.
    """
    import nncf
    import openvino
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)
    model = core().read_model(source)
    wanted = set(products)
    kept = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_friendly_name() not in wanted]
    if wanted:
        with redirect_stdout(io.StringIO()):  # its progress bars, which would break into ours
            model = nncf.quantize(
                model,
                nncf.Dataset([dict(feed) for feed in feeds]),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(feeds),
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # x86 CPUs without VNNI add pairs of products in 16 bits, and what is larger is cut off: weights
                    # of seven bits cannot reach that. A bundle may meet such a CPU wherever it was made.
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
                ),
            )
    model.set_rt_info(arithmetic, list(ARITHMETIC))
    openvino.save_model(model, target, compress_to_fp16=False)


def choose_openvino(
    prepared: Prepared,
    target: Path,
    feeds: Sequence[Feed],
    goal: float,
    arithmetic: str = "f32",
    advance: Advance | None = None,
) -> Choice:
    """Write the INT8 IR, layers left in float until its outputs agree by `goal`; see `quantize_openvino`."""
    outputs = list(prepared.expected[0])

    def attempt(left: Sequence[Layer]) -> float:
        nodes = {layer.node for layer in prepared.layers} - {layer.node for layer in left}
        quantize_openvino(prepared.path, target, feeds, nodes, arithmetic)
        if advance:
            advance(len(left), len(prepared.layers))
        return agreement(prepared.expected, run_openvino(target, prepared.checked, outputs))

    return settle(prepared.layers, attempt, goal)


def run_openvino(path: Path, feeds: Sequence[Feed], outputs: Sequence[str]) -> list[Arrays]:
    """Outputs by name of a graph in the runtime's own OpenVINO back end, one dictionary per feed."""
    graph = OpenVinoGraph(str(path))
    try:
        return [
            {
                name: np.asarray(value)
                for name, value in zip(outputs, graph.run(dict(feed), outputs), strict=True)
            }
            for feed in feeds
        ]
    finally:
        graph.close()


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU computes bf16 itself."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
