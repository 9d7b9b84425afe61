"""OpenVINO on the CPU (extra: openvino)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import BackendError
from tvau_edge.runtime.extras import load


class OpenVinoGraph:
    """An OpenVINO IR, or an ONNX model, compiled for the CPU in fp32 arithmetic.

    Args:
        path: of the .xml file, its .bin beside it.
        threads: of one run; None: all cores.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
        BackendError: the file is damaged or holds what this version cannot run.
    """

    backend = "openvino"

    def __init__(self, path: str, threads: int | None = None) -> None:
        openvino = load("openvino", "back end openvino", "openvino")
        # What the graph says is what is computed: a CPU with bf16 would else round to it, unasked.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._path = path
        try:
            core = openvino.Core()
            self._request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load {path}: {_first_line(error)}") from error

    def run(
        self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Run the graph; see `Graph`."""
        try:
            self._request.infer(inputs)
            # The request reuses its output memory, so each result is copied out.
            return [self._request.get_tensor(name).data.copy() for name in outputs]
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in inputs.items())
            raise BackendError(
                f"OpenVINO cannot run {self._path} on {shapes}: {_first_line(error)}"
            ) from error

    def close(self) -> None:
        """Let go of the compiled model."""
        del self._request


def _first_line(error: Exception) -> str:
    lines = [
        line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")
    ]
    return lines[0] if lines else type(error).__name__
