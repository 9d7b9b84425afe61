"""Streaming beside encoding the whole window anew, graph by graph, and where the difference goes.

    python scripts/compare_streaming.py BUNDLE [--rounds 40] [--json FILE]

A step of a window of T' patches costs a streaming runtime one patch, and a runtime without a cache one batch of T'. If
a patch cost the same in both, the ratio would be T'. In each round every graph encodes patches alone and then a window
as one batch, on one thread and on all, so that drift hits all alike. Beside the ratio of wall times stands that of CPU
times: on one thread they tell what batching saves in arithmetic, and on all threads what a small graph loses by sharing
out each of its operators. The frames are drawn at random: what is in them does not matter for the time.

ONNX Runtime is also tried with threads that spin while a pass runs, which the runtime does not let them do.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tvau_edge.devices.host import usable_cores
from tvau_edge.runtime.backends.graphs import open_graph
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import preference

OUTPUTS = ("h_c", "p_v")
Frames = NDArray[np.uint8]
Pass = Callable[[Frames], list[NDArray[np.float32]]]


def passes(bundle: Bundle) -> dict[str, Pass]:
    """What is compared, by name."""
    features, cores, found = bundle.class_features(), usable_cores(), {}

    def of(run: Any) -> Pass:
        return lambda frames: run({"frames": frames, "class_features": features}, OUTPUTS)

    for graph in bundle.manifest.vision:
        if graph.backend not in ("onnxruntime", "openvino"):
            continue
        path, precisions = bundle.file(graph.file), [graph.precision]
        if (graph.backend, graph.precision) == ("openvino", "fp32") and preference("vision").bf16:
            precisions.append("bf16")
        for precision in precisions:
            for threads in dict.fromkeys((1, cores)):
                loaded = open_graph(graph.backend, path, precision, threads)
                found[f"{graph.backend} {precision}, {threads} thread(s)"] = of(loaded.run)
        if graph.backend == "onnxruntime":
            found[f"onnxruntime {graph.precision}, {cores} thread(s), spinning"] = of(spinning(path, cores))
    return found


def spinning(path: Path, threads: int) -> Any:
    """The runtime's own settings of ONNX Runtime, but for threads that spin until a pass ends."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs, outputs: [value.copy() for value in session.run(list(outputs), inputs)]


def measure(bundle: Bundle, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a patch alone and of a window as one batch, wall and CPU, and whether both agree bit by bit."""
    geometry = bundle.manifest.geometry
    rng = np.random.default_rng(0)
    window = rng.integers(
        0, 256, (geometry.temporal_patches, 2, geometry.height, geometry.width, 3), np.uint8
    )
    compared = passes(bundle)
    times: dict[str, list[list[float]]] = {name: [[], [], [], []] for name in compared}
    for turn in range(rounds + 1):
        for name, run in compared.items():
            alone, whole = _timed(run, [window[k : k + 1] for k in range(4)]), _timed(run, [window])
            if turn:  # the first warms up
                for kept, value in zip(times[name], (*alone, *whole), strict=True):
                    kept.append(value)
    rows = []
    for name, run in compared.items():
        wall_one, cpu_one, wall_all, cpu_all = (float(np.median(column)) for column in times[name])
        alone_p_v = [run(window[k : k + 1])[1] for k in range(len(window))]
        rows.append(
            {
                "graph": name,
                "patch_ms": wall_one,
                "window_ms": wall_all,
                "ratio": wall_all / wall_one,
                "patch_cpu_ms": cpu_one,
                "window_cpu_ms": cpu_all,
                "cpu_ratio": cpu_all / cpu_one,
                "batch_bit_equal": bool(np.array_equal(np.concatenate(alone_p_v), run(window)[1])),
            }
        )
    return rows


def _timed(run: Pass, inputs: list[Frames]) -> tuple[float, float]:
    """Milliseconds of a pass on average, of the wall and of the CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    for frames in inputs:
        run(frames)
    count = len(inputs) / 1e3
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def main() -> int:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(Bundle.open(options.bundle), options.rounds)
    print(f"{'graph':44} {'patch ms':>9} {'window ms':>9} {'ratio':>6} {'CPU ratio':>9}  bits")
    for row in rows:
        same = "equal" if row["batch_bit_equal"] else "differ"
        print(
            f"{row['graph']:44} {row['patch_ms']:9.2f} {row['window_ms']:9.2f} {row['ratio']:6.2f} "
            f"{row['cpu_ratio']:9.2f}  {same}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
