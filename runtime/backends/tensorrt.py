"""TensorRT on an NVIDIA GPU, 10.3 to 11.x: engines that `tvau engines build` made from the ONNX graph on this device.

Buffers are reserved once, copies go through pinned memory, and each batch size becomes one CUDA graph: copies in, the
engine, copies out, launched in one go. TensorRT itself comes with JetPack, or from NVIDIA's package index.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.backends.cuda import Buffer, Cuda, Recording
from tvau_edge.runtime.engines.cache import EngineCache, EngineKey, graph_digest
from tvau_edge.runtime.errors import BackendError

log = logging.getLogger(__name__)

OLDEST = (10, 3)  # of JetPack 6.2
NEWEST = 11


def open_tensorrt() -> Any:
    """Import TensorRT.

    Raises:
        BackendError: it is not installed, or of a version that we do not support.
    """
    try:
        module = import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT is not installed for this Python ({error}): on a Jetson, `apt install tensorrt "
            "python3-libnvinfer` and make the virtual environment with --system-site-packages; elsewhere, install "
            "the wheel `tensorrt`, or choose another back end"
        ) from error
    numbers = tuple(int(part) for part in re.findall(r"\d+", str(module.__version__))[:2])
    if not OLDEST <= numbers < (NEWEST + 1,):
        raise BackendError(
            f"TensorRT {module.__version__} is not supported: 10.3 to {NEWEST}.x are; JetPack 6.2 and later bring them"
        )
    return module


def make_logger(trt: Any) -> Any:
    """TensorRT's messages in our log: its errors as warnings, since what fails is told by who called."""
    severity = trt.ILogger.Severity
    warnings = (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps the last error, which says most."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in warnings[:2]:
                self.error = message.strip()
            log.log(logging.WARNING if severity in warnings else logging.DEBUG, "TensorRT: %s", message)

    return Logger()


@dataclass(slots=True)
class _Tensor:
    """One input or output of the engine: type, largest shape (-1 where the batch stands), and memory for that."""

    name: str
    is_input: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    buffer: Buffer

    def at(self, batch: int) -> tuple[int, ...]:
        return (batch, *self.shape[1:]) if self.shape[0] == -1 else self.shape

    def bytes(self, batch: int) -> int:
        return int(np.prod(self.at(batch))) * self.dtype.itemsize


@dataclass(slots=True)
class _Lane:
    """One batch size: its own execution context, since a recording is bound to the shapes that a context has."""

    context: Any
    warm: bool = False
    recordable: bool = True
    recording: Recording | None = None


class TensorRtGraph:
    """The engine of an ONNX graph.

    Args:
        path: of the .onnx file that the engine was built from.
        threads: not used; the GPU has its own.
        cache: where engines lie; None: `default_folder`.

    Raises:
        BackendError: TensorRT, CUDA or the engine is missing, or the engine is damaged or of another version.
    """

    backend = "tensorrt"

    def __init__(self, path: str, threads: int | None = None, cache: EngineCache | None = None) -> None:
        trt = open_tensorrt()
        self._path = path
        self._cuda = Cuda()
        key = EngineKey(str(trt.__version__), self._cuda.gpu(), graph_digest(Path(path)))
        plan = (cache or EngineCache()).load(key, Path(path))
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"TensorRT cannot load the engine of {path}: {self._logger.error}; `tvau engines build "
                f"{Path(path).parent} --again` builds it anew"
            )
        self._stream = self._cuda.stream()
        self._scratch: int = 0
        self._lanes: dict[int, _Lane] = {}
        self._tensors: dict[str, _Tensor] = {}
        self._user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        try:
            self._reserve(trt)
        except BackendError:
            self.close()
            raise

    def _reserve(self, trt: Any) -> None:
        """Reserve memory for the largest batch: the engine's own, and that of its inputs and outputs."""
        engine = self._engine
        self._scratch = self._cuda.allocate(max(1, int(engine.device_memory_size_v2)))
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.largest_batch = 1
        for name in inputs:
            shape = tuple(engine.get_tensor_shape(name))
            if -1 in shape:
                largest = tuple(engine.get_tensor_profile_shape(name, 0)[2])
                self.largest_batch = largest[0]
        for name in names:
            shape = tuple(int(side) for side in engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            if -1 in shape[1:]:
                raise BackendError(f"{self._path}: {name} {list(shape)} is free in more than its batch")
            size = (
                int(np.prod([self.largest_batch if side == -1 else side for side in shape])) * dtype.itemsize
            )
            self._tensors[name] = _Tensor(name, name in inputs, shape, dtype, self._cuda.buffer(size))

    def run(
        self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        """Run the graph; see `Graph`."""
        try:
            batch = self._check(inputs, outputs)
            for name, value in inputs.items():
                self._tensors[name].buffer.view(value.shape, value.dtype)[...] = value
            self._execute(batch)
        except (BackendError, ValueError) as error:
            shapes = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in inputs.items())
            raise BackendError(f"TensorRT cannot run {self._path} on {shapes}: {error}") from error
        results = (self._tensors[name] for name in outputs)
        return [t.buffer.view(t.at(batch), t.dtype).astype(np.float32, copy=True) for t in results]

    def _check(self, inputs: dict[str, NDArray[np.generic]], outputs: Sequence[str]) -> int:
        """The batch size of inputs that fit; ValueError for what does not."""
        batch = 1
        for tensor in self._tensors.values():
            if not tensor.is_input:
                continue
            value = inputs.get(tensor.name)
            if value is not None and tensor.shape[0] == -1 and value.ndim:
                batch = value.shape[0]
            if value is None or value.shape != tensor.at(batch) or value.dtype != tensor.dtype:
                raise ValueError(f"input {tensor.name} must be {list(tensor.shape)} {tensor.dtype}")
        unknown = [n for n in outputs if n not in self._tensors or self._tensors[n].is_input]
        if unknown or not 1 <= batch <= self.largest_batch:
            what = (
                f"no output {unknown[0]}"
                if unknown
                else f"the engine takes batches of 1 to {self.largest_batch}"
            )
            raise ValueError(what)
        return batch

    def _lane(self, batch: int) -> _Lane:
        """The context of a batch size, made when it is first asked for; they take turns in the same memory."""
        if batch in self._lanes:
            return self._lanes[batch]
        context = self._engine.create_execution_context(self._user_managed)
        if context is None:
            raise BackendError(f"no memory for an execution context: {self._logger.error}")
        context.set_device_memory(self._scratch, int(self._engine.device_memory_size_v2))
        for tensor in self._tensors.values():
            shaped = not tensor.is_input or tensor.shape[0] != -1
            if not shaped and not context.set_input_shape(tensor.name, tensor.at(batch)):
                raise BackendError(
                    f"no shape {list(tensor.at(batch))} for {tensor.name}: {self._logger.error}"
                )
            if not context.set_tensor_address(tensor.name, tensor.buffer.device):
                raise BackendError(f"no memory for {tensor.name}: {self._logger.error}")
        self._lanes[batch] = lane = _Lane(context)
        return lane

    def _execute(self, batch: int) -> None:
        """Do the work of one batch: the first time step by step, the second time recorded, then as one launch.

        TensorRT sets itself up for a shape at its first run, which cannot be recorded.
        """
        lane = self._lane(batch)
        if lane.warm and lane.recording is None and lane.recordable:
            self._record(lane, batch)
        if lane.recording is None:
            self._enqueue(lane, batch)
        else:
            lane.recording.launch(self._stream)
        self._stream.wait()
        lane.warm = True

    def _record(self, lane: _Lane, batch: int) -> None:
        try:
            self._stream.begin_capture()
            try:
                self._enqueue(lane, batch)
            finally:
                lane.recording = self._stream.end_capture()
        except BackendError as error:
            log.info("%s: no CUDA graph for batches of %d: %s", self._path, batch, error)
            lane.recordable = False
            if lane.recording is not None:
                lane.recording.close()
                lane.recording = None

    def _enqueue(self, lane: _Lane, batch: int) -> None:
        for tensor in self._tensors.values():
            if tensor.is_input:
                tensor.buffer.to_device(tensor.bytes(batch), self._stream)
        if not lane.context.execute_async_v3(self._stream.handle):
            raise BackendError(f"the engine failed: {self._logger.error}")
        for tensor in self._tensors.values():
            if not tensor.is_input:
                tensor.buffer.to_host(tensor.bytes(batch), self._stream)

    def close(self) -> None:
        """Let go of the engine and of all memory."""
        for lane in self._lanes.values():
            if lane.recording is not None:
                lane.recording.close()
        self._lanes = {}
        self._engine = self._runtime = None
        for tensor in self._tensors.values():
            tensor.buffer.free()
        self._tensors = {}
        if self._scratch:
            self._cuda.call("cudaFree", self._scratch)
            self._scratch = 0
        self._stream.close()
