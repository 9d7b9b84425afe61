"""A fresh process that measures one case: a job as JSON on standard input, the round as JSON into a file.

    python -m tvau_edge.benchmarks.latency.worker OUT.json < job.json

It imports only what its case needs: imports are part of a start, and of the memory.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from tvau_edge.benchmarks.latency.errors import BenchError, TvauError
from tvau_edge.benchmarks.latency.job import Facts, Job, Measure
from tvau_edge.benchmarks.latency.nvml import Nvml
from tvau_edge.benchmarks.latency.record import Round
from tvau_edge.benchmarks.latency.sensors import Meter
from tvau_edge.benchmarks.latency.statistics import settled
from tvau_edge.devices.host import peak_memory, resident_memory

PEERS = "tvau.bench.peers"  # entry points of rooms above: torch, which this room does not know
_HERE = "tvau_edge.benchmarks.latency"
MEASURES = {
    "decode": "stages",
    "sample": "stages",
    "vision": "stages",
    "window": "stages",
    "beside": "stages",
    "rae": "stages",
    "load": "starts",
    "start": "starts",
    "prefill": "language",
    "tokens": "language",
    "dialogue": "language",
    "naive_dialogue": "language",
    "publish": "delivery_stages",
    "glass_to_mqtt": "delivery_stages",
    "outbox": "delivery_stages",
    "paho": "delivery_stages",
    "matmul": "limits",
    "bandwidth": "limits",
}


def find_measure(name: str) -> Measure:
    """The function that measures a case.

    Raises:
        BenchError: nothing of that name is here, nor registered by another room.
    """
    if name in MEASURES:
        return cast(Measure, getattr(import_module(f"{_HERE}.{MEASURES[name]}"), name))
    for peer in entry_points(group=PEERS, name=name):
        return cast(Measure, peer.load())
    raise BenchError(f"nothing measures {name!r}")


def measure_round(job: Job) -> Round:
    """Measure one round in this process.

    Raises:
        TvauError: a part cannot be opened; says why.
    """
    facts: Facts = {}
    measure = find_measure(job.case.measure)
    nvml = Nvml.open()
    with closing(cast("Iterator[float]", measure(job, facts))) as queries:  # type: ignore[type-var]
        warm: list[float] = []
        steady = None
        if not job.case.once:
            warm, steady = _warm_up(queries, job.warm_up)
        with Meter(nvml=nvml) as meter:
            times = [next(queries)] if job.case.once else _queries(queries, job)
        resident = resident_memory()
    return Round(
        milliseconds=[round(seconds * 1e3, 5) for seconds in times],
        warm_up=len(warm),
        steady=steady,
        machine=meter.readings,
        memory_peak=peak_memory(),
        memory_steady=resident,
        facts=facts,
    )


def _warm_up(queries: Iterator[float], limit: float) -> tuple[list[float], bool]:
    """Let queries run until their times settle."""
    times: list[float] = []
    end = time.perf_counter() + limit
    while True:
        times.append(next(queries))
        if settled(times):
            return times, True
        if time.perf_counter() >= end:
            return times, False


def _queries(queries: Iterator[float], job: Job) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + job.seconds
    for seconds in queries:
        times.append(seconds)
        if len(times) >= job.queries or (len(times) > 1 and time.perf_counter() >= end):
            break
    return times


def main() -> None:
    """Measure the job on standard input; what is wrong goes to the file as {"missing": reason}."""
    logging.disable(logging.WARNING)
    out = Path(sys.argv[1])
    job = Job.model_validate_json(sys.stdin.read())
    try:
        out.write_text(measure_round(job).model_dump_json(), encoding="utf-8")
    except TvauError as error:
        out.write_text(json.dumps({"missing": str(error)}), encoding="utf-8")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
