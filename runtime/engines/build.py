"""Building TensorRT engines on the device that will run them, from the ONNX graphs of a bundle.

Networks are strongly typed, always: each tensor has the type that the graph gives it, so the norms stay in float32
and INT8 is where the graph quantizes. Built weakly typed, in FP16, a 3B tower came out at a cosine of 0.14.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from tvau_edge.runtime.backends.cuda import Cuda
from tvau_edge.runtime.backends.tensorrt import make_logger, open_tensorrt
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import runs_on
from tvau_edge.runtime.engines.cache import EngineCache, EngineKey, graph_digest
from tvau_edge.runtime.errors import BackendError
from tvau_edge.runtime.manifest import GraphFile

_POOR = 9 << 30  # bytes of memory in all up to which a device counts as poor: boards of 8 GB
_WORKSPACE = 4 << 30  # bytes at most; more has never been of use to graphs like ours
_LEAST_WORKSPACE = 128 << 20


class Progress(Protocol):
    """Sees a build advance; the command line draws it, and the first boot publishes it."""

    def begin(self, graph: str) -> None:
        """A graph is next."""

    def phase(self, name: str, done: int, total: int) -> None:
        """TensorRT is at step `done` of `total` of a phase."""

    def wanted(self) -> bool:
        """False stops the build."""


class Silent:
    """Shows nothing, and never stops."""

    def begin(self, graph: str) -> None:
        """Say nothing."""

    def phase(self, name: str, done: int, total: int) -> None:
        """Say nothing."""

    def wanted(self) -> bool:
        """Go on."""
        return True


@dataclass(frozen=True, slots=True)
class Limits:
    """What the builder may use of a device.

    Attributes:
        workspace: bytes that tactics may use.
        level: TensorRT's optimization level, 0 to 5.
        poor: memory is short: fewer tactics are tried, no extra streams.
    """

    workspace: int
    level: int
    poor: bool


@dataclass(frozen=True, slots=True)
class Built:
    """One engine: its graph, where it lies, its size in bytes, and the seconds that it took; 0 when it was there."""

    graph: str
    engine: Path
    size: int
    seconds: float


def limits(free: int, total: int) -> Limits:
    """What the builder may use, given the device's memory in bytes."""
    poor = total <= _POOR
    share = free // 4 if poor else free // 2
    return Limits(min(_WORKSPACE, max(_LEAST_WORKSPACE, share)), 2 if poor else 3, poor)


def graphs_to_build(bundle: Bundle) -> list[GraphFile]:
    """The graphs of a bundle that TensorRT runs: of vision the best precision, and of the RAE.

    Raises:
        BackendError: it has none.
    """
    chosen = []
    for kind, graphs in (("vision", bundle.manifest.vision), ("RAE", bundle.manifest.rae)):
        fitting = [graph for graph in graphs if runs_on("tensorrt", graph)]
        if not fitting:
            raise BackendError(
                f"{bundle.path} has no {kind} graph that TensorRT runs; export it with ONNX graphs"
            )
        order = ("int8", "fp16", "fp32")
        chosen.append(min(fitting, key=lambda graph: order.index(graph.precision)))
    return chosen


