import errno
import json
import math
import time
from dataclasses import replace
from typing import ClassVar

import av
import numpy as np
import pytest
import torch

from tvau_edge.export import bundle as export
from tvau_edge.export import graphs, verify
from tvau_edge.export.bundle import Options, export_bundle
from tvau_edge.export.errors import CheckpointError, ExportError
from tvau_edge.runtime import bundle as writing
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import BundleError, DiskFullError, SourceError
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.manifest import Check

GOOD_AT_MOST = {"relative_error"}  # of other metrics, more is better


def write_video(path, seconds, width=320, height=180, rate=8):
    """An H.264 video of squares that move over a gradient."""
    rows, columns = np.mgrid[:height, :width]
    ground = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], -1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(math.ceil(seconds * rate)):
            image = ground.astype(np.uint8)
            for number in range(3):
                x = (k * (7 + 4 * number) + 60 * number) % (width - 40)
                image[30 + 40 * number : 60 + 40 * number, x : x + 40] = (250, 40 * number, 90)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", seconds=4)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, video, tmp_path_factory):
    """A bundle with everything in it, not to be altered; and the steps that were shown."""
    steps = Shown()
    out = tmp_path_factory.mktemp("export") / "bundle"
    bundle, made = export_bundle(tiny_checkpoint, out, Options(video), steps)
    assert made
    return bundle, steps


class Shown:
    def __init__(self):
        self.steps, self.progress = [], []

    def begin(self, step):
        self.steps.append(step)

    def advance(self, done, total):
        self.progress.append((done, total))


@pytest.fixture
def small(video):
    """Options of the smallest export."""
    return Options(video, backends=("onnxruntime",), int8=False, language=None)


def holds(check):
    """Whether a check's value is on the right side of its limit."""
    return check.value <= check.limit if check.metric in GOOD_AT_MOST else check.value >= check.limit


def test_what_stands_in_a_bundle(whole, tiny_checkpoint):
    bundle, steps = whole
    again = Bundle.open(bundle.path)
    assert again.manifest == bundle.manifest
    names = {"vision.onnx", "vision.int8.onnx", "vision.xml", "vision.bin", "rae.onnx", "rae.xml", "rae.bin"}
    assert again.manifest.files.keys() == names | {"lvlm-q8_0.gguf", "class_prompts.safetensors"}
    assert {file.name for file in bundle.path.iterdir()} == set(again.manifest.files) | {"manifest.json"}
    assert [file.name for file in bundle.path.parent.iterdir()] == ["bundle"]
    for backend, precision in (("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32")):
        assert again.vision(backend, precision)
    assert again.rae("openvino")
    assert again.rae("onnxruntime")
    assert again.language().type == "q8_0"
    facts = json.loads((tiny_checkpoint / "tvau.json").read_text())
    manifest = again.manifest
    assert (manifest.name, manifest.licence) == (facts["name"], facts["licence"])
    assert (manifest.geometry.width, manifest.geometry.height) == (252, 140)
    assert manifest.language.hidden_size == 256
    assert [q.text for q in manifest.language.questions] == [q["text"] for q in facts["questions"]]
    assert manifest.quantization["vision.int8.onnx"]["calibration"] == "clip.mp4"
    assert len(manifest.provenance.checkpoint_sha256) == 64
    assert {"torch", "onnx", "openvino", "gguf"} <= manifest.provenance.versions.keys()
    assert steps.steps[0] == "reading checkpoint"
    assert steps.steps[-1] == "checksums"
    assert steps.progress[-1][0] == steps.progress[-1][1] > 10


def test_every_artifact_was_compared(whole):
    manifest = whole[0].manifest
    compared = {(check.artifact, check.tensor) for check in manifest.checks}
    graphs_compared = {
        (f"vision{end}", tensor) for end in (".onnx", ".int8.onnx", ".xml") for tensor in ("h_c", "p_v")
    }
    language_compared = {("lvlm-f16.gguf", "logits"), ("lvlm-q8_0.gguf", "logits")}
    assert compared == graphs_compared | {("rae.onnx", "p_an"), ("rae.xml", "p_an")} | language_compared
    for check in manifest.checks:
        print(f"{check.artifact} {check.tensor}: {check.metric} {check.value:.6g} (limit {check.limit:g})")
        assert holds(check), check
        if check.tensor != "logits":
            assert "clip.mp4" in check.data


