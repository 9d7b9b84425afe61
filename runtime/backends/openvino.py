"""OpenVINO on the CPU (extra: openvino)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import BackendError
from tvau_edge.runtime.extras import load

# Where an IR says in what its floating point may be computed: bf16, or f32, which is meant when it says nothing.
ARITHMETIC = ("tvau", "arithmetic")


@cache
def core() -> Any:
    """The one `openvino.Core` of this process.

    On a CPU with AMX each gives the thread that made it a stack for signals. Of two that go in the order in which they
    came, the second puts the first one's stack back, which is no longer there, and the next signal is a crash.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
    """
    return load("openvino", "back end openvino", "openvino").Core()


class OpenVinoGraph:
    """An OpenVINO IR, or an ONNX model, compiled for the CPU.

    Floating point is computed in fp32, or in bf16 where the caller or the IR allows it and the CPU has it.

    Args:
        path: of the .xml file, its .bin beside it.
        threads: of one run; None: all cores.
        bf16: compute in bf16, whatever the IR says.

    Raises:
        MissingExtraError: the extra `openvino` is not installed.
        BackendError: the file is damaged or holds what this version cannot run.
    """

    backend = "openvino"

    def __init__(self, path: str, threads: int | None = None, *, bf16: bool = False) -> None:
        # What the graph says is what is computed: a CPU with bf16 would else round to it, unasked.
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._path = path
        try:
            model = core().read_model(path)
            if (bf16 or _allows_bf16(model)) and "BF16" in core().get_property(
                "CPU", "OPTIMIZATION_CAPABILITIES"
            ):
                settings["INFERENCE_PRECISION_HINT"] = "bf16"
            compiled = core().compile_model(model, "CPU", settings)
            self._request = compiled.create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot load {path}: {_first_line(error)}") from error
        self._inputs = {port.any_name: (port.partial_shape, port.element_type) for port in compiled.inputs}
        self._shape = load("openvino", "back end openvino", "openvino").PartialShape

    def run(
        self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Run the graph; see `Graph`."""
        try:
            self._check(inputs)
            self._request.infer(inputs)
            # The request reuses its output memory, so each result is copied out.
            return [self._request.get_tensor(name).data.copy() for name in outputs]
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in inputs.items())
            raise BackendError(
                f"OpenVINO cannot run {self._path} on {shapes}: {_first_line(error)}"
            ) from error

    def _check(self, inputs: dict[str, NDArray[np.generic]]) -> None:
        """Raise ValueError for an input that does not fit; OpenVINO converts and computes some of them all the same."""
        for name, (shape, kind) in self._inputs.items():
            value = inputs.get(name)
            fits = value is not None and shape.compatible(self._shape(list(value.shape)))
            if value is None or not fits or value.dtype != kind.to_dtype():
                raise ValueError(f"input {name} must be {shape} {kind.to_dtype()}")

    def close(self) -> None:
        """Let go of the compiled model."""
        del self._request


def _allows_bf16(model: Any) -> bool:
    path = list(ARITHMETIC)
    return bool(model.has_rt_info(path)) and model.get_rt_info(path).astype(str) == "bf16"


def _first_line(error: Exception) -> str:
    lines = [
        line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")
    ]
    return lines[0] if lines else type(error).__name__
