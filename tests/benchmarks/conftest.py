"""A data set in which what is abnormal is bright, and a bundle whose heatmap is brightness: every figure is known."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tvau_edge.runtime.bundle import Bundle, BundleWriter
from tvau_edge.runtime.manifest import (
    ClassPrompts,
    Geometry,
    GraphFile,
    Language,
    LanguageFile,
    Manifest,
    Normalization,
    Provenance,
    Question,
    Thresholds,
)

WIDTH, HEIGHT, RATE = 336, 168, 8
GEOMETRY = Geometry(width=336, height=168, frames_per_second=4, temporal_patches=3)
FEATURES = 64
GREY, BRIGHT = 60, 235


@dataclass(frozen=True)
class Square:
    """A bright square of one clip: its object number, frames, corner and side in pixels, and whether it is abnormal."""

    number: int
    first: int
    last: int
    corner: tuple[int, int] = (56, 56)
    side: int = 42
    abnormal: bool = True
    bright: bool = True


def write_squares(root: Path, scenario: int, frames: int, *squares: Square, split: str = "test") -> str:
    """Write a clip of squares in UBnormal's layout, and return its name."""
    kind = "abnormal" if any(square.abnormal for square in squares) else "normal"
    name = f"{kind}_scene_1_scenario_{scenario}"
    scene = root / "Scene1"
    annotations = scene / f"{name}_annotations"
    annotations.mkdir(parents=True)
    with av.open(str(scene / f"{name}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            for square in squares:
                if square.first <= index <= square.last:
                    x, y = square.corner
                    place = slice(y, y + square.side), slice(x, x + square.side)
                    image[place] = BRIGHT if square.bright else GREY
                    mask[place] = square.number
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            Image.fromarray(mask).save(annotations / f"{name}_{index:04d}_gt.png")
        container.mux(stream.encode())
    if kind == "abnormal":
        lines = [f"{s.number},{s.first},{s.last}\n" for s in squares if s.abnormal]
        (annotations / f"{name}_tracks.txt").write_text("".join(lines))
    word = {"train": "training"}.get(split, split)
    with (root / f"{kind}_{word}_video_names.txt").open("a") as file:
        file.write(f"{name}\n")
    return name


@pytest.fixture(name="write_squares")
def _write_squares() -> Callable[..., str]:
    """Writes clips of squares: see `write_squares`."""
    return write_squares


@pytest.fixture(name="square")
def _square() -> type[Square]:
    """The squares that `write_squares` draws."""
    return Square


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Two clips of 4 s: one with a bright square in its second half, one with none."""
    root = tmp_path / "squares"
    write_squares(root, 1, 32, Square(3, 16, 31))
    write_squares(root, 2, 32)
    return root


@pytest.fixture(scope="session")
def bright_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle without a language model, whose h_c is the brightness of each cell."""
    return _write_bundle(tmp_path_factory.mktemp("bright") / "bundle", None)


@pytest.fixture(scope="session")
def talking_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same with a language model of random weights: it speaks, and what it says means nothing."""
    folder = tmp_path_factory.mktemp("talking")
    return _write_bundle(folder / "bundle", _write_language(folder))


def _write_language(folder: Path) -> Path:
    # Here, since the other tests of this room do without torch.
    import torch

    from tvau_edge.export.checkpoint import Checkpoint
    from tvau_edge.export.language import write_gguf
    from tvau_edge.export.model.ahd import AHDConfig
    from tvau_edge.export.model.prompts import TextConfig
    from tvau_edge.export.model.rae import RAEConfig
    from tvau_edge.export.model.vision import VisionConfig
    from tvau_edge.export.synthetic import Widths, write_synthetic

    widths = Widths(
        VisionConfig(2, 32, 2, 32, FEATURES, (1,)),
        TextConfig(512, FEATURES, 96, 2, 2, 1, 2048, mrope_section=(4, 6, 6)),
        False,
        AHDConfig(2, 32, 16, FEATURES),
        RAEConfig((4, 4, 4), (8, 8), (8, 8), 2, FEATURES),
    )
    write_synthetic(folder / "checkpoint", widths, clip=GEOMETRY, dtype=torch.float32, seed=1)
    path = folder / "lvlm-f32.gguf"
    write_gguf(Checkpoint.open(folder / "checkpoint"), path, "f32")
    return path


def _write_bundle(out: Path, language: Path | None) -> Bundle:
    questions = [Question(key=key, text=f"{key}?") for key in ("anomaly", "target", "motion", "from", "to")]

    def describe(files):
        return Manifest(
            name="bright",
            created="2026-01-01T00:00:00Z",
            licence="Apache-2.0",
            provenance=Provenance(checkpoint="none", checkpoint_sha256="0" * 64),
            geometry=GEOMETRY,
            normalization=Normalization(),
            thresholds=Thresholds(open=0.5, close=0.3),
            class_prompts=ClassPrompts(normal=["dark"], abnormal=["bright"]),
            vision=[GraphFile(backend="onnxruntime", precision="fp32", file="vision.onnx")],
            rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
            base_tokens=2,
            language=language and Language(
                files=[LanguageFile(type="f32", file="lvlm-f32.gguf")],
                hidden_size=FEATURES,
                tokens_per_second=2,
                system_prompt="You watch.",
                questions=questions,
                max_answer_tokens=4,
            ),
            files=files,
        )  # fmt: skip

    with BundleWriter(out) as writer:
        onnx.save(_vision_graph(), writer.path("vision.onnx"))
        onnx.save(_rae_graph(), writer.path("rae.onnx"))
        writer.add_class_features("class_prompts.safetensors", np.zeros((2, FEATURES), np.float32))
        if language:
            writer.path("lvlm-f32.gguf").write_bytes(language.read_bytes())
        return writer.finish(describe)


def _vision_graph() -> onnx.ModelProto:
    """H_c of a cell is +-(brightness - 150) / 10; P_V is the brightness of a merged cell, in every feature."""
    (rows, columns), (high, wide) = GEOMETRY.grid, GEOMETRY.merged_grid
    constants = {
        "middle": np.float32(150.0),
        "spread": np.float32(10.0),
        "axis": np.array([1], np.int64),
        "tokens": np.array([0, high * wide, 1], np.int64),
        "features": np.full((1, FEATURES), 1e-3, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["grey"], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "axis"], ["image"]),
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Sub", ["cells", "middle"], ["over"]),
        helper.make_node("Div", ["over", "spread"], ["abnormal"]),
        helper.make_node("Neg", ["abnormal"], ["normal"]),
        helper.make_node("Concat", ["normal", "abnormal"], ["h_c"], axis=1),
        helper.make_node("AveragePool", ["image"], ["merged"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Reshape", ["merged", "tokens"], ["column"]),
        helper.make_node("MatMul", ["column", "features"], ["p_v"]),
    ]
    constants["axes"] = np.array([1, 4], np.int64)
    return _model(
        nodes,
        constants,
        [("frames", TensorProto.UINT8, ["B", 2, GEOMETRY.height, GEOMETRY.width, 3]),
         ("class_features", TensorProto.FLOAT, [2, FEATURES])],
        [("h_c", ["B", 2, rows, columns]), ("p_v", ["B", high * wide, FEATURES])],
    )  # fmt: skip


def _rae_graph() -> onnx.ModelProto:
    """P_An is the mean of the abnormal H_c of each step but the first, in all of its 12 tokens."""
    rows, columns = GEOMETRY.grid
    steps = GEOMETRY.temporal_patches - 1
    constants = {
        "axes": np.array([1, 2, 3], np.int64),
        "start": np.array([1, 1], np.int64),
        "end": np.array([steps + 1, 2], np.int64),
        "spread": np.full((1, 12 * FEATURES), 1e-2, np.float32),
        "shape": np.array([steps, 12, FEATURES], np.int64),
        "column": np.array([steps, 1], np.int64),
    }
    nodes = [
        helper.make_node("Slice", ["h_c", "start", "end"], ["later"]),
        helper.make_node("ReduceMean", ["later", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["steps"]),
        helper.make_node("MatMul", ["steps", "spread"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["p_an"]),
    ]
    return _model(
        nodes,
        constants,
        [("h_c", TensorProto.FLOAT, [steps + 1, 2, rows, columns])],
        [("p_an", [steps, 12, FEATURES])],
    )


def _model(nodes, constants, inputs, outputs) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "bright",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model
