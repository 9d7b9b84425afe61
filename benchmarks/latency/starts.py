"""From nothing to something: loading a graph, and from the start of a process to its first result."""

import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from tvau_edge.benchmarks.latency.footage import take_patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.vision import Vision


def load(job: Job, facts: Facts) -> Iterator[float]:
    """Load a vision graph; where a back end builds an engine and keeps none, that is in it."""
    bundle = Bundle.open(job.bundle, verify=False)
    started = time.perf_counter()
    model = Vision.open(bundle, job.case.backend, job.case.precision, job.threads)
    seconds = time.perf_counter() - started
    with closing(model):
        yield seconds


def start(job: Job, facts: Facts) -> Iterator[float]:
    """From the start of the process to the first heatmap (size 0) or to the first explained window (size 1).

    In it: the interpreter, the imports of `tvau run` and of the benchmark, every checksum of the bundle, loading,
    decoding the first frames. Not in it: waiting for the frames of a live camera.
    """
    import tvau_edge.runtime.service.watching  # noqa: F401 (what `tvau run` imports)

    bundle = Bundle.open(job.bundle)
    explained = bool(job.case.size)
    with closing(Vision.open(bundle, job.case.backend, job.case.precision, job.threads)) as model:
        length = bundle.manifest.geometry.temporal_patches if explained else 1
        evidence = [model.run([patch])[0] for patch in take_patches(bundle, job.source, length)]
    if explained:
        from tvau_edge.benchmarks.latency.language import open_dialogue
        from tvau_edge.runtime.detection.rae import Rae

        with closing(Rae.open(bundle, threads=job.threads)) as encoder:
            p_an = encoder.run(np.stack([one.h_c for one in evidence]))
        with open_dialogue(bundle, job.threads) as (_, dialogue):
            dialogue.run(np.stack([one.p_v for one in evidence]), p_an)
            yield time.monotonic() - job.spawned
    else:
        yield time.monotonic() - job.spawned
