"""The vision pass: temporal patches become evidence, each encoded once, whatever the window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.openvino import OpenVinoGraph
from tvau_edge.runtime.backends.tensorrt import TensorRtGraph
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score
from tvau_edge.runtime.errors import BackendError, MissingExtraError
from tvau_edge.runtime.extras import installed
from tvau_edge.runtime.manifest import GraphFile


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


# Back ends by the name in the manifest, the preferred one first: how to load one, and the extra it needs.
BACKENDS: dict[str, tuple[Callable[[str, int | None], Graph], str | None]] = {
    "onnxruntime": (OnnxGraph, None),
    "openvino": (OpenVinoGraph, "openvino"),
    "tensorrt": (TensorRtGraph, None),
}
PRECISIONS = ("int8", "fp16", "fp32")  # the preferred one first; export holds each to the checkpoint


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one temporal patch shows; final, since attention never crosses temporal patches.

    Attributes:
        camera: name of the camera.
        index: number of the temporal patch.
        pts: seconds of the newer frame since the first of the source.
        time: epoch seconds of the newer frame.
        h_c: [2, H', W'] similarity to the normal and the abnormal prompts.
        heatmap: [H', W'] in 0..1.
        score: 0..1.
        p_v: [N, D] merged tokens for the language model.
    """

    camera: str
    index: int
    pts: float
    time: float
    h_c: NDArray[np.float32]
    heatmap: NDArray[np.float32]
    score: float
    p_v: NDArray[np.float32]


class Vision:
    """The vision graph with the class features in force.

    Args:
        graph: loaded.
        file: which file of the bundle it is.
        class_features: [2, D].
    """

    def __init__(self, graph: Graph, file: GraphFile, class_features: NDArray[np.float32]) -> None:
        self._graph = graph
        self.file = file
        self._features = class_features

    @classmethod
    def open(
        cls, bundle: Bundle, backend: str = "auto", precision: str = "auto", threads: int | None = None
    ) -> "Vision":
        """Load the bundle's vision graph.

        Args:
            bundle: verified.
            backend: a name in `BACKENDS`, or "auto": the first that is installed and in the bundle.
            precision: fp32, fp16, int8, or "auto": the first of `PRECISIONS` that the bundle has.
            threads: CPU threads; None leaves it to the back end.

        Raises:
            MissingExtraError: the back end's extra is not installed.
            BackendError: the bundle has no such graph, or the back end cannot load it.
        """
        file = choose_graph(bundle.manifest.vision, backend, precision)
        load, _ = BACKENDS[file.backend]
        return cls(load(str(bundle.file(file.file)), threads), file, bundle.class_features())

    def set_class_features(self, features: NDArray[np.float32]) -> None:
        """Use other class features [2, D] from the next patch on."""
        if features.shape != self._features.shape:
            raise ValueError(f"class features of shape {features.shape}, expected {self._features.shape}")
        self._features = np.ascontiguousarray(features, dtype=np.float32)

    def run(self, patches: Sequence[TemporalPatch]) -> list[Evidence]:
        """Encode temporal patches of any cameras in one batch."""
        frames = np.stack([patch.frames for patch in patches])  # [B, 2, H, W, 3]
        h_c, p_v = self._graph.run({"frames": frames, "class_features": self._features}, ("h_c", "p_v"))
        heat = heatmap(h_c)  # [B, H', W']
        return [
            Evidence(
                patch.camera,
                patch.index,
                patch.pts[1],
                patch.time,
                h_c[k],
                heat[k],
                patch_score(heat[k]),
                p_v[k],
            )
            for k, patch in enumerate(patches)
        ]

    def close(self) -> None:
        """Let go of the graph."""
        self._graph.close()


def runs_on(backend: str, graph: GraphFile) -> bool:
    """Whether a back end runs a graph: its own, and TensorRT the plain fp32 ONNX of ONNX Runtime as well.

    ONNX Runtime's INT8 graph is not for TensorRT, which takes no unsigned activations.
    """
    if graph.backend == backend:
        return True
    return backend == "tensorrt" and graph.backend == "onnxruntime" and graph.precision == "fp32"


def choose_graph(graphs: Sequence[GraphFile], backend: str, precision: str) -> GraphFile:
    """Pick a graph of the bundle for this machine.

    "auto" takes the first of `BACKENDS` that is installed and has a graph, and of its graphs the first of
    `PRECISIONS`.

    Raises:
        MissingExtraError: there are graphs, but only for back ends that are not installed.
        BackendError: there is no such graph, or no such back end; says which there are.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise BackendError(f"unknown back end {backend!r}; known: auto, {', '.join(BACKENDS)}")
    missing: MissingExtraError | None = None
    for name in BACKENDS if backend == "auto" else [backend]:
        _, extra = BACKENDS[name]
        fitting = [g for g in graphs if runs_on(name, g) and precision in ("auto", g.precision)]
        if not fitting:
            continue
        if extra is None or installed(extra):
            best = min(fitting, key=lambda graph: PRECISIONS.index(graph.precision))
            return best.model_copy(update={"backend": name})
        missing = MissingExtraError(f"back end {name}", extra)
    if missing is not None:
        raise missing
    there = ", ".join(sorted(f"{g.backend} {g.precision}" for g in graphs))
    raise BackendError(
        f"the bundle has no graph for back end {backend} at precision {precision}; it has: {there}"
    )
