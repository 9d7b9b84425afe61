"""Moves outliers from activations into weights, where a scale per channel can hold them: SmoothQuant, folded.

Channel k of a product's input is divided by s_k and row k of its weight multiplied by it. What divides is always a
weight that is there already, so the graph computes the same and costs nothing more:

- the scale of an RMSNorm, before qkv, before gate and up, and before the merger (whose rows it repeats four times);
- up_proj, before down_proj: SwiGLU's product is linear in it. There lie the outliers of trained towers;
- the value part of qkv, before the attention's output projection: attention mixes tokens, never channels.

The second product of the merger and AHD's follow a GELU, through which nothing can be moved. How far to go is chosen
per place, by the rounding error of its products on sampled rows (SmoothQuant, Xiao et al. 2023, fixes it at 0.5).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from tvau_edge.quantize.activations import Activation
from tvau_edge.quantize.simulate import product_error
from tvau_edge.quantize.weights import array_of, loaded, size_of, write_graph

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # 0 moves nothing, 1 levels the activations
_WIDEST = 1e4  # a scale stays within 1 / _WIDEST.._WIDEST
_NORMS = ((r"(.*)\.norm1\.weight", ("attn.qkv",)), (r"(.*)\.norm2\.weight", ("mlp.gate_proj", "mlp.up_proj")))

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where outliers can be moved.

    Attributes:
        dividing: initializers whose last axis is divided, and the first of its channels there.
        products: weights [K, N] whose rows are multiplied.
        repeats: how often the dividing channels stand in a product's input, one after the other.
    """

    dividing: tuple[tuple[str, int], ...]
    products: tuple[str, ...]
    repeats: int = 1

    @property
    def names(self) -> set[str]:
        """Of all weights that are changed."""
        return {name for name, _ in self.dividing} | set(self.products)


def places(shapes: Mapping[str, Sequence[int]]) -> list[Place]:
    """The places of an exported vision graph, by the names that its weights have."""
    found = []
    for name in shapes:
        for pattern, products in _NORMS:
            if match := re.fullmatch(pattern, name):
                found.append(Place(((name, 0),), tuple(f"{match[1]}.{part}.weight" for part in products)))
        if name.endswith(".mlp.up_proj.weight"):
            part = name.removesuffix("up_proj.weight")
            found.append(Place(((name, 0), (f"{part}up_proj.bias", 0)), (f"{part}down_proj.weight",)))
        if name.endswith(".attn.qkv.weight"):
            part = name.removesuffix("qkv.weight")
            values = shapes[name][1] // 3 * 2
            found.append(Place(((name, values), (f"{part}qkv.bias", values)), (f"{part}proj.weight",)))
        if name.endswith("merger.ln_q.weight"):
            product = name.replace("ln_q.weight", "mlp.0.weight")
            if product in shapes:
                found.append(Place(((name, 0),), (product,), shapes[product][0] // shapes[name][0]))
    return [place for place in found if place.names <= shapes.keys()]


def sound(place: Place, graph: onnx.GraphProto) -> bool:
    """Whether a place's weights are its own and its products all that reads what is divided.

    An exporter may keep one copy of equal weights, such as the ones of norms that were never trained; dividing that
    would divide all who share it.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    if any(len(readers.get(name, ())) != 1 for name in place.names):
        return False
    (first,) = readers[place.dividing[0][0]]
    if first.op_type != "Mul":  # a norm's scale: all that reads the norm must be among the products
        return True
    reading = readers.get(first.output[0], [])
    while len(reading) == 1 and reading[0].op_type == "Reshape":
        reading = readers.get(reading[0].output[0], [])
    return {node.input[1] for node in reading if node.op_type == "MatMul"} == set(place.products) and all(
        node.op_type == "MatMul" for node in reading
    )


def smooth(
    source: Path,
    target: Path,
    inputs: Mapping[str, Activation],
    advance: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Activation], dict[str, float]]:
    """Write the same graph with smoother activations.

    Args:
        source: vision graph in fp32.
        target: .onnx; computes the same but for rounding.
        inputs: what was seen of each product's input, by the name of its weight.
        advance: told of progress as (places done, places in all).

    Returns:
        What the products' inputs are now, by the name of the weight, and the exponent chosen for each weight.
    """
    model = onnx.load(source, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {name: tuple(tensor.dims) for name, tensor in tensors.items()}
    after, alphas = dict(inputs), {}
    factors: dict[str, Array] = {}  # what each weight is multiplied by, along its rows, its columns, or both
    todo = [p for p in places(shapes) if set(p.products) <= inputs.keys() and sound(p, model.graph)]
    for number, place in enumerate(todo, 1):
        weights = [np.asarray(array_of(tensors[name], source.parent), np.float32) for name in place.products]
        alpha, scales = _best(inputs[place.products[0]], weights, place.repeats)
        for name in place.products:
            rows = np.tile(scales, place.repeats)
            after[name], alphas[name] = inputs[name].divided(rows), alpha
            factors[name] = factors.get(name, np.float32(1)) * rows[:, None]
        for name, start in place.dividing:
            whole = np.ones(shapes[name][-1], np.float32)
            whole[start : start + len(scales)] = 1 / scales
            factors[name] = factors.get(name, np.float32(1)) * whole
        if advance:
            advance(number, len(todo))

    def written() -> Iterator[onnx.TensorProto]:
        for name, tensor in tensors.items():
            if name in factors:
                value = array_of(tensor, source.parent) * factors[name]
                yield numpy_helper.from_array(value.astype(np.float32), name)
            else:
                yield loaded(tensor, source.parent)

    size = sum(size_of(tensor) for tensor in tensors.values())
    del model.graph.initializer[:]
    write_graph(model, target, written(), size)
    return after, alphas


def _best(seen: Activation, weights: Sequence[Array], repeats: int) -> tuple[float, Array]:
    """The exponent with the least rounding error, and its scales [K / repeats]."""
    peaks = seen.peaks.reshape(repeats, -1).max(axis=0)  # [K / repeats]
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    largest = largest.reshape(repeats, -1).max(axis=0)
    dead = (peaks <= 0) | (largest <= 0)
    choices = []
    for alpha in ALPHAS:
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = peaks**alpha / largest ** (1 - alpha) if alpha else np.ones_like(peaks)
            scales = scales / np.exp(np.mean(np.log(scales[~dead]))) if (~dead).any() else scales
        scales = np.where(dead, 1, np.clip(scales, 1 / _WIDEST, _WIDEST)).astype(np.float32)
        whole = np.tile(scales, repeats)
        moved = seen.divided(whole)
        error = sum(product_error(moved, weight * whole[:, None]) for weight in weights)
        choices.append((error, alpha, scales))
    _, alpha, scales = min(choices, key=lambda choice: choice[0])
    return alpha, scales
