import sys

import numpy as np
import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.graphs import convert_to_openvino, export_rae, export_vision
from tvau_edge.export.verify import INT8_LIMIT, cosine
from tvau_edge.quantize.gate import ALIKE
from tvau_edge.quantize.onnx_int8 import quantize_vision
from tvau_edge.runtime.bundle import BundleWriter
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.choice import preference
from tvau_edge.runtime.detection.heatmap import heatmap, patch_score
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import BackendError, MissingExtraError
from tvau_edge.runtime.manifest import ClassPrompts, GraphFile, Manifest, Normalization, Provenance

GRAPHS = {
    "vision.onnx": ("onnxruntime", "fp32"),
    "vision.int8.onnx": ("onnxruntime", "int8"),
    "vision.xml": ("openvino", "fp32"),
}


@pytest.fixture(scope="module")
def checkpoint(tiny_language):
    return Checkpoint.open(tiny_language)


@pytest.fixture(scope="module")
def frames(checkpoint):
    """Six temporal patches with coarse shapes in them, [6, 2, H, W, 3]."""
    clip = checkpoint.config.clip
    cells = np.random.default_rng(3).integers(0, 256, (6, 2, *clip.grid, 3), dtype=np.uint8)
    return cells.repeat(14, axis=2).repeat(14, axis=3)


@pytest.fixture(scope="module")
def bundle(checkpoint, frames, tmp_path_factory):
    """A bundle with every form of the vision graph, without a language model."""
    config, features = checkpoint.config, checkpoint.class_features().numpy()
    with BundleWriter(tmp_path_factory.mktemp("vision") / "bundle") as writer:
        export_vision(checkpoint.vision_module(), writer.path("vision.onnx"))
        export_rae(checkpoint.rae_module(), config.clip.temporal_patches, writer.path("rae.onnx"))
        quantize_vision(writer.path("vision.onnx"), writer.path("vision.int8.onnx"), frames, features)
        convert_to_openvino(writer.path("vision.onnx"), writer.path("vision.xml"))
        writer.add_class_features("class_prompts.safetensors", features)
        return writer.finish(
            lambda files: Manifest(
                name="tiny",
                created="2026-01-01T00:00:00Z",
                licence="Apache-2.0",
                provenance=Provenance(checkpoint="tiny", checkpoint_sha256="0" * 64),
                geometry=config.clip,
                normalization=Normalization(),
                thresholds=config.thresholds,
                class_prompts=ClassPrompts(**config.class_prompts.model_dump()),
                vision=[GraphFile(backend=b, precision=p, file=name) for name, (b, p) in GRAPHS.items()],
                rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
                base_tokens=config.base_tokens,
                files=files,
            )
        )


@pytest.fixture(params=[*GRAPHS.values(), ("openvino", "bf16")], ids=" ".join)
def vision(bundle, request):
    backend, precision = request.param
    if precision == "bf16" and not preference("vision").bf16:
        pytest.skip("this CPU does not compute bf16 itself")
    opened = Vision.open(bundle, backend, precision, threads=1)
    yield opened
    opened.close()


@pytest.fixture
def patches(frames):
    return [
        TemporalPatch(f"camera {k % 2}", k, frames[k], (0.5 * k, 0.5 * k + 0.25), 1000 + k) for k in range(6)
    ]


def test_evidence_is_what_torch_computes(vision, checkpoint, frames, patches):
    with torch.no_grad():
        h_c, p_v = checkpoint.vision_module()(torch.from_numpy(frames), checkpoint.class_features())
    exact = vision.file.precision == "fp32"
    for k, item in enumerate(vision.run(patches)):
        for mine, theirs in ((item.h_c, h_c[k].numpy()), (item.p_v, p_v[k].numpy())):
            assert mine.shape == theirs.shape
            assert mine.dtype == np.float32
            difference = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
            assert difference < (1e-5 if exact else 0.15)


def test_bf16_is_within_what_int8_may_cost(bundle, patches):
    if not preference("vision").bf16:
        pytest.skip("this CPU does not compute bf16 itself")
    exact, rounded = Vision.open(bundle, "openvino", "fp32", 1), Vision.open(bundle, "openvino", "bf16", 1)
    assert (rounded.file.precision, rounded.file.file) == ("bf16", exact.file.file)
    for mine, theirs in zip(rounded.run(patches), exact.run(patches), strict=True):
        assert not np.array_equal(mine.h_c, theirs.h_c)  # or it would not be bf16
        assert cosine(mine.h_c[None], theirs.h_c[None]) >= INT8_LIMIT
        assert cosine(mine.p_v[None], theirs.p_v[None]) >= INT8_LIMIT
        assert abs(mine.score - theirs.score) <= ALIKE


def test_evidence_says_what_it_is_of(vision, bundle, patches):
    found = vision.run(patches)
    rows, columns = bundle.manifest.geometry.grid
    assert [(e.camera, e.index, e.pts, e.time) for e in found] == [
        (p.camera, p.index, p.pts[1], p.time) for p in patches
    ]
    for item in found:
        assert item.heatmap.shape == (rows, columns)
        np.testing.assert_array_equal(item.heatmap, heatmap(item.h_c))
        assert item.score == patch_score(item.heatmap)
        assert 0 <= item.heatmap.min() <= item.score <= item.heatmap.max() <= 1


def test_a_patch_gives_the_same_alone_and_in_a_batch(vision, patches):
    together = vision.run(patches)
    backwards = vision.run(patches[::-1])[::-1]
    for patch, *others in zip(patches, together, backwards, strict=True):
        (alone,) = vision.run([patch])
        for other in others:
            np.testing.assert_allclose(other.h_c, alone.h_c, rtol=0, atol=2e-6)
            np.testing.assert_allclose(other.p_v, alone.p_v, rtol=0, atol=2e-5)


def test_a_patch_does_not_depend_on_its_neighbours(vision, patches):
    kept = vision.run([patches[0], patches[1]])[0]
    other = vision.run([patches[0], patches[5]])[0]
    np.testing.assert_array_equal(kept.h_c, other.h_c)
    np.testing.assert_array_equal(kept.p_v, other.p_v)


def test_class_features_change_between_two_patches(vision, patches, bundle):
    features = bundle.class_features()
    before = vision.run(patches[:1])[0]
    vision.set_class_features(features[::-1])  # a view with negative strides
    after = vision.run(patches[:1])[0]
    np.testing.assert_allclose(after.h_c, before.h_c[::-1], atol=1e-6)
    np.testing.assert_array_equal(after.p_v, before.p_v)
    vision.set_class_features(features)
    np.testing.assert_array_equal(vision.run(patches[:1])[0].h_c, before.h_c)


def test_class_features_of_another_width(vision):
    with pytest.raises(ValueError, match=r"class features of shape \(2, 3\), expected \(2, 64\)"):
        vision.set_class_features(np.zeros((2, 3), np.float32))


def test_frames_of_another_size(vision, patches):
    small = TemporalPatch("a", 0, patches[0].frames[:, :28], (0, 0.25), 0)
    with pytest.raises(BackendError, match=r"frames \[1, 2, 28, 84, 3\] uint8"):
        vision.run([small])


def test_a_back_end_that_is_not_installed(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        Vision.open(bundle, "openvino")
