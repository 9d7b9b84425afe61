"""A stand-in for CUDA's runtime, strict where the real one is.

Memory of the device is memory of the host, kept apart: a copy in the wrong direction, beyond a buffer's end, or of
memory that was freed is an error, and between capture's begin and end work is noted down and not done.
"""

import ctypes


class FakeCuda:
    """libcudart: functions by name, as ctypes calls them."""

    def __init__(self, free=6 << 30, total=8 << 30):
        self.free, self.total = free, total
        self.blocks = {}  # address -> (memory, "device" or "host")
        self.streams, self.graphs, self.recording = {}, {}, {}
        self.launches = self.captures = 0
        self.refuse_capture = False
        for name in dir(type(self)):
            if name.startswith("cuda"):
                setattr(self, name, self._function(getattr(self, name)))

    @staticmethod
    def _function(method):
        """A function on which ctypes' declarations can be set, and which reports errors as numbers."""

        def call(*arguments):
            plain = [getattr(argument, "value", argument) for argument in arguments]
            try:
                return method(*plain) or 0
            except CudaError as error:
                return error.status

        return call

    def _reserve(self, pointer, size, kind):
        if size > self.free:
            raise CudaError(2)
        memory = (ctypes.c_uint8 * max(size, 1))()
        address = ctypes.addressof(memory)
        self.blocks[address] = (memory, kind)
        self.free -= size
        pointer._obj.value = address

    def _release(self, address, kind):
        if self.blocks.get(address, (None, None))[1] != kind:
            raise CudaError(1)
        self.free += len(self.blocks.pop(address)[0])

    def check(self, address, size, kind):
        memory, of = self.blocks.get(address, ((), None))
        if of != kind or size > len(memory):
            raise CudaError(1)

    def give(self, stream, work):
        """Do work on a stream, or note it down while it is captured."""
        if stream not in self.streams:
            raise CudaError(400)
        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            work()

    def cudaGetErrorString(self, status):
        return {1: b"invalid argument", 2: b"out of memory", 400: b"invalid resource handle"}.get(
            status, b"error"
        )

    def cudaGetDevice(self, pointer):
        pointer._obj.value = 0

    def cudaDeviceGetAttribute(self, pointer, kind, device):
        pointer._obj.value = {75: 8, 76: 7, 16: 8}[kind]

    def cudaMemGetInfo(self, free, total):
        free._obj.value, total._obj.value = self.free, self.total

    def cudaMalloc(self, pointer, size):
        self._reserve(pointer, size, "device")

    def cudaFree(self, address):
        self._release(address, "device")

    def cudaHostAlloc(self, pointer, size, flags):
        self._reserve(pointer, size, "host")

    def cudaFreeHost(self, address):
        self._release(address, "host")

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        kinds = {1: ("device", "host"), 2: ("host", "device")}[kind]
        self.check(target, size, kinds[0])
        self.check(source, size, kinds[1])
        self.give(stream, lambda: ctypes.memmove(target, source, size))

    def cudaStreamCreateWithFlags(self, pointer, flags):
        handle = 0x1000 + len(self.streams)
        self.streams[handle] = flags
        pointer._obj.value = handle

    def cudaStreamDestroy(self, stream):
        if self.streams.pop(stream, None) is None:
            raise CudaError(400)

    def cudaStreamSynchronize(self, stream):
        if stream not in self.streams or stream in self.recording:
            raise CudaError(400)

    def cudaStreamBeginCapture(self, stream, mode):
        if stream not in self.streams or stream in self.recording:
            raise CudaError(400)
        self.recording[stream] = []

    def cudaStreamEndCapture(self, stream, pointer):
        work = self.recording.pop(stream)
        if self.refuse_capture:
            raise CudaError(901)
        handle = 0x2000 + len(self.graphs)
        self.graphs[handle] = work
        pointer._obj.value = handle

    def cudaGraphInstantiateWithFlags(self, pointer, graph, flags):
        handle = 0x3000 + len(self.graphs)
        self.graphs[handle] = self.graphs[graph]
        self.captures += 1
        pointer._obj.value = handle

    def cudaGraphLaunch(self, graph, stream):
        self.launches += 1
        for work in self.graphs[graph]:
            self.give(stream, work)

    def cudaGraphDestroy(self, graph):
        if self.graphs.pop(graph, None) is None:
            raise CudaError(400)

    cudaGraphExecDestroy = cudaGraphDestroy


class CudaError(Exception):
    def __init__(self, status):
        self.status = status


class FakeDriver:
    """libcuda, for the device's name."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, pointer, index):
        pointer._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer, size, device):
        buffer.value = b"Orin (nvgpu)"
        return 0
