"""How fast INT8 is at real widths, beside torch and this machine's own INT8 peak: a benchmark, not a test.

The tower and the merger of a Qwen2.5-VL 7B with a few of its 32 blocks, random weights, are run by torch, ONNX Runtime
and OpenVINO, in turns: each round times each of them once, so that whatever else the machine does falls on all alike.
The peak is that of plain INT8 matrix products of the tower's own shapes, in the same rounds: by torch (oneDNN), ONNX
Runtime or OpenVINO, whichever is fastest.

`python -m tvau_edge.reference.int8_speed --json speed.json`
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from tvau_edge.benchmarks.latency.limits import onnx_product, openvino_product
from tvau_edge.devices.host import usable_cores
from tvau_edge.export.graphs import export_vision
from tvau_edge.export.model.vision import VisionConfig, VisionTower
from tvau_edge.quantize.activations import observe
from tvau_edge.quantize.fallback import products_of
from tvau_edge.quantize.onnx_int8 import quantize_products
from tvau_edge.quantize.openvino_int8 import cpu_has_bf16, quantize_openvino
from tvau_edge.runtime.backends.openvino import core

console = Console(stderr=True)
_TOP = 1e12


class Tokens(nn.Module):
    """The tower as far as P_V; it has the export's two inputs, of which class features are not looked at."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.vision = tower

    def forward(self, frames: Tensor, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """Encode [B, 2, H, W, 3] uint8 -> a sum of the class features, and p_v [B, N, D]."""
        _, p_v = self.vision(frames)
        return class_features.sum() + p_v[:, 0, 0], p_v


def multiplications(config: VisionConfig, height: int, width: int) -> int:
    """Multiplications of the products with trained weights, per temporal patch."""
    rows, columns = config.grid(height, width)
    patches, wide, inner = rows * columns, config.hidden_size, config.intermediate_size
    block = 4 * wide * wide + 3 * wide * inner
    merged = wide * config.spatial_merge_size**2
    merger = (merged * merged + merged * config.out_hidden_size) * patches // config.spatial_merge_size**2
    return patches * block * config.depth + merger


def measure(blocks: int, height: int, width: int, rounds: int, batch: int, folder: Path) -> dict[str, Any]:
    """Time every variant `rounds` times, in turns; returns milliseconds per temporal patch, and ratios."""
    torch.manual_seed(0)
    config = VisionConfig(depth=blocks, fullatt_block_indexes=(blocks - 1,))
    module = Tokens(VisionTower(config, height, width)).eval()
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (batch, 2, height // 14, width // 14, 3), dtype=np.uint8)
    frames = coarse.repeat(14, axis=2).repeat(14, axis=3)
    features = torch.zeros(2, config.out_hidden_size)
    variants: dict[str, Callable[[], object]] = {}
    eager = VisionTower(config, height, width).eval()
    eager.load_state_dict(module.vision.state_dict())
    variants["torch fp32 eager"] = lambda: eager(torch.from_numpy(frames[:1]))
    feeds = [{"frames": frames[k : k + 1], "class_features": features.numpy()} for k in range(batch)]
    with torch.no_grad():
        expected = eager(torch.from_numpy(frames[:1]))[1].numpy()
    export_vision(module, folder / "vision.onnx")  # type: ignore[arg-type]
    agreement = _add_graphs(folder, feeds, frames, expected, variants)
    peak = _add_products(config, height * width // 196, variants)
    times: dict[str, list[float]] = {name: [] for name in variants}
    with torch.no_grad():
        for run in variants.values():
            run()
        for _ in track(range(rounds), "timing", console=console):
            for name, run in variants.items():
                began = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - began)
    return _summary(times, batch, multiplications(config, height, width), peak, agreement)


def _add_graphs(
    folder: Path,
    feeds: list[dict[str, NDArray[Any]]],
    frames: NDArray[np.uint8],
    expected: NDArray[np.float32],
    variants: dict[str, Callable[[], object]],
) -> dict[str, float]:
    """Add ONNX Runtime and OpenVINO, one patch at a time and in a batch; returns each one's cosine with torch."""
    import onnx
    import onnxruntime

    source = folder / "vision.onnx"
    nodes = products_of(onnx.load(source, load_external_data=False))
    seen = observe(source, [node.input[0] for node in nodes], feeds[:2])
    ranges = {name: value.range for name, value in seen.items()}
    quantize_products(source, folder / "vision.int8.onnx", [node.name for node in nodes], ranges)
    found: dict[str, float] = {}
    whole = {"frames": frames, "class_features": feeds[0]["class_features"]}

    def add(name: str, run: Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]) -> None:
        a, b = run(feeds[0]).astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        found[name] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        variants[name] = lambda: run(feeds[0])
        variants[f"{name}, batch {len(frames)}"] = lambda: run(whole)

    for name, file in (("ONNX Runtime fp32", source), ("ONNX Runtime INT8", folder / "vision.int8.onnx")):
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        add(name, lambda feed, session=session: session.run(["p_v"], feed)[0])  # type: ignore[misc]
    quantize_openvino(source, folder / "vision.int8.xml", feeds[:2], [node.name for node in nodes])
    precisions = ["f32", "bf16"] if cpu_has_bf16() else ["f32"]
    for name, file in (("OpenVINO float", source), ("OpenVINO INT8", folder / "vision.int8.xml")):
        for precision in precisions:
            settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
            request = core().compile_model(core().read_model(file), "CPU", settings).create_infer_request()

            def run(feed: dict[str, NDArray[Any]], request: Any = request) -> NDArray[np.float32]:
                request.infer(feed)
                return np.array(request.get_tensor("p_v").data)

            add(f"{name}, rest in {precision}", run)
    return found


def _add_products(
    config: VisionConfig, patches: int, variants: dict[str, Callable[[], object]]
) -> dict[str, int]:
    """Add plain INT8 products of the tower's shapes; returns multiplications of each."""
    wide, inner = config.hidden_size, config.intermediate_size
    found = {}
    for rows, k, n in ((patches, wide, 3 * wide), (patches, wide, inner), (4 * patches, wide, 3 * wide)):
        k, n = k // 64 * 64, n // 64 * 64
        a, b = (torch.randint(-63, 64, shape, dtype=torch.int8) for shape in ((rows, k), (k, n)))
        runs: dict[str, Callable[[], object]] = {
            "torch": lambda a=a, b=b: torch._int_mm(a, b),  # type: ignore[misc]
            "ONNX Runtime": onnx_product(rows, k, n, "int8", usable_cores()),
            "OpenVINO": openvino_product(rows, k, n, "int8", usable_cores()),
        }
        for by, run in runs.items():
            name = f"INT8 product {rows} x {k} x {n}, {by}"
            variants[name], found[name] = run, rows * k * n
    return found


def _summary(
    times: dict[str, list[float]],
    batch: int,
    work: int,
    peak: dict[str, int],
    agreement: dict[str, float],
) -> dict[str, Any]:
    base = np.array(times["torch fp32 eager"])
    highest = max(float(2 * peak[name] / np.median(times[name])) for name in peak)
    rows = []
    for name, values in times.items():
        per_patch = np.array(values) / (batch if name.endswith(f"batch {batch}") else 1)
        count = peak.get(name, work)
        rows.append(
            {
                "variant": name,
                "milliseconds": float(np.median(per_patch) * 1e3),
                "least": float(per_patch.min() * 1e3),
                "times_torch": None if name in peak else float(np.median(base / per_patch)),
                "share_of_peak": float(2 * count / np.median(per_patch) / highest),
                "cosine": agreement.get(name),
            }
        )
    return {"multiplications": work, "peak_tops": highest / _TOP, "rows": rows}


def main(
    blocks: Annotated[int, typer.Option(min=1, help="Of the 7B's 32.")] = 4,
    size: Annotated[str, typer.Option(help="WxH, multiples of 28.")] = "448x252",
    rounds: Annotated[int, typer.Option(min=3)] = 7,
    batch: Annotated[int, typer.Option(min=2, help="Temporal patches in a batch.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Time torch, ONNX Runtime and OpenVINO, float and INT8, at 7B widths with random weights."""
    width, height = (int(part) for part in size.lower().split("x"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(blocks, height, width, rounds, batch, Path(folder))
    table = Table(
        title=f"{blocks} blocks of 7B widths at {size}: INT8 peak here {found['peak_tops']:.2f} TOPS"
    )
    for name in ("variant", "ms per patch", "least", "times torch", "of INT8 peak", "cosine"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in found["rows"]:
        shown = [row["variant"], f"{row['milliseconds']:.1f}", f"{row['least']:.1f}"]
        shown.append("" if row["times_torch"] is None else f"{row['times_torch']:.2f}")
        shown += [
            f"{100 * row['share_of_peak']:.0f} %",
            "" if row["cosine"] is None else f"{row['cosine']:.5f}",
        ]
        table.add_row(*shown)
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
