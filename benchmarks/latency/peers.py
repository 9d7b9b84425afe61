"""What others do on the same machine, in the same run; torch's part is registered by the room that has torch."""

import itertools
import time
from collections.abc import Iterator

import numpy as np

from tvau_edge.benchmarks.latency.footage import take_patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.runtime.backends.openvino import core
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import BackendError


def openvino_bf16(job: Job, facts: Facts) -> Iterator[float]:
    """The OpenVINO graph of the bundle with OpenVINO free to compute in bfloat16, which the runtime does not allow."""
    bundle = Bundle.open(job.bundle, verify=False)
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU does not compute in bfloat16")
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
    if job.threads:
        settings["INFERENCE_NUM_THREADS"] = str(job.threads)
    path = bundle.file(job.case.file)
    request = core().compile_model(core().read_model(path), "CPU", settings).create_infer_request()
    features = bundle.class_features()
    taken = take_patches(bundle, job.source, 8)
    for patch in itertools.cycle(taken):
        started = time.perf_counter()
        request.infer({"frames": np.stack([patch.frames]), "class_features": features})
        [request.get_tensor(name).data.copy() for name in ("h_c", "p_v")]
        yield time.perf_counter() - started
