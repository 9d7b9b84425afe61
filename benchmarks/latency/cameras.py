"""How many cameras a machine carries: the largest number at the checkpoint's rate of which no patch is dropped."""

import itertools
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from tvau_edge.benchmarks.latency.footage import take_patches
from tvau_edge.benchmarks.latency.record import Cameras
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.intake import Intake
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.vision import Vision

_MOST = 256


def most_cameras(
    bundle: Bundle, source: Path, seconds: float, threads: int | None = None, backend: str = "auto"
) -> Cameras:
    """Search the number by doubling, then by halving the gap.

    The cameras' patches are ready before, so decoding is not in it: how much that takes, the stages `decode` and
    `sample` tell. They come through the runtime's own intake, at even distances, as live cameras'.
    """
    rate = 1 / bundle.manifest.geometry.seconds_per_patch
    dropped: dict[int, int] = {}
    with closing(Vision.open(bundle, backend, threads=threads)) as vision:
        taken = take_patches(bundle, source, 8)
        for _ in range(3):
            vision.run(taken[:1])

        def carries(count: int) -> bool:
            dropped[count] = drops(vision, taken, count, rate, seconds)
            return dropped[count] == 0

        low, high = 0, 1
        while high <= _MOST and carries(high):
            low, high = high, high * 2
        while high - low > max(1, low // 8) and low:
            middle = (low + high) // 2
            low, high = (middle, high) if carries(middle) else (low, middle)
        variant = f"{vision.file.backend} {vision.file.precision}"
    return Cameras(
        variant=variant, seconds=seconds, rate=rate, dropped=dict(sorted(dropped.items())), most=low or None
    )


def drops(vision: Vision, patches: list[TemporalPatch], count: int, rate: float, seconds: float) -> int:
    """Patches that are dropped when `count` live cameras give `rate` patches per second each for `seconds`."""
    names = [f"camera{number}" for number in range(count)]
    intake = Intake(names)
    end = threading.Event()

    def give() -> None:
        started, period = time.monotonic(), 1 / (rate * count)
        for number in itertools.count():
            wait = started + number * period - time.monotonic()
            if number * period >= seconds or (wait > 0 and end.wait(wait)):
                break
            patch = patches[number % len(patches)]
            intake.put(replace(patch, camera=names[number % count]), live=True)
        for name in names:
            intake.end(name)

    giver = threading.Thread(target=give, name="cameras", daemon=True)
    giver.start()
    try:
        while batch := intake.take():
            vision.run(batch)
    finally:
        end.set()
        giver.join()
    return sum(intake.dropped.values())
