"""The region-aware anomaly encoder on the device: a window of similarity maps becomes prompt embeddings."""

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.backends.graphs import Graph, open_graph
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import choose_graph


class Rae:
    """The RAE graph; it runs once per dialogue."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @classmethod
    def open(cls, bundle: Bundle, backend: str = "auto", threads: int | None = None) -> "Rae":
        """Load the bundle's RAE graph; arguments and errors as `Vision.open`."""
        choice = choose_graph(bundle.manifest.rae, backend, "auto", "rae")
        return cls(open_graph(choice.backend, bundle.file(choice.file), threads=threads))

    def run(self, h_c: NDArray[np.float32]) -> NDArray[np.float32]:
        """Encode a window: h_c [T', 2, H', W'], oldest first -> P_An [(T' - 1) (N_base + 10), D]."""
        p_an = self._steps(h_c)
        return p_an.reshape(-1, p_an.shape[-1])

    def run_longer(self, h_c: NDArray[np.float32], window: int) -> NDArray[np.float32]:
        """Encode a stretch of any length: a step sees its own two patches and no others.

        Args:
            h_c: [n, 2, H', W'], oldest first, n at least 2.
            window: T', the patches that the graph takes at once.

        Returns:
            P_An [(n - 1) (N_base + 10), D].
        """
        steps = window - 1
        whole = np.concatenate([h_c[:1]] * (-(len(h_c) - 1) % steps) + [h_c])  # to windows that share a patch
        parts = [self._steps(whole[start : start + window]) for start in range(0, len(whole) - 1, steps)]
        p_an = np.concatenate(parts)[1 - len(h_c) :]  # without the stillness that was put before
        return p_an.reshape(-1, p_an.shape[-1])

    def _steps(self, h_c: NDArray[np.float32]) -> NDArray[np.float32]:
        """P_An of a window, step by step: [T' - 1, N_base + 10, D]."""
        (p_an,) = self._graph.run({"h_c": np.ascontiguousarray(h_c, dtype=np.float32)}, ("p_an",))
        return p_an

    def close(self) -> None:
        """Let go of the graph."""
        self._graph.close()
