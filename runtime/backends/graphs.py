"""A loaded graph, whatever runs it, and the back ends that there are."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.openvino import OpenVinoGraph
from tvau_edge.runtime.backends.tensorrt import TensorRtGraph


class Graph(Protocol):
    """One loaded graph of one back end.

    Attributes:
        backend: name of the back end, as in the manifest.
    """

    backend: str

    def run(
        self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Run the graph on named inputs and return the named outputs.

        Raises:
            BackendError: the back end refuses; says what it was given.
        """

    def close(self) -> None:
        """Let go of the graph's memory."""


# Back ends by the name in the manifest, the preferred one first where no device profile says more: how to load a
# graph from (path, threads), and the extra that it needs.
BACKENDS: dict[str, tuple[Callable[[str, int | None], Graph], str | None]] = {
    "onnxruntime": (OnnxGraph, None),
    "openvino": (OpenVinoGraph, "openvino"),
    "tensorrt": (TensorRtGraph, None),
}


def open_graph(backend: str, path: Path, precision: str = "fp32", threads: int | None = None) -> Graph:
    """Load a graph.

    Args:
        backend: a name in `BACKENDS`.
        path: of the file.
        precision: bf16 has OpenVINO compute an fp32 graph in it; any other is what the file itself is in.
        threads: CPU threads; None leaves it to the back end.

    Raises:
        MissingExtraError: the back end's extra is not installed.
        BackendError: the back end cannot load it.
    """
    if (backend, precision) == ("openvino", "bf16"):
        return OpenVinoGraph(str(path), threads, bf16=True)
    load, _ = BACKENDS[backend]
    return load(str(path), threads)
