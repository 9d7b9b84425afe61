"""Run a bundle's vision graph and RAE on two back ends, compare what they give, and time both.

    python scripts/compare_backends.py BUNDLE VIDEO [--backend tensorrt] [--precision auto] [--against onnxruntime]
        [--patches 8] [--json FILE]

The frames are real, from the video. The report says for each tensor cosine and signal to noise against the other back
end's fp32, how far scores and heatmaps differ at most, and for each batch size the median and the 95th percentile of
the latency. Exit status 1 when a cosine is under
its limit: 0.999 for graphs in float, 0.99 for INT8 and bf16, as in the export.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import Sampler, TemporalPatch
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Vision

LIMITS = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.99, "int8": 0.99}
BATCHES = (1, 2, 4)
RUNS, WARM_UP = 30, 5


def frames_of(video: Path, bundle: Bundle, count: int) -> list[TemporalPatch]:
    """The first temporal patches of a video."""
    sampler, patches = Sampler(bundle.manifest.geometry, upscale=True), []
    with Source(str(video), "camera") as source:
        for frame in source:
            patches += sampler.push(frame)
            if len(patches) >= count:
                break
    return patches[:count]


def agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> dict[str, float]:
    """Cosine, and signal to noise in dB, of one tensor against the other."""
    a, b = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    noise = float(((a - b) ** 2).sum())
    ratio = float((b**2).sum()) / noise if noise else float("inf")
    return {
        "cosine": float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        "sqnr_db": float(10 * np.log10(ratio)),
    }


def latency(run: Callable[[], object]) -> dict[str, float]:
    """Median and 95th percentile of the milliseconds that a call takes."""
    for _ in range(WARM_UP):
        run()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e3)
    return {"median_ms": statistics.median(times), "p95_ms": statistics.quantiles(times, n=20)[-1]}


def compare(
    bundle: Bundle, video: Path, backend: str, against: str, precision: str = "auto", count: int = 0
) -> dict[str, Any]:
    """Compare two back ends on the frames of a video, `count` temporal patches of it but at least a window."""
    patches = frames_of(video, bundle, max(count, bundle.manifest.geometry.temporal_patches, *BATCHES))
    report: dict[str, Any] = {
        "schema": "tvau.comparison/1",
        "bundle": bundle.sha256,
        "model": bundle.manifest.name,
        "machine": platform.platform(),
        "video": video.name,
        "agreement": {},
        "latency": {},
    }
    seen = {}
    for name in (backend, against):
        vision = Vision.open(bundle, name, precision if name == backend else "fp32")
        rae = Rae.open(bundle, name)
        evidence = [vision.run([patch])[0] for patch in patches]
        window = np.stack([item.h_c for item in evidence[: bundle.manifest.geometry.temporal_patches]])
        seen[name] = {
            "h_c": np.stack([item.h_c for item in evidence]),
            "p_v": np.stack([item.p_v for item in evidence]),
            "p_an": rae.run(seen[backend]["window"] if seen else window),
            "window": window,
            "score": np.array([item.score for item in evidence]),
            "heatmap": np.stack([item.heatmap for item in evidence]),
        }
        batches = [size for size in BATCHES if size <= len(patches)]
        report["latency"][name] = {
            "precision": vision.file.precision,
            "vision": {size: latency(lambda n=size, v=vision: v.run(patches[:n])) for size in batches},
            "rae": latency(lambda r=rae, w=window: r.run(w)),
        }
        vision.close()
        rae.close()
    limit = LIMITS[report["latency"][backend]["precision"]]
    for tensor in ("h_c", "p_v", "p_an"):
        found = agreement(seen[backend][tensor], seen[against][tensor])
        report["agreement"][tensor] = {**found, "limit": limit, "good": found["cosine"] >= limit}
    report["patches"] = len(patches)
    report["differences"] = {
        name: float(np.abs(seen[backend][name] - seen[against][name]).max()) for name in ("score", "heatmap")
    }
    report["good"] = all(value["good"] for value in report["agreement"].values())
    return report


def main() -> int:
    """Compare, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("video", type=Path)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--against", default="onnxruntime")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--patches", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = compare(
        Bundle.open(options.bundle),
        options.video,
        options.backend,
        options.against,
        options.precision,
        options.patches,
    )
    for tensor, found in report["agreement"].items():
        verdict = "good" if found["good"] else "BAD"
        print(
            f"{tensor:4} cosine {found['cosine']:.6f}  {found['sqnr_db']:6.1f} dB  limit {found['limit']}  {verdict}"
        )
    most = report["differences"]
    print(
        f"{report['patches']} patches: score differs by {most['score']:.4f}, heatmap by {most['heatmap']:.4f} at most"
    )
    for name, times in report["latency"].items():
        for size, found in times["vision"].items():
            spent = f"{found['median_ms']:8.2f} ms (95 %: {found['p95_ms']:.2f})"
            print(f"{name:12} {times['precision']} batch {size}: {spent}")
        print(f"{name:12} rae: {times['rae']['median_ms']:.2f} ms")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