def build_engines(
    bundle: Bundle,
    cache: EngineCache,
    *,
    batch: int = 4,
    again: bool = False,
    tf32: bool = True,
    progress: Progress | None = None,
) -> list[Built]:
    """Build the engines of a bundle, one after the other; those that are there already are left.

    Args:
        bundle: verified.
        cache: where they go.
        batch: largest batch of temporal patches: the number of cameras.
        again: build those that are there as well.
        tf32: let products of float32 round their factors to 10 bits, which tensor cores need.
        progress: sees it advance.

    Raises:
        BackendError: TensorRT or CUDA is missing, a graph is refused, memory or disk is short, or it was stopped.
    """
    trt, cuda, progress = open_tensorrt(), Cuda(), progress or Silent()
    gpu, built = cuda.gpu(), []
    for graph in graphs_to_build(bundle):
        onnx = bundle.file(graph.file)
        key = EngineKey(str(trt.__version__), gpu, graph_digest(onnx))
        progress.begin(graph.file)
        if not again and cache.has(key):
            built.append(Built(graph.file, cache.engine(key), cache.engine(key).stat().st_size, 0.0))
            continue
        started = time.perf_counter()
        free, total = cuda.memory()
        allowed = limits(free, total)
        _check_memory(onnx, free, allowed)
        builder = _Builder(trt, allowed, batch, tf32, progress)
        engine = builder.build(onnx, cache.timings(key))
        facts = {
            "graph": graph.file,
            "batch": batch,
            "workspace": allowed.workspace,
            "level": allowed.level,
            "tf32": tf32,
            "seconds": round(time.perf_counter() - started, 1),
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        path = cache.store(key, engine, facts)
        cache.store_timings(key, builder.timings)
        built.append(Built(graph.file, path, len(engine), time.perf_counter() - started))
        del builder, engine
        gc.collect()  # what one graph took is free before the next is begun
    return built


def _check_memory(onnx: Path, free: int, allowed: Limits) -> None:
    """Refuse a build that memory cannot carry; the weights lie in it three times: as read, as network, as engine."""
    data = onnx.with_name(f"{onnx.name}.data")
    weights = onnx.stat().st_size + (data.stat().st_size if data.exists() else 0)
    needed = 3 * weights + allowed.workspace
    if needed > free + _swap_free():
        short = (needed - free) // (1 << 30) + 1
        raise BackendError(
            f"building the engine of {onnx.name} needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: stop "
            f"other services, or add swap, which building may use: fallocate -l {short}G /swapfile && chmod 600 "
            "/swapfile && mkswap /swapfile && swapon /swapfile"
        )


def _swap_free(facts: Path = Path("/proc/meminfo")) -> int:
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return 0
    kilobytes = next((line.split()[1] for line in lines if line.startswith("SwapFree:")), "0")
    return int(kilobytes) * 1024


class _Builder:
    """TensorRT's builder for one graph."""

    def __init__(self, trt: Any, allowed: Limits, batch: int, tf32: bool, progress: Progress) -> None:
        self._trt, self._limits, self._batch, self._tf32 = trt, allowed, batch, tf32
        self._progress = progress
        self._logger = make_logger(trt)
        self.timings = b""

    def build(self, onnx: Path, timings: bytes) -> bytes:
        """Build the engine of a graph, with the timings of earlier builds.

        Raises:
            BackendError: the graph is refused, or no engine could be built.
        """
        trt = self._trt
        builder = trt.Builder(self._logger)
        # TensorRT 11 knows no other network, and still takes the flag.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(onnx)):
            errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            raise BackendError(
                f"TensorRT {trt.__version__} cannot read {onnx}: {'; '.join(errors) or 'no reason given'}"
            )
        config = self._configure(builder, network, onnx)
        cache = config.create_timing_cache(timings)
        config.set_timing_cache(cache, ignore_mismatch=False)
        monitor = _make_monitor(trt, self._progress)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            reason = (
                "it was stopped" if not self._progress.wanted() else self._logger.error or "no reason given"
            )
            raise BackendError(f"TensorRT {trt.__version__} built no engine of {onnx}: {reason}")
        self.timings = bytes(config.get_timing_cache().serialize())
        return bytes(plan)

    def _configure(self, builder: Any, network: Any, onnx: Path) -> Any:
        trt, allowed = self._trt, self._limits
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, allowed.workspace)
        config.builder_optimization_level = allowed.level
        if allowed.poor:
            config.max_aux_streams = 0
        if not self._tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        profile = builder.create_optimization_profile()
        free = False
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = tuple(int(side) for side in tensor.shape)
            if -1 in shape[1:]:
                raise BackendError(
                    f"{onnx}: input {tensor.name} {list(shape)} is free in more than its batch"
                )
            if shape[0] == -1:
                free = True
                sizes = [(size, *shape[1:]) for size in (1, 1, self._batch)]
                profile.set_shape(tensor.name, *sizes)
        if free:
            config.add_optimization_profile(profile)
        return config


def _make_monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress monitor, which tells ours; it is called from TensorRT's own threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            progress.phase(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            total = self._steps.get(phase_name, step + 1)
            progress.phase(phase_name, min(step + 1, total), total)
            return progress.wanted()

        def phase_finish(self, phase_name: str) -> None:
            total = self._steps.pop(phase_name, 1)
            progress.phase(phase_name, total, total)

    return Monitor()


Teller = Callable[[dict[str, object]], None]


class Told:
    """Tells each change of a build as a small table, at most one for each percent of a phase."""

    def __init__(self, tell: Teller) -> None:
        self._tell, self._graph, self._last = tell, "", ("", -1)

    def begin(self, graph: str) -> None:
        """A graph is next."""
        self._graph = graph
        self._tell({"state": "building", "graph": graph})

    def phase(self, name: str, done: int, total: int) -> None:
        """A phase advances."""
        percent = 100 * done // max(total, 1)
        if (name, percent) != self._last:
            self._last = (name, percent)
            self._tell({"state": "building", "graph": self._graph, "phase": name, "percent": percent})

    def wanted(self) -> bool:
        """Go on."""
        return True
