"""Float beside INT8 on the user's footage: how alike the heatmaps are, and whether the same events open.

Footage has no labels, so this cannot tell which of the two is right; it tells whether they differ. The labelled
figures are in `quantize.labelled`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize.footage import Footage
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.manifest import Geometry, Thresholds

_TOKENS_EVERY = 8  # of P_V, which is large, that of each eighth patch is kept
_WORST = 6
ALIKE = 0.02  # of 0..1: maps that differ by no more nowhere agree, whatever a correlation of noise says


@dataclass(frozen=True)
class Limits:
    """What quantization may cost.

    Attributes:
        correlation: least correlation of the heatmaps' cells.
        disagreement: largest share of temporal patches, 0..1, at which only one of the two has an event open.
        micro_auc, regions, bleu4, yes_no: largest loss in points, on labelled data: micro-AUC; RBDC and TBDC;
            BLEU-4; Yes/No.
    """

    correlation: float = 0.98
    disagreement: float = 0.02
    micro_auc: float = 0.5
    regions: float = 1.0
    bleu4: float = 1.0
    yes_no: float = 0.5


@dataclass(frozen=True, eq=False)
class Seen:
    """What one graph made of the stretches.

    Attributes:
        heat: [P, H', W'] heatmaps of all patches, stretch after stretch.
        scores: [P].
        open: [P] whether an event was open after the patch.
        events: events that opened.
        h_c: [P, 2, H', W'].
        p_v: of some patches.
        milliseconds: median time of one patch on this machine, busy or not.
    """

    heat: NDArray[np.float32]
    scores: NDArray[np.float64]
    open: NDArray[np.bool_]
    events: int
    h_c: NDArray[np.float32]
    p_v: NDArray[np.float32]
    milliseconds: float

    def save(self, path: Path) -> None:
        """Write it to `path` (.npz)."""
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> "Seen":
        """What `save` has written."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        events, milliseconds = int(arrays.pop("events")), float(arrays.pop("milliseconds"))
        return cls(**arrays, events=events, milliseconds=milliseconds)


@dataclass(frozen=True)
class Worst:
    """A temporal patch on which the two differ most: its place in the footage, and both scores."""

    patch: int
    difference: float
    score: float
    quantized_score: float


@dataclass(frozen=True)
class Comparison:
    """One quantized graph beside the float graph.

    Attributes:
        graph: such as "onnxruntime int8".
        patches: compared; those that were calibrated on are left out of all but the events, which need them in order.
        correlation: of the heatmaps' cells; None where the float heatmap is the same everywhere.
        difference: largest difference of a cell, 0..1.
        mean_difference: over all cells.
        score_difference: largest difference of a score.
        h_c_cosine, p_v_cosine: least of a patch.
        disagreement: share of temporal patches at which only one has an event open.
        events, quantized_events: that opened.
        worst: patches, the worst first.
        milliseconds, float_milliseconds: median time of a patch on this machine, busy or not.
    """

    graph: str
    patches: int
    correlation: float | None
    difference: float
    mean_difference: float
    score_difference: float
    h_c_cosine: float
    p_v_cosine: float
    disagreement: float
    events: int
    quantized_events: int
    worst: tuple[Worst, ...] = ()
    milliseconds: float = 0.0
    float_milliseconds: float = 0.0

    def failures(self, limits: Limits) -> list[str]:
        """What is beyond the limits, each as a sentence; empty when nothing is."""
        found = []
        low = self.correlation is None or self.correlation < limits.correlation
        if low and self.difference > ALIKE:
            shown = "undefined" if self.correlation is None else f"{self.correlation:.4f}"
            found.append(
                f"{self.graph}: heatmap correlation {shown}, limit {limits.correlation:g} (largest difference of a "
                f"cell: {self.difference:.3f})"
            )
        if not self.disagreement <= limits.disagreement:
            found.append(
                f"{self.graph}: events disagree on {self.disagreement:.1%} of the patches, limit "
                f"{limits.disagreement:.1%} ({self.events} events in float, {self.quantized_events} in INT8)"
            )
        if not np.isfinite(self.h_c_cosine) or not np.isfinite(self.p_v_cosine):
            found.append(f"{self.graph}: its outputs are not numbers")
        return found


