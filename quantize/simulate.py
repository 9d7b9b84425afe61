"""What rounding to INT8 does to one matrix product, computed from sampled rows."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize.activations import Activation

_LEAST = 1e-12
# Of weights, on either side of zero. x86 CPUs without VNNI add pairs of products in 16 bits, and cut off what is
# larger: 2 x 255 x 64 just fits. With 127, ONNX Runtime's P_V at 7B widths had a cosine of 0.986 on such a CPU.
WEIGHT_STEPS = 63
Linear = tuple[NDArray[np.float32], NDArray[np.float32]]  # weight [in, out], bias [out]


def quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric INT8 per output channel: weight [in, out] -> int8 [in, out] of seven bits, scales [out]."""
    scales = np.maximum(np.abs(weight).max(axis=0) / WEIGHT_STEPS, _LEAST).astype(np.float32)  # [out]
    return np.clip(np.rint(weight / scales), -WEIGHT_STEPS, WEIGHT_STEPS).astype(np.int8), scales


def product_error(seen: Activation, weight: NDArray[np.float32], columns: int = 256) -> float:
    """How much of rows @ weight [K, N] rounding changes: mean over rows of |change|^2 / |row|^2.

    Per row, since the norms that follow divide each token by its own length: a token that is quiet beside a loud one
    loses everything to a step that was made for the loud one, and a mean over all would not show it.

    Args:
        seen: the product's input, rounded to uint8 per tensor.
        weight: rounded to int8 per channel.
        columns: of the weight that are looked at, at most, evenly spread.
    """
    weight = weight[:, :: max(1, weight.shape[1] // columns)]
    return relative(seen.rows @ weight, _rounded(seen) @ _rounded_weight(weight))


def gated_error(
    seen: Activation,
    gate: Linear,
    up: Linear,
    down: NDArray[np.float32],
    rounded: Literal["gate", "up"],
    columns: int = 256,
) -> float:
    """How much of down(silu(gate(x)) * up(x)) changes when one of gate and up is rounded, as `product_error`.

    Seen alone, either is as good as any other product. What it does shows behind their product: a gate that is off by
    one where up is 400 moves the block's output by 400.
    """
    rows, rough = seen.rows, _rounded(seen)
    g, u = rows @ gate[0] + gate[1], rows @ up[0] + up[1]
    down = down[:, :: max(1, down.shape[1] // columns)]
    exact = (_silu(g) * u) @ down
    if rounded == "gate":
        g = rough @ _rounded_weight(gate[0]) + gate[1]
    else:
        u = rough @ _rounded_weight(up[0]) + up[1]
    return relative(exact, (_silu(g) * u) @ down)


def relative(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean over rows of |found - exact|^2 / |exact|^2."""
    change = (found - exact).astype(np.float64)
    size = np.maximum((exact.astype(np.float64) ** 2).sum(axis=1), 1e-30)
    return float(((change**2).sum(axis=1) / size).mean())


def _rounded(seen: Activation) -> NDArray[np.float32]:
    scale, zero = seen.range.affine()
    steps = np.clip(np.rint(seen.rows / scale) + float(zero), 0, 255)
    return np.asarray((steps - float(zero)) * scale, np.float32)


def _rounded_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    whole, scales = quantize_weight(weight)
    return np.asarray(whole * scales, np.float32)


def _silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -80, 80))), np.float32)


def decibels(error: float) -> float:
    """Signal to noise of a relative squared error."""
    return float(-10 * np.log10(max(error, 1e-30)))
