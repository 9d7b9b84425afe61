"""Running engines, against the stand-in; scripts/verify_on_gpu.sh does the same on a GPU."""

import json
import sys

import numpy as np
import pytest
from tiny_graphs import patches

from tvau_edge.runtime.backends import cuda as cuda_module
from tvau_edge.runtime.backends.cuda import Cuda
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.tensorrt import TensorRtGraph, open_tensorrt
from tvau_edge.runtime.detection.choice import choose_graph
from tvau_edge.runtime.engines.build import build_engines
from tvau_edge.runtime.engines.cache import EngineKey, default_folder, graph_digest
from tvau_edge.runtime.errors import BackendError

VERSIONS = ("10.3.0", "10.16.1", "11.1.0", "11.4.1")


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_gives_what_onnx_runtime_gives(gpu, cache, make_bundle, version):
    _, library = gpu(version)
    bundle = make_bundle()
    built = build_engines(bundle, cache, batch=3)
    assert [engine.graph for engine in built] == ["vision.onnx", "rae.onnx"]
    path = str(bundle.file("vision.onnx"))
    plain, fast = OnnxGraph(path), TensorRtGraph(path)
    # Each batch size comes thrice: step by step, recorded, launched; and they take turns.
    for batch in (1, 3, 1, 3, 1, 3, 2):
        inputs = patches(batch)
        for ours, theirs in zip(
            fast.run(inputs, ("p_v", "h_c")), plain.run(inputs, ("p_v", "h_c")), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
            assert ours.dtype == np.float32
    assert library.captures == 2
    assert library.launches == 4
    fast.close()
    assert library.blocks == library.graphs == library.streams == {}


def test_outputs_are_copies(gpu, cache, make_bundle):
    gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    graph = TensorRtGraph(str(bundle.file("vision.onnx")))
    (first,) = graph.run(patches(1), ("p_v",))
    kept = first.copy()
    graph.run(patches(1), ("p_v",))
    np.testing.assert_array_equal(first, kept)


def test_work_that_cannot_be_recorded_is_done_all_the_same(gpu, cache, make_bundle):
    _, library = gpu()
    library.refuse_capture = True
    bundle = make_bundle()
    build_engines(bundle, cache)
    path = str(bundle.file("vision.onnx"))
    graph = TensorRtGraph(path)
    for _ in range(4):
        inputs = patches(2)
        np.testing.assert_allclose(
            graph.run(inputs, ("p_v",))[0], OnnxGraph(path).run(inputs, ("p_v",))[0], rtol=1e-5
        )
    assert library.launches == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": np.zeros((5, 2, 3), np.uint8)}, "batches of 1 to 4"),
        ({"frames": np.zeros((1, 2, 4), np.uint8)}, r"input frames must be \[-1, 2, 3\] uint8"),
        ({"frames": np.zeros((1, 2, 3), np.float32)}, r"frames \[1, 2, 3\] float32"),
        ({"class_features": np.zeros((2, 4))}, r"input class_features must be \[2, 4\] float32"),
    ],
)
def test_what_the_engine_refuses(gpu, cache, make_bundle, change, said):
    gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    graph = TensorRtGraph(str(bundle.file("vision.onnx")))
    with pytest.raises(BackendError, match=f"TensorRT cannot run .*{said}"):
        graph.run(patches(1) | change, ("p_v",))
    with pytest.raises(BackendError, match=r"no output heatmap"):
        graph.run(patches(1), ("heatmap",))


def test_an_engine_that_fails(gpu, cache, make_bundle):
    trt, _ = gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    graph = TensorRtGraph(str(bundle.file("vision.onnx")))
    trt.fail_execute = True
    with pytest.raises(BackendError, match=r"the engine failed: enqueueV3"):
        graph.run(patches(1), ("p_v",))


def test_memory_that_is_not_there(gpu, cache, make_bundle):
    _, library = gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    library.free = 10
    with pytest.raises(BackendError, match=r"CUDA: cudaMalloc failed: out of memory \(2\)"):
        TensorRtGraph(str(bundle.file("vision.onnx")))
    assert library.blocks == {}


def test_an_engine_that_was_never_built(gpu, cache, make_bundle):
    gpu()
    bundle = make_bundle()
    with pytest.raises(
        BackendError, match=r"no engine for .*vision\.onnx in .*`tvau engines build .*bundle` builds"
    ):
        TensorRtGraph(str(bundle.file("vision.onnx")))