def watch(
    bundle: Bundle,
    backend: str,
    precision: str,
    footage: Footage,
    advance: Callable[[int, int], None] | None = None,
) -> Seen:
    """Run the stretches through the runtime's vision and trigger.

    Raises:
        MissingExtraError, BackendError: as `Vision.open`.
    """
    manifest = bundle.manifest
    vision = Vision.open(bundle, backend, precision)
    try:
        return look(vision, footage.stretches, manifest.geometry, manifest.thresholds, advance)
    finally:
        vision.close()


def look(
    vision: Vision,
    stretches: Sequence[NDArray[np.uint8]],
    geometry: Geometry,
    thresholds: Thresholds,
    advance: Callable[[int, int], None] | None = None,
) -> Seen:
    """Watch each stretch [L, 2, H, W, 3] by itself, as the runtime would."""
    heat, scores, is_open, h_c, p_v, times = [], [], [], [], [], []
    events = done = 0
    total = sum(len(stretch) for stretch in stretches)
    for stretch in stretches:
        trigger = Trigger(thresholds, geometry.temporal_patches)
        for index, frames in enumerate(stretch):
            seconds = (index + 1) * geometry.seconds_per_patch
            patch = TemporalPatch("footage", index, frames, (seconds, seconds), seconds)
            began = time.perf_counter()
            (evidence,) = vision.run([patch])
            times.append(time.perf_counter() - began)
            update = trigger.push(evidence)
            events += update is not None and update.phase == "start"
            heat.append(evidence.heatmap)
            scores.append(evidence.score)
            h_c.append(evidence.h_c)
            is_open.append(trigger.current is not None)
            if done % _TOKENS_EVERY == 0:
                p_v.append(evidence.p_v)
            done += 1
            if advance:
                advance(done, total)
    return Seen(
        np.stack(heat),
        np.array(scores),
        np.array(is_open),
        int(events),
        np.stack(h_c),
        np.stack(p_v),
        float(np.median(times)) * 1e3,
    )


def compare(graph: str, expected: Seen, found: Seen, footage: Footage) -> Comparison:
    """Compare what two graphs made of the same stretches."""
    places = np.concatenate(
        [np.arange(start, start + len(s)) for start, s in zip(footage.starts, footage.stretches, strict=True)]
    )  # number of each patch among all that were seen
    new = ~np.isin(places, footage.indices)
    if not new.any():
        new[:] = True
    difference = np.abs(expected.heat - found.heat).max(axis=(1, 2))  # [P]
    order = np.argsort(-np.nan_to_num(difference, nan=np.inf), kind="stable")[:_WORST]
    return Comparison(
        graph=graph,
        patches=int(new.sum()),
        correlation=_correlation(expected.heat[new], found.heat[new]),
        difference=float(difference[new].max()),
        mean_difference=float(np.abs(expected.heat - found.heat)[new].mean()),
        score_difference=float(np.abs(expected.scores - found.scores)[new].max()),
        h_c_cosine=_least_cosine(expected.h_c[new], found.h_c[new]),
        p_v_cosine=_least_cosine(expected.p_v, found.p_v),
        disagreement=float((expected.open != found.open).mean()),
        events=expected.events,
        quantized_events=found.events,
        worst=tuple(
            Worst(int(k), float(difference[k]), float(expected.scores[k]), float(found.scores[k]))
            for k in order
        ),
        milliseconds=found.milliseconds,
        float_milliseconds=expected.milliseconds,
    )


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    if x.std() < 1e-6 or y.std() < 1e-6:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Least over the first axis."""
    x, y = (value.reshape(len(value), -1).astype(np.float64) for value in (a, b))
    size = np.maximum(np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1), 1e-30)
    return float(((x * y).sum(axis=1) / size).min())
