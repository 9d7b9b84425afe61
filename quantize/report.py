"""The report that goes with a quantized bundle: as text, and as one page with pictures of the worst frames."""

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import av
import jinja2
import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize.footage import Footage
from tvau_edge.quantize.gate import Comparison, Seen
from tvau_edge.quantize.labelled import choosing
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.heatmap import heatmap
from tvau_edge.runtime.detection.overlay import blend
from tvau_edge.runtime.detection.vision import Vision

STEM = "quantization"
PAGE, TEXT = f"{STEM}.html", f"{STEM}.txt"
_SHOWN = 4  # calibration frames on the page
_WIDTH, _HEIGHT = 420, 220  # of the curve


def write(
    folder: Path,
    result: dict[str, Any],
    bundle: Bundle,
    footage: Footage,
    seen: Seen,
    comparisons: Sequence[Comparison],
    candidate: Bundle,
) -> list[str]:
    """Write both into `folder`; returns their names."""
    whole = np.concatenate(footage.stretches)
    pictures = {
        comparison.graph: [
            {
                "before": _blended(whole[worst.patch], seen.heat[worst.patch]),
                "after": _blended(whole[worst.patch], heat),
                "worst": worst,
                "where": _where(footage.record, worst.patch),
            }
            for worst, heat in zip(comparison.worst, _heat(candidate, comparison, whole), strict=True)
        ]
        for comparison in comparisons
    }
    some = np.linspace(0, len(footage.frames) - 1, min(8, len(footage.frames))).round().astype(int)
    context = {
        "result": result,
        "bundle": bundle.manifest,
        "comparisons": comparisons,
        "pictures": pictures,
        "frames": [_jpeg(footage.frames[index, 1]) for index in some],
        "curves": {
            name: _curve(record["curve"], record["target"])
            for name, record in result["graphs"].items()
            if record.get("curve")
        },
        "types": choosing(result["language"], result["labelled"]),
        "sizes": {name: _size(candidate, name) for name in result["graphs"]},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("tvau_edge.quantize") / "templates")),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name, template in ((PAGE, "report.html.j2"), (TEXT, "report.txt.j2")):
        (folder / name).write_text(environment.get_template(template).render(context), encoding="utf-8")
    return [PAGE, TEXT]


def _where(record: dict[str, Any], patch: int) -> str:
    """Source and second of one of the patches that were compared."""
    per_patch = record["seconds"] / record["seen"]
    for stretch in record["compared"]:
        if patch < stretch["patches"]:
            return f"{stretch['source']} at {stretch['seconds'] + patch * per_patch:.1f} s"
        patch -= stretch["patches"]
    raise IndexError(patch)


def _size(candidate: Bundle, name: str) -> int:
    """Bytes of a graph, with the weights beside it."""
    beside = (
        {f"{name}.data", f"{name.removesuffix('.xml')}.bin"} if name.endswith(".xml") else {f"{name}.data"}
    )
    entries = candidate.manifest.files
    return sum(entry.size for other, entry in entries.items() if other == name or other in beside)


def _heat(candidate: Bundle, comparison: Comparison, whole: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Heatmaps of the worst patches by the quantized graph, computed once more rather than kept for all."""
    backend, precision = comparison.graph.split()
    vision = Vision.open(candidate, backend, precision)
    try:
        patches = [
            TemporalPatch("footage", k, whole[worst.patch], (0.0, 0.0), 0.0)
            for k, worst in enumerate(comparison.worst)
        ]
        return [heatmap(vision.run([patch])[0].h_c) for patch in patches]
    finally:
        vision.close()


def _blended(frames: NDArray[np.uint8], heat: NDArray[np.float32]) -> str:
    return _jpeg(blend(frames[1], heat))


def _jpeg(image: NDArray[np.uint8]) -> str:
    """An image [H, W, 3] as a data address."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.height, stream.width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
        stream.pix_fmt, stream.options = "yuvj420p", {"qscale": "3"}
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(image[: stream.height, : stream.width]), format="rgb24"
        )
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode()


def _curve(points: Sequence[dict[str, float]], target: float) -> dict[str, Any]:
    """The trade-off curve as places in a drawing: share in float to the right, agreement upwards."""
    values = [point["agreement"] for point in points]
    low = min(*values, target)
    low = max(0.0, low - 0.1 * max(1 - low, 1e-4))
    span = max(1 - low, 1e-6)
    widest = max(*(point["cost"] for point in points), 1e-6)

    def place(cost: float, value: float) -> tuple[float, float]:
        return 60 + cost / widest * (_WIDTH - 80), 12 + (1 - value) / span * (_HEIGHT - 50)

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "points": [
            {"x": x, "y": y, **point}
            for point in points
            for x, y in [place(point["cost"], max(point["agreement"], low))]
        ],
        "target": place(0, target)[1],
        "low": low,
        "widest": widest,
        "bottom": _HEIGHT - 38,
    }
