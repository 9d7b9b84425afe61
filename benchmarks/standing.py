"""What a camera costs whose scene stands still, with and without the motion gate.

    python -m tvau_edge.benchmarks.standing BUNDLE [--seconds 60] [--gate 6] [--source CLIP]

The scene is drawn: coarse shapes with a camera's noise, 768x432 at 12 frames per second, as H.264. With --source it
is the first picture of a clip instead, with the same noise.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tvau_edge.devices.host import usable_cores
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.service.pipeline import Pipeline
from tvau_edge.runtime.verdict import State, Verdict

WIDTH, HEIGHT, RATE = 768, 432, 12
NOISE = 2.0  # standard deviation in levels of 0..255


@dataclass(frozen=True, slots=True)
class Cost:
    """What watching the clip cost.

    Attributes:
        gate: threshold; None without a gate.
        patches: temporal patches of the clip.
        looked: of them, seen by the vision graph.
        cpu_seconds: on all cores, with decoding and scaling.
        seconds: of the clip.
    """

    gate: float | None
    patches: int
    looked: int
    cpu_seconds: float
    seconds: float


class Nowhere:
    """Takes what a pipeline publishes and counts the events."""

    events = 0

    def publish_verdict(self, verdict: Verdict) -> None:
        """Count the events."""
        self.events += verdict.phase == "start"

    def publish_state(self, camera: str, state: State) -> None:
        """Nobody listens."""

    def publish_heatmap(self, camera: str, jpeg: bytes) -> None:
        """Nobody listens."""


def scene(source: str | None) -> NDArray[np.uint8]:
    """A picture [432, 768, 3]: coarse shapes, or the first of a clip."""
    if source is not None:
        with Source(source, "still") as clip:
            return next(iter(clip)).scaled(WIDTH, HEIGHT)
    cells = np.random.default_rng(1).integers(40, 200, (HEIGHT // 24, WIDTH // 24, 3), dtype=np.uint8)
    return cells.repeat(24, axis=0).repeat(24, axis=1)


def write_still(path: Path, picture: NDArray[np.uint8], seconds: float) -> None:
    """Write a clip in which nothing but the noise changes."""
    rng = np.random.default_rng(2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "20", "g": str(4 * RATE)}
        for number in range(round(seconds * RATE)):
            noisy = np.clip(picture + rng.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def watch(bundle: Bundle, clip: Path, gate: float | None, seconds: float) -> Cost:
    """Watch the clip once, on one thread of the vision graph."""
    camera = {"name": "still", "source": str(clip), **({} if gate is None else {"motion_gate": gate})}
    site = parse_config({"bundle": bundle.path, "camera": [camera]}, "benchmark")
    vision = Vision.open(bundle, threads=1)
    try:
        pipeline = Pipeline(site, bundle, vision, Nowhere())
        summary = pipeline.run()
    finally:
        vision.close()
    return Cost(gate, summary.cameras[0].patches, pipeline.vision.patches, summary.cpu_seconds, seconds)


def main() -> None:
    """Print the table, and the same as JSON with --json FILE."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gate", type=float, default=6)
    parser.add_argument("--source")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "still.mp4"
        write_still(clip, scene(options.source), options.seconds)
        costs = [watch(bundle, clip, gate, options.seconds) for gate in (None, options.gate)]
    lines = [
        f"{bundle.manifest.name}: {options.seconds:g} s, {WIDTH}x{HEIGHT} at {RATE} frames per second, "
        f"noise of {NOISE:g} levels; {usable_cores()} cores",
        "| motion_gate | temporal patches | looked at | CPU seconds per minute of video |",
        "|---|---|---|---|",
    ]
    for cost in costs:
        per_minute = cost.cpu_seconds * 60 / cost.seconds
        lines.append(f"| {cost.gate or 'none'} | {cost.patches} | {cost.looked} | {per_minute:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        rows = [
            {"gate": c.gate, "patches": c.patches, "looked": c.looked, "cpu": c.cpu_seconds} for c in costs
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
