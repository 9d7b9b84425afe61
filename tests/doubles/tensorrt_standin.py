"""A stand-in for TensorRT's Python bindings, strict where the real ones are; `cuda_standin` is its CUDA.

Written from the public bindings of TensorRT 10.3 and 11.1 (python/src in NVIDIA/TensorRT): a class has the members
that it has there and no others, an attribute that does not exist cannot be set, and what 11 removed is gone. Networks
that are not strongly typed are refused altogether. Engines are not built: what is "built" is the ONNX graph itself,
which ONNX Runtime runs when the engine is executed, on the memory whose addresses it was given. So numbers are real,
times are not.
"""

import ctypes
import enum
import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime


class Strict:
    """An object like pybind's: it takes only the attributes that its class names."""

    members: tuple[str, ...] = ()

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in self.members:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


class IHostMemory:
    def __init__(self, content):
        self._content = content
        self.nbytes = len(content)

    def __buffer__(self, flags):  # Python 3.12; `__bytes__` serves the others
        return memoryview(self._content)

    def __bytes__(self):
        return self._content


def make_tensorrt(version, cuda):
    """The module `tensorrt` of a version, "10.3.0" or "11.1.0", on a `FakeCuda`."""
    old = version.startswith("10.")
    trt = SimpleNamespace(__version__=version)
    trt.built = []  # what each build was given, for tests
    trt.fail_build = trt.fail_execute = False

    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        pass

    ILogger.Severity = Severity

    class IProgressMonitor:
        def __init__(self):
            self._made = True

    flags = {"STRONGLY_TYPED": 1} | ({"EXPLICIT_BATCH": 0} if old else {"PREFER_AOT_PYTHON_PLUGINS": 2})
    trt.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
    names = ["DEBUG", "GPU_FALLBACK", "REFIT", "DISABLE_TIMING_CACHE", "TF32", "SPARSE_WEIGHTS", "STRIP_PLAN"]
    names += ["FP16", "INT8", "BF16", "FP8", "OBEY_PRECISION_CONSTRAINTS"] if old else ["MONITOR_MEMORY"]
    trt.BuilderFlag = enum.IntEnum("BuilderFlag", names, start=0)
    pools = ["WORKSPACE", "DLA_MANAGED_SRAM", "DLA_LOCAL_DRAM", "DLA_GLOBAL_DRAM", "TACTIC_DRAM"]
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", [*pools, "TACTIC_SHARED_MEMORY"])
    trt.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    strategies = ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    trt.ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", strategies)
    trt.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "INT64"])
    numpy_types = {
        "FLOAT": np.float32,
        "HALF": np.float16,
        "INT32": np.int32,
        "UINT8": np.uint8,
        "INT64": np.int64,
    }
    trt.nptype = lambda kind: numpy_types[kind.name]
    onnx_types = {1: "FLOAT", 10: "HALF", 6: "INT32", 2: "UINT8", 7: "INT64"}

    def io(value):
        sides = value.type.tensor_type.shape.dim
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in sides)
        return value.name, shape, trt.DataType[onnx_types[value.type.tensor_type.elem_type]]

    class ITensor(Strict):
        def __init__(self, value):
            self._name, self._shape, self._dtype = io(value)

        name = property(lambda self: self._name)
        shape = property(lambda self: self._shape)
        dtype = property(lambda self: self._dtype)

    class INetworkDefinition(Strict):
        def __init__(self):
            self._model = None

        num_inputs = property(lambda self: len(self._model.graph.input))
        num_outputs = property(lambda self: len(self._model.graph.output))

        def get_input(self, index):
            return ITensor(self._model.graph.input[index])

        def get_output(self, index):
            return ITensor(self._model.graph.output[index])

    class IParserError(Strict):
        def __init__(self, text):
            self._text = text

        def desc(self):
            return self._text

    class OnnxParser(Strict):
        def __init__(self, network, logger):
            assert isinstance(network, INetworkDefinition)
            assert isinstance(logger, ILogger)
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index):
            return IParserError(self._errors[index])

        def parse_from_file(self, model):
            assert isinstance(model, str)
            try:
                read = onnx.load(model)
                onnx.checker.check_model(read)
            except Exception as error:
                self._errors.append(f"Failed to parse ONNX model from file: {error}".splitlines()[0])
                return False
            # "TensorRT only supports symmetric quantization": a zero point is INT8, and zero.
            constants = {tensor.name: tensor for tensor in read.graph.initializer}
            for node in read.graph.node:
                if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
                    zero = onnx.numpy_helper.to_array(constants[node.input[2]])
                    if zero.dtype != np.int8 or zero.any():
                        self._errors.append(f"{node.name}: only symmetric quantization is supported")
                        return False
            self._network._model = read
            return True

    class IOptimizationProfile(Strict):
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class ITimingCache(Strict):
        def __init__(self, content):
            self._content = content

        def serialize(self):
            return IHostMemory(b"timings:" + self._content.removeprefix(b"timings:"))

    class IBuilderConfig(Strict):
        members = ("builder_optimization_level", "max_aux_streams", "progress_monitor", "profiling_verbosity")
        members += ("avg_timing_iterations", "engine_capability", "hardware_compatibility_level")
        members += ("int8_calibrator",) if old else ("tiling_optimization_level", "max_num_tactics")

        def __init__(self):
            self._flags, self._pools, self._profiles, self._cache = {trt.BuilderFlag.TF32}, {}, [], None
            self.progress_monitor = None
            self.builder_optimization_level = 3
            self.max_aux_streams = -1

        def set_flag(self, flag):
            self._flags.add(trt.BuilderFlag(flag))

        def clear_flag(self, flag):
            self._flags.discard(trt.BuilderFlag(flag))

        def get_flag(self, flag):
            return flag in self._flags

        def set_memory_pool_limit(self, pool, pool_size):
            assert isinstance(pool, trt.MemoryPoolType)
            assert isinstance(pool_size, int)
            self._pools[pool] = pool_size

        def add_optimization_profile(self, profile):
            assert isinstance(profile, IOptimizationProfile)
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache):
            assert isinstance(serialized_timing_cache, bytes)
            return ITimingCache(serialized_timing_cache)

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder(Strict):
        members = ("max_threads", "gpu_allocator", "error_recorder")

        def __init__(self, logger):
            assert isinstance(logger, ILogger)
            self._logger = logger

        def create_network(self, flags=0):
            if old and not flags & 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED):
                raise AssertionError("a network that is not strongly typed")
            return INetworkDefinition()

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            free = [t for t in map(io, network._model.graph.input) if -1 in t[1]]
            if free and not config._profiles:
                self._logger.log(Severity.ERROR, "Network has dynamic inputs, but no optimization profile")
                return None
            trt.built.append(config)
            monitor = config.progress_monitor
            for phase, parent, steps in (
                ("Building Engine", None, 2),
                ("Tactic Selection", "Building Engine", 3),
            ):
                if monitor is None:
                    break
                monitor.phase_start(phase, parent, steps)
                if not all(monitor.step_complete(phase, step) for step in range(steps)):
                    return None
                monitor.phase_finish(phase)
            if trt.fail_build:
                self._logger.log(Severity.ERROR, "Could not find any implementation for node MatMul_3")
                return None
            shapes = config._profiles[0]._shapes if config._profiles else {}
            head = json.dumps({"version": version, "shapes": shapes}).encode()
            return IHostMemory(b"ENGINE" + head + b"\n" + network._model.SerializeToString())

    class IExecutionContext(Strict):
        def __init__(self, engine, strategy):
            self._engine, self._addresses, self._memory = engine, {}, None
            self._shapes = {name: shape for name, shape, _ in engine._inputs.values()}
            self._managed = strategy is trt.ExecutionContextAllocationStrategy.USER_MANAGED

        def set_device_memory(self, memory, size):
            cuda.check(memory, size, "device")
            assert size >= self._engine.device_memory_size_v2
            self._memory = memory

        def set_input_shape(self, name, shape):
            low, _, high = self._engine._shapes[name]
            fits = all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))
            if fits:
                self._shapes[name] = tuple(shape)
            return fits

        def set_tensor_address(self, name, memory):
            assert name in self._engine._inputs | self._engine._outputs
            cuda.check(memory, 0, "device")
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            engine = self._engine
            known = all(-1 not in shape for shape in self._shapes.values())
            ready = set(self._addresses) == set(engine._inputs | engine._outputs)
            if trt.fail_execute or not known or not ready or (self._managed and self._memory is None):
                engine._logger.log(Severity.ERROR, "enqueueV3: error code 3: API Usage Error")
                return False
            shapes = dict(self._shapes)

            def work():
                feed = {}
                for name, shape in shapes.items():
                    dtype = np.dtype(trt.nptype(engine._inputs[name][2]))
                    size = int(np.prod(shape)) * dtype.itemsize
                    cuda.check(self._addresses[name], size, "device")
                    feed[name] = np.frombuffer(ctypes.string_at(self._addresses[name], size), dtype).reshape(
                        shape
                    )
                results = engine._session.run(list(engine._outputs), feed)
                for name, result in zip(engine._outputs, results, strict=True):
                    content = np.ascontiguousarray(result).tobytes()
                    cuda.check(self._addresses[name], len(content), "device")
                    ctypes.memmove(self._addresses[name], content, len(content))

            cuda.give(stream_handle, work)
            return True

    class ICudaEngine(Strict):
        def __init__(self, plan, logger):
            head, _, model = plan.removeprefix(b"ENGINE").partition(b"\n")
            read = onnx.load_from_string(model)
            self._shapes = json.loads(head)["shapes"]
            self._inputs = {value[0]: value for value in map(io, read.graph.input)}
            self._outputs = {value[0]: value for value in map(io, read.graph.output)}
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._logger = logger

        num_io_tensors = property(lambda self: len(self._inputs | self._outputs))
        device_memory_size_v2 = property(lambda self: 4096)

        def get_tensor_name(self, index):
            return list(self._inputs | self._outputs)[index]

        def get_tensor_mode(self, name):
            return trt.TensorIOMode.INPUT if name in self._inputs else trt.TensorIOMode.OUTPUT

        def get_tensor_shape(self, name):
            return (self._inputs | self._outputs)[name][1]

        def get_tensor_dtype(self, name):
            return (self._inputs | self._outputs)[name][2]

        def get_tensor_profile_shape(self, name, profile_index):
            assert profile_index == 0
            return [tuple(shape) for shape in self._shapes[name]]

        def create_execution_context(self, strategy=trt.ExecutionContextAllocationStrategy.STATIC):
            return IExecutionContext(self, strategy)

    class Runtime(Strict):
        members = ("max_threads", "gpu_allocator", "error_recorder", "temporary_directory")

        def __init__(self, logger):
            assert isinstance(logger, ILogger)
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine):
            assert isinstance(serialized_engine, bytes)
            head = serialized_engine.partition(b"\n")[0].removeprefix(b"ENGINE")
            if not serialized_engine.startswith(b"ENGINE") or json.loads(head)["version"] != version:
                self._logger.log(Severity.ERROR, "Serialization assertion failed: version tag does not match")
                return None
            return ICudaEngine(serialized_engine, self._logger)

    trt.ILogger, trt.IProgressMonitor = ILogger, IProgressMonitor
    trt.Builder, trt.Runtime, trt.OnnxParser = Builder, Runtime, OnnxParser
    return trt
