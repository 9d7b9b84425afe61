"""What the machine could do: its matrix peak by the back ends' own products, and its memory bandwidth."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.devices.host import memory_free, usable_cores
from tvau_edge.runtime.backends.openvino import core
from tvau_edge.runtime.errors import BackendError
from tvau_edge.runtime.extras import load

_LEAST, _MOST = 256 << 20, 2 << 30  # bytes that are read for the bandwidth
_SHARE = 8  # of free memory, one part in so many


def matmul(job: Job, facts: Facts) -> Iterator[float]:
    """One product of two square matrices of `size` by the back end of the case, at its precision."""
    run = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}[job.case.backend](job)
    facts["operations"] = 2 * job.case.size**3
    while True:
        started = time.perf_counter()
        run()
        yield time.perf_counter() - started


def _weights(size: int, seed: int = 0, columns: int | None = None) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).normal(0, size**-0.5, (size, columns or size))
    return drawn.astype(np.float32)


def _onnxruntime(job: Job):
    size, threads = job.case.size, job.threads or usable_cores()
    return onnx_product(size, size, size, job.case.precision, threads)


def onnx_product(rows: int, inner: int, columns: int, precision: str, threads: int) -> Callable[[], object]:
    """A product [rows, inner] @ [inner, columns] by ONNX Runtime: each call computes it once.

    Float: MatMul. INT8: QuantizeLinear, DequantizeLinear around it, the form of our INT8 graphs.

    Raises:
        BackendError: it has none in this precision, "int8" or "fp32".
    """
    onnxruntime = load("onnxruntime", "back end onnxruntime", "bench")
    onnx = load("onnx", "the product in ONNX Runtime", "bench")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    kind, weights = onnx.TensorProto.FLOAT, _weights(inner, columns=columns)
    nodes, constants = [], {}
    if precision == "int8":
        scale = float(np.abs(weights).max() / 127)
        constants = {
            "w_q": np.round(weights / scale).astype(np.int8),
            "w_scale": np.float32(scale),
            "w_zero": np.int8(0),
            "x_scale": np.float32(4 / 127),
            "x_zero": np.uint8(128),
        }
        nodes = [
            helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"]),
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
            helper.make_node("MatMul", ["x_d", "w"], ["y"]),
        ]
    elif precision == "fp32":
        constants = {"w": weights}
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    else:
        raise BackendError(f"ONNX Runtime's CPU provider has no product in {precision}")
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", kind, [rows, inner])],
        [helper.make_tensor_value_info("y", kind, [rows, columns])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(0, 1, (rows, inner)).astype(np.float32)
    return lambda: session.run(None, {"x": x})


def _openvino(job: Job):
    size, threads = job.case.size, job.threads or usable_cores()
    return openvino_product(size, size, size, job.case.precision, threads)


def openvino_product(
    rows: int, inner: int, columns: int, precision: str, threads: int
) -> Callable[[], object]:
    """A product [rows, inner] @ [inner, columns] by OpenVINO: each call computes it once.

    INT8: FakeQuantize on both sides, the form of NNCF's graphs; its output is fp32.

    Raises:
        BackendError: this CPU has none in this precision, "int8", "bf16" or "fp32".
    """
    openvino = load("openvino", "back end openvino", "openvino")
    operators = openvino.opset13
    if precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU does not compute in bfloat16")
    x = operators.parameter([rows, inner], np.float32)
    weights = operators.constant(_weights(inner, columns=columns))
    if precision == "int8":
        ends = [operators.constant(np.float32(v)) for v in (-4, 4)]
        edges = [operators.constant(np.float32(v)) for v in (-5 * inner**-0.5, 5 * inner**-0.5)]
        left = operators.fake_quantize(x, *ends, *ends, 256)
        right = operators.fake_quantize(weights, *edges, *edges, 255)
        product = operators.matmul(left, right, False, False)
    else:
        product = operators.matmul(x, weights, False, False)
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    settings["INFERENCE_NUM_THREADS"] = str(threads)
    request = core().compile_model(openvino.Model([product], [x]), "CPU", settings).create_infer_request()
    tensor = openvino.Tensor(np.random.default_rng(1).normal(0, 1, (rows, inner)).astype(np.float32))
    return lambda: request.infer([tensor], share_inputs=True)


def _torch(job: Job):
    """Only where torch is installed anyway; nothing of this room asks for it."""
    torch = load("torch", "the product in torch", "export")
    torch.set_num_threads(job.threads or usable_cores())
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[job.case.precision]
    one, other = (torch.from_numpy(_weights(job.case.size, seed)).to(kind) for seed in (0, 1))
    return lambda: one @ other


def bandwidth(job: Job, facts: Facts) -> Iterator[float]:
    """Read memory once through, all cores: dot products over more bytes than the caches hold, where memory allows.

    Decoding a token reads every weight once, so reading is what it is compared with; a dot product is two
    operations per four bytes, which no core is short of.
    """
    cores = job.threads or usable_cores()
    size = min(_MOST, max(_LEAST, (memory_free() or 8 << 30) // _SHARE))
    parts = [np.ones(size // 4 // cores, np.float32) for _ in range(cores)]
    facts["bytes"] = sum(part.nbytes for part in parts)
    facts["cache"] = largest_cache()
    for _ in itertools.count():
        threads = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield time.perf_counter() - started


def largest_cache() -> int:
    """Bytes of the largest CPU cache, 0 where the system does not tell."""
    from pathlib import Path

    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdigit() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes)
