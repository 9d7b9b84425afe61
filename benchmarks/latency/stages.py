"""The stages of the runtime, each alone; a measure yields the seconds of its queries."""

import itertools
import time
from collections.abc import Iterator
from contextlib import closing

import numpy as np

from tvau_edge.benchmarks.latency.footage import patches, take_patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import Sampler, TemporalPatch
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.manifest import Thresholds

clock = time.perf_counter


def decode(job: Job, facts: Facts) -> Iterator[float]:
    """From packet to decoded picture, one frame per query."""
    while True:
        with Source(str(job.source), "bench") as source:
            frames = iter(source)
            while True:
                started = clock()
                if next(frames, None) is None:
                    break
                yield clock() - started


def sample(job: Job, facts: Facts) -> Iterator[float]:
    """From decoded frames to one temporal patch: choice by time stamp, scaling, conversion to RGB, pairing."""
    geometry = Bundle.open(job.bundle, verify=False).manifest.geometry
    while True:
        sampler = Sampler(geometry, upscale=True)
        spent = 0.0
        with Source(str(job.source), "bench") as source:
            for frame in source:
                started = clock()
                ready = sampler.push(frame)
                spent += clock() - started
                if ready:
                    yield spent / len(ready)
                    spent = 0.0


def _open(job: Job) -> tuple[Bundle, Vision]:
    bundle = Bundle.open(job.bundle, verify=False)
    return bundle, Vision.open(bundle, job.case.backend, job.case.precision, job.threads)


def vision(job: Job, facts: Facts) -> Iterator[float]:
    """The vision pass of the runtime, `samples` temporal patches per query."""
    bundle, model = _open(job)
    with closing(model):
        taken = itertools.cycle(take_patches(bundle, job.source, max(8, job.case.samples)))
        while True:
            batch = list(itertools.islice(taken, job.case.samples))
            started = clock()
            model.run(batch)
            yield clock() - started


def window(job: Job, facts: Facts) -> Iterator[float]:
    """A window that moves on by one temporal patch, encoded anew as a whole, as runtimes without a cache do.

    The streaming runtime encodes the new patch alone, which is the stage `vision`. Whether both give the same numbers
    is checked here: `bit_equal` when each patch goes through the graph by itself, and `largest_difference` from the
    pass that encodes the whole window as one batch.
    """
    bundle, model = _open(job)
    length = bundle.manifest.geometry.temporal_patches
    with closing(model):
        taken = take_patches(bundle, job.source, length + 4)
        cached: list[Evidence] = []
        for patch in taken:
            cached += model.run([patch])
        equal, largest = True, 0.0
        for start in range(len(taken) - length + 1):
            span = slice(start, start + length)
            alone = [model.run([patch])[0] for patch in taken[span]]
            whole = model.run(taken[span])
            for mine, again, together in zip(cached[span], alone, whole, strict=True):
                equal &= np.array_equal(mine.h_c, again.h_c) and np.array_equal(mine.p_v, again.p_v)
                largest = max(largest, float(np.abs(mine.h_c - together.h_c).max()))
        facts |= {"bit_equal": bool(equal), "largest_difference": largest}
        for start in itertools.cycle(range(len(taken) - length + 1)):
            started = clock()
            model.run(taken[start : start + length])
            yield clock() - started


def beside(job: Job, facts: Facts) -> Iterator[float]:
    """All that the runtime does for one temporal patch beside the model: decoding, sampling, heatmap, trigger.

    The graph's outputs are taken from one pass before; nothing of the model runs while the clock does.
    """
    bundle, model = _open(job)
    geometry = bundle.manifest.geometry
    with closing(model):
        (seen,) = model.run(take_patches(bundle, job.source, 1))
    trigger = Trigger(Thresholds(open=0.9, close=0.8), geometry.temporal_patches)
    h_c = seen.h_c[None]
    stream = patches(job.source, geometry)
    while True:
        started = clock()
        patch: TemporalPatch = next(stream)
        np.stack([patch.frames])
        heat = heatmap(h_c)[0]
        evidence = Evidence(
            patch.camera, patch.index, patch.pts[1], patch.time, h_c[0], heat, patch_score(heat), seen.p_v
        )
        trigger.push(evidence)
        yield clock() - started


def rae(job: Job, facts: Facts) -> Iterator[float]:
    """The region-aware anomaly encoder on a window; it runs once per dialogue."""
    bundle, model = _open(job)
    with closing(model):
        evidence = [
            model.run([patch])[0]
            for patch in take_patches(bundle, job.source, bundle.manifest.geometry.temporal_patches)
        ]
    h_c = np.stack([one.h_c for one in evidence])
    with closing(Rae.open(bundle, job.case.backend, job.threads)) as encoder:
        while True:
            started = clock()
            encoder.run(h_c)
            yield clock() - started
