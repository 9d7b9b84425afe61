"""A bundle of tiny graphs, TensorRT and CUDA that stand in, and a cache of engines."""

import sys

import numpy as np
import onnx
import pytest
from cuda_standin import FakeCuda, FakeDriver
from tensorrt_standin import make_tensorrt
from tiny_graphs import rae_model, vision_model

from tvau_edge.runtime.backends import cuda as cuda_module
from tvau_edge.runtime.bundle import BundleWriter
from tvau_edge.runtime.engines.cache import EngineCache
from tvau_edge.runtime.manifest import (
    ClassPrompts,
    Geometry,
    GraphFile,
    Manifest,
    Normalization,
    Provenance,
    Thresholds,
)


@pytest.fixture
def make_bundle(tmp_path):
    def make(rae=None, vision=(("onnxruntime", "fp32"),)):
        with BundleWriter(tmp_path / "bundle") as writer:
            onnx.save(vision_model(), writer.path("vision.onnx"))
            onnx.save(rae or rae_model(), writer.path("rae.onnx"))
            writer.add_class_features("class_prompts.safetensors", np.ones((2, 4), np.float32))
            return writer.finish(
                lambda files: Manifest(
                    name="tiny",
                    created="2026-11-25T00:00:00Z",
                    licence="none",
                    provenance=Provenance(checkpoint="tiny", checkpoint_sha256="0" * 64),
                    geometry=Geometry(width=28, height=28, frames_per_second=4, temporal_patches=2),
                    normalization=Normalization(),
                    thresholds=Thresholds(open=0.6, close=0.4),
                    class_prompts=ClassPrompts(normal=["a"], abnormal=["b"]),
                    vision=[GraphFile(backend=b, precision=p, file="vision.onnx") for b, p in vision],
                    rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
                    files=files,
                )
            )

    return make


@pytest.fixture
def gpu(monkeypatch):
    """Puts a version of TensorRT and CUDA in place; returns both."""

    def put(version="10.3.0", **memory):
        library = FakeCuda(**memory)
        monkeypatch.setattr(
            cuda_module, "_open", lambda names: library if "cudart" in names[0] else FakeDriver()
        )
        trt = make_tensorrt(version, library)
        monkeypatch.setitem(sys.modules, "tensorrt", trt)
        return trt, library

    return put


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TVAU_ENGINES", str(tmp_path / "engines"))
    return EngineCache()
