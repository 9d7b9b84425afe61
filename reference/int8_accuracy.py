"""What INT8 and FP16 keep of a tower with outliers at real widths: a measurement of accuracy, not of speed.

The tower, merger and AHD of a Qwen2.5-VL 7B with a few of its 32 blocks get random weights with outlier channels put
in (`export.synthetic.add_outliers`), so that SwiGLU's product leaves fp16's range. Each form is then made as
`tvau quantize` makes it: outliers moved, and layers left in float until the outputs agree. Calibrated on drawn
patches, compared on others. TensorRT's graphs are computed in numpy, each result rounded to its type.

`python -m tvau_edge.reference.int8_accuracy --blocks 1 --json accuracy.json`
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from tvau_edge.export.graphs import export_vision
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import add_outliers, default_taps, random_tensor
from tvau_edge.quantize.activations import Feed
from tvau_edge.quantize.fallback import Choice
from tvau_edge.quantize.openvino_int8 import choose_openvino
from tvau_edge.quantize.prepared import agreement, prepare, quantize_onnx
from tvau_edge.quantize.steps import ShownSteps, Steps
from tvau_edge.quantize.targets import FP16_GOAL
from tvau_edge.quantize.tensorrt_graph import LARGEST, peaks_of, quantize_tensorrt, run_typed, write_typed

console = Console(stderr=True)
OUTPUTS = ("h_c", "p_v")
FORMS = ("onnx", "openvino", "tensorrt")


def outlying_vision(config: VisionConfig, ahd: AHDConfig, height: int, width: int) -> AnomalyVision:
    """A vision graph with random weights and the outliers of a synthetic checkpoint."""
    module = AnomalyVision(config, ahd, height, width, tuple(default_taps(config.depth))).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = random_tensor(name, tuple(parameter.shape), torch.float32, generator)
            add_outliers(name.replace("vision.", "visual.", 1), drawn, config.depth)
            parameter.copy_(drawn)
    return module


def drawn_feeds(count: int, height: int, width: int, features: int) -> list[Feed]:
    """Inputs of drawn patches, one colour per cell of 14 pixels."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 2, height // 14, width // 14, 3), dtype=np.uint8)
    classes = generator.normal(size=(2, features)).astype(np.float32)
    return [
        {"frames": frames[None].repeat(14, axis=2).repeat(14, axis=3), "class_features": classes}
        for frames in coarse
    ]


def measure(
    module: AnomalyVision,
    feeds: Sequence[Feed],
    checked: Sequence[Feed],
    goal: float,
    forms: Sequence[str],
    folder: Path,
    steps: Steps,
) -> dict[str, Any]:
    """Make every form of a graph.

    Returns:
        Rows with `form`, `all` (cosine with every product at the form's type), `cosine` (of what was made), `left`
        and `products` (layers in float, of how many), `share` (of the multiplications, in float), `goal`; beside
        them `peak`, the largest magnitude of any tensor.
    """
    source = folder / "vision.onnx"
    steps.begin("export")
    export_vision(module, source)
    steps.begin("activations and outliers")
    prepared = prepare(source, folder / "smooth.onnx", feeds, checked, OUTPUTS, steps.advance)
    rows = []

    def add(form: str, choice: Choice) -> None:
        rows.append(
            {
                "form": form,
                "all": choice.points[0].agreement,
                "cosine": choice.chosen.agreement,
                "left": [layer.weight for layer in choice.left],
                "products": len(prepared.layers),
                "share": choice.chosen.cost,
                "goal": goal,
                "curve": choice.record(prepared.layers, goal)["curve"],
            }
        )

    if "onnx" in forms:
        steps.begin("ONNX Runtime INT8")
        add("ONNX Runtime INT8", quantize_onnx(prepared, folder / "int8.onnx", goal, steps.advance))
    if "openvino" in forms:
        steps.begin("OpenVINO INT8")
        add(
            "OpenVINO INT8",
            choose_openvino(prepared, folder / "int8.xml", feeds, goal, advance=steps.advance),
        )
    peaks = peaks_of(source, feeds)
    if "tensorrt" in forms:
        steps.begin("TensorRT FP16")
        typed = write_typed(source, folder / "fp16.onnx", peaks, {}, ())
        found = agreement(prepared.expected, run_typed(folder / "fp16.onnx", checked, OUTPUTS))
        # As a converter does it that knows nothing of ranges: every peak taken for small.
        write_typed(source, folder / "plain.onnx", dict.fromkeys(peaks, 0.0), {}, ())
        plain = agreement(prepared.expected, run_typed(folder / "plain.onnx", checked, OUTPUTS))
        # All that is not in FP16 is in FP32; which products those are is decided by the tensors' ranges.
        rows.append(
            {
                "form": "TensorRT FP16",
                "all": plain,
                "cosine": found,
                "left": typed["beyond_fp16"],
                "products": len(prepared.layers),
                "share": None,
                "goal": FP16_GOAL,
                "float_products": typed["products"]["float"],
            }
        )
        steps.begin("TensorRT INT8")
        choice, _ = quantize_tensorrt(prepared, folder / "trt.onnx", feeds, goal, steps.advance)
        add("TensorRT INT8", choice)
    return {"peak": max(peaks.values()), "beyond_fp16": max(peaks.values()) > LARGEST, "rows": rows}


def main(
    blocks: Annotated[int, typer.Option(min=1, help="Blocks of the tower, of 32.")] = 4,
    size: Annotated[str, typer.Option(help="Of the frames, pixels.")] = "448x252",
    goal: Annotated[
        float, typer.Option(min=0, max=1, help="Least cosine of the INT8 graphs' outputs.")
    ] = 0.99,
    patches: Annotated[int, typer.Option(min=3, help="Drawn patches; two of them to compare on.")] = 8,
    forms: Annotated[str, typer.Option(help="Of onnx, openvino, tensorrt.")] = ",".join(FORMS),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result here as well.")] = None,
) -> None:
    """Make INT8 and FP16 graphs of a 7B-width tower with outliers, and compare their outputs with fp32."""
    width, height = (int(part) for part in size.split("x"))
    config = VisionConfig(depth=blocks, fullatt_block_indexes=(blocks - 1,))
    module = outlying_vision(config, AHDConfig(taps=len(default_taps(blocks))), height, width)
    feeds = drawn_feeds(patches, height, width, config.out_hidden_size)
    with tempfile.TemporaryDirectory() as folder, ShownSteps(console) as steps:
        found = measure(module, feeds[:-2], feeds[-2:], goal, forms.split(","), Path(folder), steps)
    table = Table(
        title=f"{blocks} blocks of 7B widths at {size}, outliers put in; largest value {found['peak']:.3g}"
    )
    for name in (
        "form",
        "cosine, all",
        "cosine, as made",
        "asked",
        "left in float",
        "of the multiplications",
    ):
        table.add_column(name, justify="left" if name == "form" else "right")
    for row in found["rows"]:
        floats = row.get("float_products", len(row["left"]))
        table.add_row(
            row["form"],
            f"{row['all']:.5f}",
            f"{row['cosine']:.5f}",
            f"{row['goal']:g}",
            f"{floats} of {row['products']}",
            "" if row["share"] is None else f"{100 * row['share']:.1f} %",
        )
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
