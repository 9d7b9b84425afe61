"""A graph in INT8, step by step: what flows, smoothing, the layers to leave in float, the graph for ONNX Runtime."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tvau_edge.quantize.activations import Activation, Feed, observe, open_session
from tvau_edge.quantize.fallback import Choice, Layer, choose_float, layers_of, products_of
from tvau_edge.quantize.onnx_int8 import quantize_products
from tvau_edge.quantize.smooth import smooth

Advance = Callable[[int, int], None]
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float graph ready to be quantized.

    Attributes:
        path: of the graph, smoothed where that is possible.
        inputs: what was seen of each product's input, by the name of its weight.
        layers: its products, with the error of each.
        alphas: how far outliers were moved, by the name of the weight.
        expected: outputs of the unsmoothed graph on `checked`.
        checked: feeds that were not calibrated on.
    """

    path: Path
    inputs: dict[str, Activation]
    layers: list[Layer]
    alphas: dict[str, float]
    expected: list[Arrays]
    checked: list[Feed]

    def save(self, path: Path) -> dict[str, Any]:
        """Write what was seen to `path` (.npz); returns the rest, fit for JSON."""
        arrays = {
            f"{name}|{part}": getattr(seen, part)
            for name, seen in self.inputs.items()
            for part in ("low", "high", "rows")
        }
        np.savez(path, **arrays)  # type: ignore[arg-type]
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "alphas": self.alphas,
            "counts": {name: seen.count for name, seen in self.inputs.items()},
        }

    @classmethod
    def restore(
        cls, path: Path, arrays: Path, record: dict[str, Any], expected: list[Arrays], checked: Sequence[Feed]
    ) -> "Prepared":
        """What `save` has written, with the outputs to compare with."""
        with np.load(arrays, allow_pickle=False) as file:
            inputs = {
                name: Activation(*(file[f"{name}|{part}"] for part in ("low", "high", "rows")), count)
                for name, count in record["counts"].items()
            }
        layers = [Layer(**layer) for layer in record["layers"]]
        return cls(path, inputs, layers, record["alphas"], expected, list(checked))

    @property
    def ranges(self) -> dict[str, Any]:
        """Range of each product's input, by the name of the tensor."""
        return {layer.tensor: self.inputs[layer.weight].range for layer in self.layers}


def prepare(
    source: Path,
    target: Path,
    feeds: Sequence[Feed],
    checked: Sequence[Feed],
    outputs: Sequence[str],
    advance: Advance | None = None,
) -> Prepared:
    """Observe a float graph, smooth it into `target`, and rank its layers.

    Args:
        source: float ONNX.
        target: the smoothed graph.
        feeds: calibration inputs.
        checked: inputs on which results are compared.
        outputs: names that are compared.
        advance: told of progress.
    """
    model = onnx.load(source, load_external_data=False)
    products = products_of(model)
    seen = observe(source, [node.input[0] for node in products], feeds, advance)
    inputs = {node.input[1]: seen[node.input[0]] for node in products}
    after, alphas = smooth(source, target, inputs, advance)
    return Prepared(
        target,
        after,
        layers_of(target, after),
        alphas,
        run_graph(source, checked, outputs),
        list(checked),
    )


def run_graph(path: Path, feeds: Sequence[Feed], outputs: Sequence[str]) -> list[Arrays]:
    """Outputs of an ONNX graph by name, one dictionary per feed."""
    session = open_session(onnx.load(path, load_external_data=False), path.parent)
    found = []
    for feed in feeds:
        found.append(dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True)))
    return found


def agreement(expected: Sequence[Arrays], found: Sequence[Arrays]) -> float:
    """Least cosine of any output on any feed; -1 when one is not a number."""
    values = []
    for one, other in zip(expected, found, strict=True):
        for name, right in one.items():
            a, b = right.astype(np.float64).ravel(), other[name].astype(np.float64).ravel()
            size = float(np.linalg.norm(a) * np.linalg.norm(b))
            values.append(float(a @ b / max(size, 1e-30)))
    least = min(values)
    return least if np.isfinite(least) else -1.0


def quantize_onnx(prepared: Prepared, target: Path, goal: float, advance: Advance | None = None) -> Choice:
    """Write the INT8 graph for ONNX Runtime, layers left in float until its outputs agree by `goal`."""

    def make(left: Sequence[Layer]) -> float:
        nodes = {layer.node for layer in prepared.layers} - {layer.node for layer in left}
        quantize_products(prepared.path, target, nodes, prepared.ranges)
        if advance:
            advance(len(left), len(prepared.layers))
        outputs = list(prepared.expected[0])
        return agreement(prepared.expected, run_graph(target, prepared.checked, outputs))

    return settle(prepared.layers, make, goal)


def settle(layers: Sequence[Layer], make: Callable[[Sequence[Layer]], float], goal: float) -> Choice:
    """Choose the layers to leave in float, and see that the last graph made is the chosen one."""
    made: list[Sequence[Layer]] = []

    def measure(left: Sequence[Layer]) -> float:
        made.append(left)
        return make(left)

    choice = choose_float(layers, measure, goal)
    if tuple(made[-1]) != choice.left:
        make(choice.left)
    return choice
