"""Windows of drawn clips as a bundle sees them, with the truth about each: what dialogues are judged on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from tvau_edge.devices.errors import TvauError
from tvau_edge.reference.samples import samples
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Evidence, Vision
from tvau_edge.runtime.language.sequence import encode
from tvau_edge.runtime.manifest import Language, LanguageFile

console = Console(stderr=True)
_BATCH = 4


@dataclass(frozen=True)
class SeenWindow:
    """P_V [T', N, D] and P_An [K, D] as devices send them, whether there is an anomaly, and right answers."""

    p_v: NDArray[np.float32]
    p_an: NDArray[np.float32]
    abnormal: bool
    answers: dict[str, list[str]]


def speaking(path: Path, kind: str | None) -> tuple[Bundle, Language, LanguageFile]:
    """A bundle, what it says of its language model, and the file of a GGUF type, or its first.

    Raises:
        TvauError: it has no language model.
    """
    bundle = Bundle.open(path)
    file, language = bundle.language(kind), bundle.manifest.language
    if file is None or language is None:
        raise TvauError(f"{path} has no language model")
    return bundle, language, file


def look(vision: Vision, frames: NDArray[np.uint8]) -> list[Evidence]:
    """What a bundle sees of a clip's temporal patches [K, 2, H, W, 3]."""
    items = [TemporalPatch("drawn", k, pair, (k, k), float(k)) for k, pair in enumerate(frames)]
    parts = [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]
    return [evidence for part in parts for evidence in vision.run(part)]


def seen_windows(
    bundle: Bundle, seeds: Sequence[int], cache: Path, per_clip: int = 2
) -> Iterator[SeenWindow]:
    """Draw clips and look at them with the bundle's own graphs; windows in which nobody could tell are left out.

    Args:
        bundle: of the reference checkpoint.
        seeds: of the clips.
        cache: folder of drawn clips.
        per_clip: windows taken of each, at most.
    """
    vision, rae = Vision.open(bundle), Rae.open(bundle)
    patches = bundle.manifest.geometry.temporal_patches
    for clip in track(samples(seeds, cache, 1), "looking", total=len(seeds), console=console):
        clear = [window for window in clip.windows if window.abnormal is not None]
        evidence = look(vision, clip.frames)
        for window in clear[:: max(1, len(clear) // per_clip)][:per_clip]:
            tensors = encode(rae, evidence[window.start : window.start + patches])
            yield SeenWindow(
                tensors["p_v"].astype(np.float32),
                tensors["p_an"].astype(np.float32),
                window.abnormal,
                window.answers,
            )
    vision.close()
    rae.close()
