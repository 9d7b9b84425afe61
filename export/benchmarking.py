"""What `tvau bench` uses of this room, by entry points: bundles of random weights, and torch beside the back ends.

The room of the benchmarks lies below and knows neither torch nor checkpoints; it finds these by name when this room
is installed.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tvau_edge.benchmarks.latency.footage import draw_footage, take_patches
from tvau_edge.benchmarks.latency.job import Facts, Job
from tvau_edge.devices.host import disk_free, usable_cores
from tvau_edge.export.bundle import Options, check_type, export_bundle
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError, ExportError
from tvau_edge.export.synthetic import SEVEN_B, THREE_B, Widths, write_synthetic
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import DiskFullError
from tvau_edge.runtime.manifest import Geometry

SHAPES = {"7b": SEVEN_B, "3b": THREE_B}
CLIP = Geometry(width=448, height=252, frames_per_second=4, temporal_patches=8)
_BYTES = 8  # on disk for each weight, at the fullest: bfloat16, fp32 or f16, and what is quantized from it


def make_synthetic_bundle(
    name: str, blocks: int | None, folder: Path, language: str = "q8_0"
) -> tuple[Path, Path]:
    """Make a bundle of the true widths with random weights, or find the one that was made before.

    Args:
        name: "7b" or "3b".
        blocks: of the vision tower, of 32; language layers in proportion, at least one. None for all.
        folder: where the checkpoint and the bundle are kept.
        language: GGUF type of the language model.

    Returns:
        Folder of the bundle, folder of the checkpoint.

    Raises:
        ExportError: there is no such shape or type, or it has fewer blocks.
        DiskFullError: no room for it.
    """
    if name.lower() not in SHAPES:
        raise ExportError(f"--synthetic {name}: there is no such shape; known: {', '.join(SHAPES)}")
    widths = SHAPES[name.lower()]
    depth, layers = widths.vision.depth, widths.text.num_hidden_layers
    if blocks is not None and not 1 <= blocks <= depth:
        raise ExportError(f"--blocks {blocks}: {name} has {depth} vision blocks")
    check_type(language)
    blocks = blocks or depth
    widths = widths.with_layers(blocks, max(1, round(layers * blocks / depth)))
    return make_bundle(widths, CLIP, folder / f"{name.lower()}-{blocks}", language)


def make_bundle(widths: Widths, clip: Geometry, folder: Path, language: str = "q8_0") -> tuple[Path, Path]:
    """Make checkpoint and bundle of any widths below `folder`; see `make_synthetic_bundle`."""
    checkpoint, bundle, frames = folder / "checkpoint", folder / f"bundle-{language}", folder / "drawn.mp4"
    if not whole(checkpoint):
        check_room(widths, folder)
        # Without outliers: those cost accuracy, of which there is none here, and no time.
        write_synthetic(checkpoint, widths, clip=clip)
    if not frames.exists():
        part = frames.with_name("part.mp4")
        draw_footage(part, max(640, clip.width), max(360, clip.height), seconds=20)
        part.rename(frames)
    export_bundle(checkpoint, bundle, Options(frames, language=language))
    return bundle, checkpoint


def whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        Checkpoint.open(checkpoint)
    except CheckpointError:
        return False
    return True


def check_room(widths: Widths, folder: Path) -> None:
    """Make sure that the disk has room, before hours of writing.

    Raises:
        DiskFullError: it has not.
    """
    vision, text = widths.vision, widths.text
    tower = vision.depth * vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size)
    layer = text.hidden_size * (2 * text.hidden_size + 3 * text.intermediate_size)
    weights = tower + text.num_hidden_layers * layer + 2 * text.vocab_size * text.hidden_size
    free = disk_free(folder)
    if free < _BYTES * weights:
        raise DiskFullError(
            f"{folder}: this shape needs about {_BYTES * weights >> 30} GiB, the disk has {free >> 30} GiB free; "
            "--blocks makes it smaller, --work puts it elsewhere"
        )


def torch_vision(job: Job, facts: Facts) -> Iterator[float]:
    """The checkpoint's tower with AHD in eager torch on the CPU, one temporal patch per query."""
    if job.checkpoint is None:
        raise CheckpointError("torch needs the checkpoint: --checkpoint")
    torch.set_num_threads(job.threads or usable_cores())
    bundle = Bundle.open(job.bundle, verify=False)
    geometry = bundle.manifest.geometry
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[job.case.precision]
    module = Checkpoint.open(job.checkpoint).vision_module(geometry.width, geometry.height).to(kind)
    features = torch.from_numpy(bundle.class_features()).to(kind)
    taken = take_patches(bundle, job.source, 8)
    with torch.inference_mode():
        for patch in itertools.cycle(taken):
            started = time.perf_counter()
            for output in module(torch.from_numpy(np.stack([patch.frames])), features):
                output.float().numpy()
            yield time.perf_counter() - started