def test_an_engine_of_another_version(gpu, cache, make_bundle):
    gpu("10.3.0")
    bundle = make_bundle()
    build_engines(bundle, cache)
    gpu("11.1.0")
    said = r"is of another TensorRT or GPU \(sm87-8-orin--nvgpu-trt10\.3\.0\); this is sm87-8-orin--nvgpu-trt11\.1\.0"
    with pytest.raises(BackendError, match=said):
        TensorRtGraph(str(bundle.file("vision.onnx")))


@pytest.mark.parametrize("damage", ["cut", "flipped", "no facts", "facts of another", "no json"])
def test_a_damaged_engine(gpu, cache, make_bundle, damage):
    gpu()
    bundle = make_bundle()
    engine = build_engines(bundle, cache)[0].engine
    facts = engine.with_suffix(".json")
    content = engine.read_bytes()
    if damage == "cut":
        engine.write_bytes(content[:-7])
    elif damage == "flipped":
        engine.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no facts":
        facts.unlink()
    elif damage == "no json":
        facts.write_text("{")
    else:
        table = json.loads(facts.read_text())
        facts.write_text(json.dumps({**table, "key": {**table["key"], "gpu": "sm90"}}))
    with pytest.raises(BackendError, match=r"tvau engines build"):
        TensorRtGraph(str(bundle.file("vision.onnx")))
    build_engines(bundle, cache)  # builds what is damaged, leaves the rest
    TensorRtGraph(str(bundle.file("vision.onnx"))).run(patches(1), ("p_v",))


def test_an_engine_that_tensorrt_refuses(gpu, cache, make_bundle):
    trt, _ = gpu()
    bundle = make_bundle()
    key = EngineKey(trt.__version__, Cuda().gpu(), graph_digest(bundle.file("vision.onnx")))
    cache.store(key, b'ENGINE{"version": "9.9.9"}\n', {})
    with pytest.raises(
        BackendError, match=r"cannot load the engine of .*version tag does not match.*--again"
    ):
        TensorRtGraph(str(bundle.file("vision.onnx")))


def test_where_engines_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("TVAU_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tvau" / "engines"


def test_the_digest_is_of_graph_and_weights(make_bundle, tmp_path):
    bundle = make_bundle()
    known = graph_digest(bundle.file("vision.onnx"))
    copy = tmp_path / "alone" / "vision.onnx"
    copy.parent.mkdir()
    copy.write_bytes(bundle.file("vision.onnx").read_bytes())
    assert graph_digest(copy) == known
    copy.with_name("vision.onnx.data").write_bytes(b"weights")
    assert graph_digest(copy) != known
    with pytest.raises(BackendError, match=r"no such graph"):
        graph_digest(tmp_path / "none.onnx")


def test_tensorrt_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"TensorRT is not installed.*--system-site-packages"):
        open_tensorrt()


@pytest.mark.parametrize("version", ["8.5.2.2", "10.0.1", "10.2.0", "12.0.0"])
def test_versions_that_are_not_supported(gpu, version):
    gpu("10.3.0")[0].__version__ = version
    with pytest.raises(BackendError, match=f"TensorRT {version} is not supported"):
        open_tensorrt()


def test_cuda_that_is_not_installed(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(cuda_module.ctypes, "CDLL", absent)
    with pytest.raises(BackendError, match=r"no CUDA on this machine"):
        Cuda()


def test_the_stand_in_is_strict(gpu):
    """What 11 removed is not there, and what never was cannot be set."""
    trt, _ = gpu("11.1.0")
    assert not hasattr(trt.BuilderFlag, "FP16")
    assert not hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    logger = type("Logger", (trt.ILogger,), {"log": lambda *_: None})()
    config = trt.Builder(logger).create_builder_config()
    with pytest.raises(AttributeError):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError):
        config.int8_calibrator = None
    trt, _ = gpu("10.3.0")
    with pytest.raises(AssertionError, match=r"not strongly typed"):
        trt.Builder(type("Logger", (trt.ILogger,), {"log": lambda *_: None})()).create_network()


def test_tensorrt_runs_the_plain_onnx_when_it_is_asked_for(make_bundle):
    bundle = make_bundle(vision=(("onnxruntime", "int8"), ("onnxruntime", "fp32")))
    chosen = choose_graph(bundle.manifest.vision, "tensorrt", "auto")
    assert (chosen.backend, chosen.precision) == ("tensorrt", "fp32")
    assert choose_graph(bundle.manifest.vision, "auto", "auto").backend == "onnxruntime"
    with pytest.raises(BackendError, match=r"no graph for back end tensorrt at precision int8"):
        choose_graph(bundle.manifest.vision, "tensorrt", "int8")
