"""What a bundle needs, computed, against what it takes: one bundle of small widths, one of real ones."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tvau_edge.devices.workload import MODELS
from tvau_edge.export.bundle import Options, export_bundle
from tvau_edge.export.checkpoint import model_shapes
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import SEVEN_B, THREE_B, write_synthetic
from tvau_edge.quantize.tensorrt_check import check
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.engines.build import graphs_to_build
from tvau_edge.runtime.errors import BundleError
from tvau_edge.runtime.language.dialogue import context_needed
from tvau_edge.runtime.manifest import Geometry
from tvau_edge.runtime.verbs.fitting import workload, workload_of

ROOT = Path(__file__).resolve().parents[3]
SMALL = replace(
    THREE_B,
    vision=VisionConfig(4, 64, 4, 96, 256, (1, 3)),
    text=replace(
        THREE_B.text,
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        mrope_section=(8, 12, 12),
    ),
    ahd=replace(THREE_B.ahd, taps=3, width=64, hidden=48, features=256),
    rae=replace(
        THREE_B.rae, channels=(8, 8, 16), region_hidden=(32, 24), global_hidden=(24, 32), features=256
    ),
)


def make_bundle(folder, widths, clip, video):
    write_synthetic(folder / "checkpoint", widths, clip=clip)
    options = Options(video, None, ("onnxruntime",), False, "q8_0")
    return export_bundle(folder / "checkpoint", folder / "bundle", options)[0]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of a square that moves over a gradient."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rows, columns = np.mgrid[:252, :448]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 448, 252, "yuv420p"
        for number in range(16):
            image = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
            image[90:130, 20 * number : 20 * number + 40] = (250, 40, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory, video):
    clip = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=4)
    return make_bundle(tmp_path_factory.mktemp("small"), SMALL, clip, video)


@pytest.mark.parametrize(("name", "widths"), [("7b", SEVEN_B), ("3b", THREE_B)])
def test_the_published_sizes_are_those_of_the_export(name, widths):
    load = MODELS[name]
    shapes = model_shapes(widths.vision, widths.text, widths.tied)
    counts = dict.fromkeys(shapes, 1)
    for key, shape in shapes.items():
        for side in shape:
            counts[key] *= side
    language = sum(count for key, count in counts.items() if not key.startswith("visual."))
    tower = sum(count for key, count in counts.items() if key.startswith("visual."))
    ahd = load.tower.heatmap_weights + load.tower.taps * (2048 + load.tower.out + 1)
    assert load.decoder.parameters == language
    assert load.tower.parameters == tower + ahd


def test_a_bundle_tells_its_widths(small):
    load = workload_of(small)
    assert (load.tower.blocks, load.tower.width, load.tower.full_attention, load.tower.window) == (
        4,
        64,
        2,
        64,
    )
    assert (load.decoder.layers, load.decoder.width, load.decoder.kv_heads) == (2, 256, 2)
    # Biases, norms and tables of positions are all that the file holds besides.
    assert load.vision_weights("fp32") == pytest.approx(4 * load.tower.parameters, rel=0.6)
    assert load.language_weights("q8_0") == small.manifest.files["lvlm-q8_0.gguf"].size
    language = small.manifest.language
    assert load.clip.context == context_needed(language, small.manifest.geometry, small.manifest.base_tokens)


def test_the_name_of_a_size_or_a_folder(small):
    assert workload("7B") is MODELS["7b"]
    assert workload(str(small.path)).name == small.manifest.name
    with pytest.raises(BundleError, match="no such bundle"):
        workload("13b")


@pytest.mark.parametrize(
    ("part", "said"), [("tower", "widths of its tower"), ("language", "widths of its language model")]
)
def test_a_bundle_of_an_older_version(small, part, said):
    manifest = small.manifest
    if part == "tower":
        manifest = manifest.model_copy(update={"tower": None})
    else:
        manifest = manifest.model_copy(
            update={"language": manifest.language.model_copy(update={"widths": None})}
        )
    with pytest.raises(BundleError, match=f"{said}.*export it again"):
        workload_of(Bundle(small.path, manifest, small.sha256))


def measure(bundle, tmp_path):
    script = [sys.executable, str(ROOT / "scripts/measure_memory.py"), str(bundle.path)]
    subprocess.run([*script, "--json", str(tmp_path / "memory.json")], check=True, capture_output=True)
    report = json.loads((tmp_path / "memory.json").read_text())
    return report["computed"], report["measured"]


def test_memory_of_a_small_bundle(small, tmp_path):
    computed, measured = measure(small, tmp_path)
    assert computed == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_memory_of_real_widths(tmp_path, video):
    """Four vision blocks and two language layers of the 3B: about seven minutes on two busy cores."""
    clip = Geometry(width=448, height=252, frames_per_second=4, temporal_patches=8)
    computed, measured = measure(make_bundle(tmp_path, THREE_B.with_layers(4, 2), clip, video), tmp_path)
    assert computed == pytest.approx(measured, rel=0.1)


def test_tensorrt_refuses_none_of_the_graphs_that_are_built(small):
    """By the rules that can be read off a graph; TensorRT itself is asked by scripts/verify_on_gpu.sh."""
    for graph in graphs_to_build(small):
        assert [finding for finding in check(small.file(graph.file)) if finding.severity == "refused"] == []
