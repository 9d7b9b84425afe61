"""The vision pass: temporal patches become evidence, each encoded once, whatever the window."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.backends.graphs import Graph, open_graph
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.choice import Choice, choose_graph
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score

log = logging.getLogger(__name__)


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
        file: which file of the bundle it is, and how it is run.
        class_features: [2, D].
    """

    def __init__(self, graph: Graph, file: Choice, class_features: NDArray[np.float32]) -> None:
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
            backend: onnxruntime, openvino, tensorrt, or "auto"; see `choose_graph`.
            precision: fp32, fp16, int8, bf16, or "auto".
            threads: CPU threads; None leaves it to the back end.

        Raises:
            MissingExtraError: the back end's extra is not installed.
            BackendError: the bundle has no such graph, the CPU no bf16, or the back end cannot load it.
        """
        choice = choose_graph(bundle.manifest.vision, backend, precision)
        log.info("vision: %s %s: %s", choice.backend, choice.precision, choice.reason)
        return cls(
            open_graph(choice.backend, bundle.file(choice.file), choice.precision, threads),
            choice,
            bundle.class_features(),
        )

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