def test_the_graphs_are_the_checkpoints(whole, tiny_model):
    """Not only by the export's own comparison: P_V against transformers' own tower."""
    bundle, _ = whole
    vision = Vision.open(bundle, "onnxruntime", "fp32")
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 140, 252, 3), dtype=np.uint8)
    features = bundle.class_features()
    assert features.shape == (2, 256)
    (p_v,) = vision._graph.run({"frames": frames, "class_features": features}, ["p_v"])
    mean, std = bundle.manifest.normalization.mean, bundle.manifest.normalization.std
    pixels = (torch.from_numpy(frames[0]).float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    # Qwen's order: merged cells row by row, within each its 2 x 2 patches, then channel, time, row, column.
    cut = pixels.reshape(2, 5, 2, 14, 9, 2, 14, 3).permute(1, 4, 2, 5, 7, 0, 3, 6).reshape(180, -1)
    with torch.no_grad():
        expected = tiny_model.model.visual(cut, grid_thw=torch.tensor([[1, 10, 18]])).pooler_output
    assert verify.relative_error(p_v[0], expected.numpy()) < 1e-4


def test_the_language_model_answers(whole):
    bundle, _ = whole
    with LanguageModel(bundle.file(bundle.language().file), context=64, threads=1) as model:
        model.evaluate_tokens(model.tokenize("Is there any anomaly?"))
        assert np.isfinite(model.logits()).all()
        assert model.width == bundle.manifest.language.hidden_size


def test_a_second_export_changes_nothing(whole, tiny_checkpoint, video, monkeypatch):
    bundle, _ = whole
    monkeypatch.setattr(graphs, "export_vision", None)
    before = {file: file.stat().st_mtime_ns for file in bundle.path.iterdir()}
    start = time.perf_counter()
    again, made = export_bundle(tiny_checkpoint, bundle.path, Options(video))
    assert time.perf_counter() - start < 2
    assert not made
    assert again.sha256 == bundle.sha256
    assert {file: file.stat().st_mtime_ns for file in bundle.path.iterdir()} == before


def test_other_options_checkpoints_or_frames_are_exported_anew(
    tiny_checkpoint, checkpoint_copy, video, small, tmp_path
):
    out = tmp_path / "bundle"
    first, made = export_bundle(checkpoint_copy, out, small)
    assert made
    larger, made = export_bundle(checkpoint_copy, out, replace(small, size=(280, 168)))
    assert made
    assert (larger.manifest.geometry.width, larger.manifest.geometry.grid) == (280, (12, 20))
    assert larger.manifest.files["vision.onnx"] != first.manifest.files["vision.onnx"]
    facts = json.loads((checkpoint_copy / "tvau.json").read_text())
    (checkpoint_copy / "tvau.json").write_text(json.dumps(facts | {"system_prompt": "You watch a street."}))
    changed, made = export_bundle(checkpoint_copy, out, replace(small, size=(280, 168)))
    assert made
    assert changed.manifest.provenance.checkpoint_sha256 != larger.manifest.provenance.checkpoint_sha256
    other = write_video(tmp_path / "clip.mp4", seconds=2)
    assert export_bundle(checkpoint_copy, out, replace(small, size=(280, 168), frames=other))[1]
    assert not list(out.parent.glob(".bundle*"))


def test_a_damaged_bundle_is_made_anew(tiny_checkpoint, small, tmp_path):
    bundle, _ = export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    (bundle.path / "rae.onnx").write_bytes(b"")
    again, made = export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    assert made
    assert Bundle.open(again.path).manifest.language is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (250, 140)}, r"--size 250x140: width 250 is not a multiple of 28; the nearest: 224 or 252"),
        ({"size": (252, 10)}, r"height 10 is not a multiple of 28; the nearest: 28"),
        ({"size": (0, 140)}, r"--size 0x140: .*greater than 0"),
        ({"backends": ("onnxruntime", "coreml")}, r"unknown back end coreml; known: onnxruntime, openvino"),
        ({"backends": ()}, r"unknown back end \(none\)"),
        ({"language": "q3_k"}, r"unknown GGUF type 'q3_k'; known: f32, f16, bf16, q8_0, .*none"),
    ],
)
def test_impossible_options(tiny_checkpoint, small, tmp_path, changes, message):
    with pytest.raises(ExportError, match=message):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, **changes))
    assert not list(tmp_path.iterdir())


def test_temporal_patches_that_share_a_position(checkpoint_copy, small, tmp_path):
    facts = json.loads((checkpoint_copy / "tvau.json").read_text())
    facts["clip"]["frames_per_second"] = 8
    (checkpoint_copy / "tvau.json").write_text(json.dumps(facts))
    with pytest.raises(ExportError, match=r"8 frames per second .*--llm none"):
        export_bundle(checkpoint_copy, tmp_path / "bundle", replace(small, language="q8_0"))
    assert export_bundle(checkpoint_copy, tmp_path / "bundle", small)[1]


