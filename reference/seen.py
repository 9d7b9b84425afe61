"""What the frozen tower makes of drawn clips, kept on disk: later stages read it instead of looking again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tvau_edge.export.model.vision import VisionTower
from tvau_edge.reference.samples import Sample

console = Console()


@torch.no_grad()
def see(
    tower: VisionTower, samples: Sequence[Sample], path: Path, device: torch.device
) -> NDArray[np.float16]:
    """Taps of every temporal patch of every clip, [clips, K, taps, H', W', width] float16, mapped from `path`.

    The file is written when it is not there yet, and appears when it is whole. It belongs to one frozen tower:
    whoever trains another tower works in another folder.
    """
    if not path.exists():
        partial, store = path.with_suffix(".part"), None
        for index, sample in enumerate(track(samples, "seeing clips", console=console)):
            taps = stacked(tower, sample, device)
            if store is None:
                shape = (len(samples), *taps.shape)
                store = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            store[index] = taps.half().cpu().numpy()
        del store
        partial.rename(path)
    seen = np.load(path, mmap_mode="r", allow_pickle=False)
    if len(seen) != len(samples):
        raise ValueError(f"{path} is of {len(seen)} clips, not of these {len(samples)}; remove it")
    return seen


def stacked(tower: VisionTower, sample: Sample, device: torch.device) -> Tensor:
    """Taps of one clip, [K, taps, H', W', width]."""
    taps, _ = tower(torch.from_numpy(sample.frames).to(device))
    return torch.stack(list(taps), dim=1)
