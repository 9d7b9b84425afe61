"""Which layers to leave in float: those that buy accuracy back, the cheapest first, until a target is met."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from tvau_edge.quantize.activations import Activation
from tvau_edge.quantize.simulate import decibels, gated_error, product_error
from tvau_edge.quantize.weights import array_of

_TRIES = 16  # graphs that are made to find layers which need not stay in float
_GATED = re.compile(r"(?P<mlp>.*\.mlp\.)(?P<part>gate|up)_proj\.weight")


@dataclass(frozen=True)
class Layer:
    """One matrix product that may be quantized.

    Attributes:
        node: its name in the graph.
        weight: name of its weight.
        tensor: name of its input.
        cost: numbers in its weight, times the rows it has per temporal patch: multiplications.
        error: share of its output that INT8 changes, by `simulate.product_error`; of gate and up, of the output
            of the MLP that they are in, by `simulate.gated_error`.
    """

    node: str
    weight: str
    tensor: str
    cost: int
    error: float

    @property
    def decibels(self) -> float:
        """Signal to noise of the layer alone."""
        return decibels(self.error)


@dataclass(frozen=True)
class Point:
    """A graph on the way from all in INT8 to all in float.

    Attributes:
        left: layers in float.
        cost: share of all multiplications that is in float, 0..1.
        agreement: least cosine of its outputs with the float graph's.
    """

    left: int
    cost: float
    agreement: float


@dataclass(frozen=True)
class Choice:
    """What was decided, and on the way to it.

    Attributes:
        left: the layers in float.
        points: what was measured, by rising number of layers in float.
        chosen: that of the points which is the choice; not always the one that agrees most.
        reached: whether the target is met.
    """

    left: tuple[Layer, ...]
    points: tuple[Point, ...]
    chosen: Point
    reached: bool

    def record(self, layers: Sequence[Layer], target: float) -> dict[str, object]:
        """For the bundle's report."""
        return {
            "target": target,
            "agreement": self.chosen.agreement,
            "reached": self.reached,
            "left_in_float": [layer.weight for layer in self.left],
            "curve": [asdict(point) for point in self.points],
            "layers": {layer.weight: round(layer.decibels, 1) for layer in layers},
        }


def products_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The products of a graph with a trained matrix: those that can be quantized.

    The patch embedding is not among them: its weight is reshaped inside the graph, and its pixels are exact already.
    Neither are attention scores, AHD's cosine, or RAE's pooling, which have no trained matrix, nor RAE's small
    convolutions: they run once per dialogue on a few hundred cells, and differences of similarity maps are their input.
    """
    matrices = {t.name for t in model.graph.initializer if len(t.dims) == 2 and t.name.endswith(".weight")}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]


def layers_of(source: Path, inputs: dict[str, Activation]) -> list[Layer]:
    """The layers of a graph with the error of each.

    Args:
        source: float ONNX.
        inputs: what was seen of each product's input, by the name of its weight.
    """
    model = onnx.load(source, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def array(name: str) -> NDArray[np.float32]:
        return np.asarray(array_of(tensors[name], source.parent), np.float32)

    layers = []
    for node in products_of(model):
        name = node.input[1]
        weight = array(name)
        if gated := _GATED.fullmatch(name):
            parts = {p: f"{gated['mlp']}{p}_proj" for p in ("gate", "up", "down")}
            gate, up = ((array(f"{parts[p]}.weight"), array(f"{parts[p]}.bias")) for p in ("gate", "up"))
            down = array(f"{parts['down']}.weight")
            error = gated_error(inputs[name], gate, up, down, "gate" if gated["part"] == "gate" else "up")
        else:
            error = product_error(inputs[name], weight)
        layers.append(Layer(node.name, name, node.input[0], weight.size * inputs[name].count, error))
    return layers


def choose_float(
    layers: Sequence[Layer], measure: Callable[[Sequence[Layer]], float], target: float
) -> Choice:
    """Leave as few layers in float as reach the target.

    Layers are taken by error per multiplication: what costs least and disturbs most goes first. One, two, four… of
    them are tried until the target is met, then fewer, by halving. That order knows each layer's own error, not what
    the layers behind it make of it: one late in the order may be what counts. So halves, quarters… of those that were
    taken go back to INT8 where the target is met without them.

    Args:
        layers: all that may be quantized.
        measure: quantizes all but some layers and returns the agreement of the result.
        target: agreement to reach.
    """
    order = sorted(layers, key=lambda layer: layer.error / layer.cost, reverse=True)
    total = sum(layer.cost for layer in layers)
    points: dict[int, Point] = {}

    def meets(count: int) -> bool:
        if count not in points:
            cost = sum(layer.cost for layer in order[:count]) / total
            points[count] = Point(count, cost, measure(order[:count]))
        return points[count].agreement >= target

    good, bad = 0, -1
    while not meets(good) and good < len(order):
        bad, good = good, min(max(1, 2 * good), len(order))
    while meets(good) and good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if meets(middle) else (good, middle)
    left, returned = order[:good], []
    if good > 1 and meets(good):
        left, returned = _return_to_int8(left, measure, target, total)
    elif not meets(good):  # not even in float: the best of what was measured
        good = max(points, key=lambda count: points[count].agreement)
        left = order[:good]
    last = returned[-1] if returned else points[good]
    done = sorted([*points.values(), *returned], key=lambda point: (point.left, point.agreement))
    return Choice(tuple(left), tuple(done), last, last.agreement >= target)


def _return_to_int8(
    left: Sequence[Layer], measure: Callable[[Sequence[Layer]], float], target: float, total: int
) -> tuple[list[Layer], list[Point]]:
    """Fewer layers in float that still meet the target, and what was measured of each step to them."""
    kept, points, tries = list(left), [], 0
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept) and tries < _TRIES:
            rest = kept[:start] + kept[start + size :]
            tries += 1
            agreement = measure(rest)
            if agreement >= target:
                kept = rest
                points.append(Point(len(rest), sum(layer.cost for layer in rest) / total, agreement))
            else:
                start += size
        size //= 2
    return kept, points
