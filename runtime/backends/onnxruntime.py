"""ONNX Runtime on the CPU."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import BackendError


class OnnxGraph:
    """An ONNX model in ONNX Runtime.

    Args:
        path: of the .onnx file.
        threads: of one run; None: all cores.

    Raises:
        BackendError: the file is damaged or holds what this version cannot run.
    """

    backend = "onnxruntime"

    def __init__(self, path: str, threads: int | None = None) -> None:
        import onnxruntime  # 30 MB that a process with another back end does not need

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Measured on the reference, peak of a process that ran batches of 1 and 4: 114 MiB like this, 136 with the
        # memory pattern, which adds a block for each batch size, and 186 without the arena, since the C library
        # then keeps the freed tensors in pieces; and this is 6 % faster than without the arena.
        options.enable_cpu_mem_arena = True
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        # Idle threads would spin between patches and take the cores from decoder and dialogue.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._path = path
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base but Exception
            raise BackendError(f"ONNX Runtime cannot load {path}: {error}") from error

    def run(
        self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Run the graph; see `Graph`."""
        try:
            # Copied, since an output as it comes holds on to the whole arena, even beyond `close`.
            return [output.copy() for output in self._session.run(list(outputs), inputs)]
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in inputs.items())
            raise BackendError(f"ONNX Runtime cannot run {self._path} on {shapes}: {error}") from error

    def close(self) -> None:
        """Let go of the session."""
        del self._session
