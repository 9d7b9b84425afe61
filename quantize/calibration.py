"""Frames to calibrate on, as the runtime would see them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.sampler import Sampler
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry


def temporal_patches(video: Path, geometry: Geometry, most: int) -> NDArray[np.uint8]:
    """Temporal patches of a video, spread evenly over its length: [K, 2, H, W, 3] uint8, K at most `most`.

    Raises:
        SourceError: the video cannot be read, or is shorter than two temporal patches.
    """
    sampler = Sampler(geometry, upscale=True)
    with Source(str(video), "calibration") as source:
        patches = [patch.frames for frame in source for patch in sampler.push(frame)]
    if len(patches) < 2:
        raise SourceError(
            f"{video} gives {len(patches)} temporal patches, at least 2 are needed: "
            f"{2 * geometry.seconds_per_patch:g} s of video"
        )
    chosen = np.linspace(0, len(patches) - 1, min(most, len(patches))).round().astype(int)
    return np.stack([patches[index] for index in chosen])
