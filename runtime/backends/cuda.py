"""The CUDA runtime through ctypes: memory, one stream, graphs of work that is launched again and again.

By ctypes and not by cuda-python, since a dozen functions are all we need: they have kept their names and arguments
from CUDA 11.4 to 13, the library comes with JetPack, and no wheel has to match its major version.
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tvau_edge.runtime.errors import BackendError

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal
_MAJOR, _MINOR, _PROCESSORS = 75, 76, 16  # of cudaDeviceAttr: compute capability, multiprocessors
_NAME_BYTES = 256
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cudaGetDevice": (POINTER(c_int),),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
}


class Cuda:
    """The CUDA runtime and its first device.

    Raises:
        BackendError: there is no CUDA, or no device.
    """

    def __init__(self) -> None:
        self._library = _open(_LIBRARIES)
        self._library.cudaGetErrorString.argtypes = (c_int,)
        self._library.cudaGetErrorString.restype = c_char_p
        for name, arguments in _SIGNATURES.items():
            getattr(self._library, name).argtypes = arguments
        device = c_int()
        self.call("cudaGetDevice", byref(device))
        self._device = device.value

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime.

        Raises:
            BackendError: it fails; says which and why.
        """
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            reason = self._library.cudaGetErrorString(status)
            raise BackendError(f"CUDA: {name} failed: {(reason or b'').decode(errors='replace')} ({status})")

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and bytes in all; on a Jetson those of the whole machine."""
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", byref(free), byref(total))
        return free.value, total.value

    def gpu(self) -> str:
        """What an engine depends on: compute capability, multiprocessors and name, such as "sm87-8-orin"."""
        major, minor, processors = (self._attribute(kind) for kind in (_MAJOR, _MINOR, _PROCESSORS))
        name = "".join(c if c.isalnum() else "-" for c in self._name().lower()).strip("-")
        return f"sm{major}{minor}-{processors}-{name}"

    def _attribute(self, kind: int) -> int:
        value = c_int()
        self.call("cudaDeviceGetAttribute", byref(value), kind, self._device)
        return value.value

    def _name(self) -> str:
        """The device's name, from the driver, since the runtime has it only inside a structure that changes."""
        driver = _open(("libcuda.so.1", "libcuda.so"))
        name, device = ctypes.create_string_buffer(_NAME_BYTES), c_int()
        if driver.cuInit(0) or driver.cuDeviceGet(byref(device), self._device):
            return "unknown"
        driver.cuDeviceGetName(name, _NAME_BYTES, device)
        return name.value.decode(errors="replace")

    def allocate(self, size: int) -> int:
        """Reserve memory on the device, without any beside it; `cudaFree` gives it back."""
        device = c_void_p()
        self.call("cudaMalloc", byref(device), size)
        return device.value or 0

    def stream(self) -> "Stream":
        """Make a stream."""
        return Stream(self)

    def buffer(self, size: int) -> "Buffer":
        """Reserve memory on the device with pinned memory of the host beside it."""
        return Buffer(self, size)


def _open(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError(
        f"no CUDA on this machine (tried {', '.join(names)}): on a Jetson, install JetPack's CUDA runtime "
        "(apt install nvidia-jetpack-runtime); elsewhere choose another back end"
    )


class Buffer:
    """Memory on the device and pinned memory of the host, of one size.

    Attributes:
        device: address on the device.
        size: bytes.
    """

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self.size = cuda, size
        device, host = c_void_p(), c_void_p()
        cuda.call("cudaMalloc", byref(device), size)
        try:
            cuda.call("cudaHostAlloc", byref(host), size, 0)
        except BackendError:
            cuda.call("cudaFree", device)
            raise
        self.device, self._host = device.value or 0, host.value or 0
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._host))

    def view(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """The beginning of the host's memory as an array."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._bytes[:count].view(dtype).reshape(shape)

    def to_device(self, size: int, stream: "Stream") -> None:
        """Copy the first `size` bytes to the device."""
        self._cuda.call("cudaMemcpyAsync", self.device, self._host, size, _TO_DEVICE, stream.handle)

    def to_host(self, size: int, stream: "Stream") -> None:
        """Copy the first `size` bytes to the host."""
        self._cuda.call("cudaMemcpyAsync", self._host, self.device, size, _TO_HOST, stream.handle)

    def free(self) -> None:
        """Give both back."""
        if self.device:
            del self._bytes
            self._cuda.call("cudaFree", self.device)
            self._cuda.call("cudaFreeHost", self._host)
            self.device = self._host = 0


class Stream:
    """A stream of work.

    Attributes:
        handle: of CUDA.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        handle = c_void_p()
        cuda.call("cudaStreamCreateWithFlags", byref(handle), _NON_BLOCKING)
        self.handle = handle.value or 0

    def wait(self) -> None:
        """Wait until all work is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def begin_capture(self) -> None:
        """Note down the work that is given from here on, instead of doing it."""
        self._cuda.call("cudaStreamBeginCapture", self.handle, _THREAD_LOCAL)

    def end_capture(self) -> "Recording":
        """The work that was noted down."""
        graph, launchable = c_void_p(), c_void_p()
        self._cuda.call("cudaStreamEndCapture", self.handle, byref(graph))
        try:
            self._cuda.call("cudaGraphInstantiateWithFlags", byref(launchable), graph, 0)
        finally:
            self._cuda.call("cudaGraphDestroy", graph)
        return Recording(self._cuda, launchable.value or 0)

    def close(self) -> None:
        """Destroy the stream."""
        if self.handle:
            self._cuda.call("cudaStreamDestroy", self.handle)
            self.handle = 0


class Recording:
    """Work that was captured, launched in one go."""

    def __init__(self, cuda: Cuda, handle: int) -> None:
        self._cuda, self._handle = cuda, handle

    def launch(self, stream: Stream) -> None:
        """Do the work on a stream."""
        self._cuda.call("cudaGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Destroy it."""
        if self._handle:
            self._cuda.call("cudaGraphExecDestroy", self._handle)
            self._handle = 0