def test_a_missing_checkpoint(small, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        export_bundle(tmp_path / "nowhere", tmp_path / "bundle", small)
    assert not list(tmp_path.iterdir())


def test_frames_that_cannot_be_read(tiny_checkpoint, small, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all " * 100)
    write_video(tmp_path / "short.mp4", seconds=0.5)
    for name, message in (
        ("missing.mp4", "missing.mp4"),
        ("empty.mp4", "empty.mp4"),
        ("text.mp4", "text.mp4"),
        ("short.mp4", r"short\.mp4 gives 1 temporal patches, at least 2 are needed: 1 s of video"),
    ):
        with pytest.raises(SourceError, match=message):
            export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, frames=tmp_path / name))
    assert not list(tmp_path.glob("*bundle*"))


@pytest.fixture
def wrong(monkeypatch):
    """Let the next export write a vision graph with one weight that is off."""
    right = graphs.export_vision

    def export_wrongly(module, path):
        weight = module.vision.blocks[1].mlp.down_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[3, 5] += 1.0
        right(module, path)
        with torch.no_grad():
            weight.copy_(kept)

    monkeypatch.setattr(graphs, "export_vision", export_wrongly)


def test_a_wrong_graph_stops_the_export(tiny_checkpoint, small, tmp_path, wrong):
    with pytest.raises(
        ExportError, match=r"vision\.onnx: output (h_c|p_v) does not agree with torch fp32"
    ) as caught:
        export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    assert "limit 0.0001" in str(caught.value)
    assert "clip.mp4, 4 temporal patches" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_int8_that_disagrees_names_the_way_out(tiny_checkpoint, small, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "INT8_LIMIT", 1.1)
    with pytest.raises(ExportError, match=r"vision\.int8\.onnx: output .* --no-int8 .* `tvau quantize`"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, int8=True))


def test_an_older_bundle_stays_whole(tiny_checkpoint, small, tmp_path, request):
    bundle, _ = export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    request.getfixturevalue("wrong")
    with pytest.raises(ExportError):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, size=(280, 140)))
    assert Bundle.open(bundle.path).sha256 == bundle.sha256
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_a_graph_that_is_not_a_number_is_wrong(tiny_checkpoint, small, tmp_path, monkeypatch):
    right = graphs.export_rae

    def export_wrongly(module, patches, path):
        with torch.no_grad():
            module.base[0, 0] = float("nan")
        right(module, patches, path)
        with torch.no_grad():
            module.base[0, 0] = 0.5

    monkeypatch.setattr(graphs, "export_rae", export_wrongly)
    with pytest.raises(ExportError, match=r"rae\.onnx: output p_an .* relative_error nan"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    assert not list(tmp_path.iterdir())


def test_a_wrong_language_model_stops_the_export(tiny_checkpoint, small, tmp_path, monkeypatch):
    right = export.write_gguf

    def write_wrongly(checkpoint, path, kind, advance=None):
        object.__setattr__(checkpoint, "lora", Shuffled())
        right(checkpoint, path, kind, advance)
        object.__setattr__(checkpoint, "lora", None)

    class Shuffled:
        scales: ClassVar = {}

        def merge(self, name, tensor):
            return tensor.flip(0) if name.endswith("layers.0.mlp.gate_proj.weight") else tensor

    monkeypatch.setattr(export, "write_gguf", write_wrongly)
    with pytest.raises(ExportError, match=r"lvlm-f16\.gguf: output logits does not agree .* limit 0\.999"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, language="q8_0"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_a_language_model_that_is_not_quantized(tiny_checkpoint, small, tmp_path, kind):
    bundle, _ = export_bundle(tiny_checkpoint, tmp_path / "bundle", replace(small, language=kind))
    checks = [check for check in bundle.manifest.checks if check.tensor == "logits"]
    assert [(check.artifact, check.limit) for check in checks] == [(f"lvlm-{kind}.gguf", 0.999)]
    assert all(isinstance(check, Check) and holds(check) for check in checks)


def test_a_disk_without_room(tiny_checkpoint, small, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "disk_free", lambda path: 1 << 20)
    with pytest.raises(DiskFullError, match=r"needs about \d+ MiB, the disk has 1 MiB free"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(tiny_checkpoint, small, tmp_path, monkeypatch):
    bundle, _ = export_bundle(tiny_checkpoint, tmp_path / "bundle", small)

    def fill(module, patches, path):
        path.write_bytes(bytes(100))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graphs, "export_rae", fill)
    for out in ("bundle", "other"):
        with pytest.raises(DiskFullError, match="the disk is full"):
            export_bundle(tiny_checkpoint, tmp_path / out, replace(small, size=(224, 140)))
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    assert Bundle.open(bundle.path).sha256 == bundle.sha256


def test_a_folder_that_is_no_bundle_is_left_alone(tiny_checkpoint, small, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "letter.txt").write_text("precious")
    with pytest.raises(BundleError, match="is no bundle; choose another --out"):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", small)
    assert (tmp_path / "bundle" / "letter.txt").read_text() == "precious"
