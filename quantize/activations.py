"""What flows into the matrix products of a graph: the range of each channel, and a few rows to measure errors on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Feed = Mapping[str, NDArray[np.generic]]
_ROWS = 256  # about so many are kept of each input
_LEAST = 1e-12  # no scale is smaller: a channel or an activation may be zero throughout


@dataclass(frozen=True)
class Range:
    """The least and the largest value of an activation on the calibration patches."""

    low: float
    high: float

    def affine(self) -> tuple[np.float32, np.uint8]:
        """Scale and zero point of uint8 for this range, with zero exactly on a step."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max((high - low) / 255, _LEAST)
        return np.float32(scale), np.uint8(np.clip(round(-low / scale), 0, 255))

    def symmetric(self) -> np.float32:
        """Scale of int8 for this range, the zero point being 0."""
        return np.float32(max(abs(self.low), abs(self.high), 127 * _LEAST) / 127)


@dataclass(frozen=True, eq=False)
class Activation:
    """What was seen of one product's input [..., K].

    Attributes:
        low, high: [K] least and largest value of each channel.
        rows: [R, K] some of its rows.
        count: rows of a run.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    rows: NDArray[np.float32]
    count: int

    @property
    def range(self) -> Range:
        """Of all channels together."""
        return Range(float(self.low.min()), float(self.high.max()))

    @property
    def peaks(self) -> NDArray[np.float32]:
        """[K] largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def divided(self, scales: NDArray[np.float32]) -> "Activation":
        """The same with each channel divided by its scale [K]."""
        return replace(self, low=self.low / scales, high=self.high / scales, rows=self.rows / scales)


def observe(
    source: Path,
    tensors: Sequence[str],
    feeds: Sequence[Feed],
    advance: Callable[[int, int], None] | None = None,
) -> dict[str, Activation]:
    """Run a float graph and note what some of its tensors hold.

    Args:
        source: ONNX, its weights inside or beside it.
        tensors: names; the last axis of each is its channels.
        feeds: inputs of each run.
        advance: told of progress as (runs done, runs in all).
    """
    model = onnx.load(source, load_external_data=False)
    names = sorted(set(tensors))
    del model.graph.output[:]
    graph = model.graph
    for name, value in (("axis", 0), ("minus", -1)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), f"observe/{name}"))
    for name in names:
        # Rows of channels, whatever the rank; a product's last axis is fixed, so Reshape needs only that.
        graph.node.append(helper.make_node("Shape", [name], [f"observe/{name}/width"], start=-1))
        shape = ["observe/minus", f"observe/{name}/width"]
        graph.node.append(helper.make_node("Concat", shape, [f"observe/{name}/rows/shape"], axis=0))
        graph.node.append(
            helper.make_node("Reshape", [name, f"observe/{name}/rows/shape"], [f"observe/{name}/rows"])
        )
        for kind in ("ReduceMin", "ReduceMax"):
            inputs = [f"observe/{name}/rows", "observe/axis"]
            graph.node.append(helper.make_node(kind, inputs, [f"observe/{name}/{kind}"], keepdims=0))
            graph.output.append(
                helper.make_tensor_value_info(f"observe/{name}/{kind}", TensorProto.FLOAT, [None])
            )
        graph.output.append(
            helper.make_tensor_value_info(f"observe/{name}/rows", TensorProto.FLOAT, [None, None])
        )
    session = open_session(model, source.parent)
    each = -(-_ROWS // len(feeds))
    bounds = [
        output for name in names for output in (f"observe/{name}/ReduceMin", f"observe/{name}/ReduceMax")
    ]
    lows: dict[str, NDArray[np.float32]] = {}
    highs: dict[str, NDArray[np.float32]] = {}
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    counts: dict[str, int] = {}
    for number, feed in enumerate(feeds, 1):
        with_rows = number <= _ROWS
        outputs = session.run(
            bounds + ([f"observe/{name}/rows" for name in names] if with_rows else []), dict(feed)
        )
        for index, name in enumerate(names):
            low, high = outputs[2 * index], outputs[2 * index + 1]
            lows[name] = np.minimum(lows.get(name, low), low)
            highs[name] = np.maximum(highs.get(name, high), high)
            if with_rows:
                some = outputs[len(bounds) + index]
                counts[name] = len(some)
                rows[name].append(some[:: max(1, len(some) // each)][:each].copy())
        if advance:
            advance(number, len(feeds))
    return {
        name: Activation(lows[name], highs[name], np.concatenate(rows[name]), counts[name]) for name in names
    }


def open_session(model: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    """A session of a graph in memory whose weights may lie in `folder`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    # The graph comes from memory, its weights from where they lie.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
