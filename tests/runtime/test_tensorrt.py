"""TensorRT's builder and runner against the stand-in; scripts/verify_on_gpu.sh does the same on a GPU."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tensorrt_standin import FakeCuda, FakeDriver, make_tensorrt
from typer.testing import CliRunner

from tvau_edge.runtime.backends import cuda as cuda_module
from tvau_edge.runtime.backends.cuda import Cuda
from tvau_edge.runtime.backends.onnxruntime import OnnxGraph
from tvau_edge.runtime.backends.tensorrt import TensorRtGraph, open_tensorrt
from tvau_edge.runtime.bundle import Bundle, BundleWriter
from tvau_edge.runtime.engine_build import Told, build_engines, graphs_to_build, limits
from tvau_edge.runtime.engines import EngineCache, EngineKey, default_folder, graph_digest
from tvau_edge.runtime.engines_cli import app
from tvau_edge.runtime.errors import BackendError, ConfigError
from tvau_edge.runtime.manifest import (
    ClassPrompts,
    Geometry,
    GraphFile,
    Manifest,
    Normalization,
    Provenance,
    Thresholds,
)
from tvau_edge.runtime.vision import choose_graph

VERSIONS = ("10.3.0", "10.16.1", "11.1.0", "11.4.1")
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)


def vision_model():
    """Frames [batch, 2, 3] uint8 and class_features [2, 4] -> h_c [batch, 2, 2] and p_v [batch, 4]."""
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["p_v"]),
        helper.make_node("Transpose", ["class_features"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["p_v", "turned"], ["similar"]),
        helper.make_node("Reshape", ["similar", "pair"], ["once"]),
        helper.make_node("Concat", ["once", "once"], ["h_c"], axis=2),
    ]
    constants = {"weight": WEIGHT, "flat": np.array([-1, 6]), "pair": np.array([-1, 2, 1])}
    graph = helper.make_graph(
        nodes,
        "vision",
        [
            helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 2, 3]),
            helper.make_tensor_value_info("class_features", TensorProto.FLOAT, [2, 4]),
        ],
        [
            helper.make_tensor_value_info("h_c", TensorProto.FLOAT, ["batch", 2, 2]),
            helper.make_tensor_value_info("p_v", TensorProto.FLOAT, ["batch", 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def rae_model(zero=None):
    """h_c [3, 2] -> p_an [3, 2]; through Q and DQ with a zero point, where one is given."""
    nodes = [helper.make_node("Neg", ["h_c"], ["p_an"])]
    constants = []
    if zero is not None:
        nodes = [
            helper.make_node("QuantizeLinear", ["h_c", "scale", "zero"], ["q"], "h_c/Q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["p_an"]),
        ]
        constants = [
            numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
            numpy_helper.from_array(zero, "zero"),
        ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 2]) for name in ("h_c", "p_an"))
    graph = helper.make_graph(nodes, "rae", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


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


def patches(batch):
    frames = RNG.integers(0, 256, (batch, 2, 3), dtype=np.uint8)
    return {"frames": frames, "class_features": RNG.normal(size=(2, 4)).astype(np.float32)}


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


def test_engines_are_built_once(gpu, cache, make_bundle):
    trt, _ = gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    assert len(trt.built) == 2
    assert [engine.seconds for engine in build_engines(bundle, cache)] == [0.0, 0.0]
    assert len(trt.built) == 2
    build_engines(bundle, cache, again=True)
    assert len(trt.built) == 4


def test_timings_are_kept_for_the_next_build(gpu, cache, make_bundle):
    trt, _ = gpu()
    bundle = make_bundle()
    build_engines(bundle, cache)
    key = EngineKey(trt.__version__, Cuda().gpu(), "0" * 64)
    assert cache.timings(key).startswith(b"timings:")
    assert cache.timings(EngineKey("11.1.0", Cuda().gpu(), "0" * 64)) == b""


@pytest.mark.parametrize("version", ["10.3.0", "11.1.0"])
def test_what_the_builder_is_told(gpu, cache, make_bundle, version):
    trt, _ = gpu(version, free=6 << 30, total=8 << 30)
    build_engines(make_bundle(), cache, tf32=False)
    config = trt.built[0]
    assert config._pools == {trt.MemoryPoolType.WORKSPACE: (6 << 30) // 4}
    assert (config.builder_optimization_level, config.max_aux_streams) == (2, 0)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert not config._flags - {trt.BuilderFlag.TF32}
    assert config._profiles[0]._shapes == {"frames": ((1, 2, 3), (1, 2, 3), (4, 2, 3))}


def test_limits_grow_with_memory():
    assert limits(6 << 30, 8 << 30).poor
    rich = limits(40 << 30, 64 << 30)
    assert (rich.workspace, rich.level, rich.poor) == (4 << 30, 3, False)
    assert limits(100 << 20, 4 << 30).workspace == 128 << 20


def test_progress_is_told(gpu, cache, make_bundle):
    gpu()
    told = []
    build_engines(make_bundle(), cache, progress=Told(told.append))
    assert told[0] == {"state": "building", "graph": "vision.onnx"}
    assert {"state": "building", "graph": "vision.onnx", "phase": "Tactic Selection", "percent": 66} in told
    assert (
        told.count({"state": "building", "graph": "rae.onnx", "phase": "Building Engine", "percent": 100})
        == 1
    )


def test_a_build_can_be_stopped(gpu, cache, make_bundle):
    gpu()

    class Stopping(Told):
        def wanted(self):
            return False

    with pytest.raises(BackendError, match=r"built no engine of .*vision.onnx: it was stopped"):
        build_engines(make_bundle(), cache, progress=Stopping(lambda _: None))
    assert not list(cache.folder.glob("*.engine"))


def test_a_build_that_fails_says_why(gpu, cache, make_bundle):
    trt, _ = gpu()
    trt.fail_build = True
    with pytest.raises(BackendError, match=r"Could not find any implementation for node MatMul_3"):
        build_engines(make_bundle(), cache)


@pytest.mark.parametrize("zero", [np.array(128, np.uint8), np.array(3, np.int8)])
def test_quantization_that_tensorrt_does_not_take(gpu, cache, make_bundle, zero):
    gpu()
    with pytest.raises(BackendError, match=r"cannot read .*rae\.onnx: h_c/Q: only symmetric"):
        build_engines(make_bundle(rae_model(zero)), cache)


def test_symmetric_int8_is_taken(gpu, cache, make_bundle):
    gpu()
    bundle = make_bundle(rae_model(np.array(0, np.int8)))
    build_engines(bundle, cache)
    h_c = np.array([[1.0, 2.2], [3.1, -1.0], [0, 0]], np.float32)
    (p_an,) = TensorRtGraph(str(bundle.file("rae.onnx"))).run({"h_c": h_c}, ("p_an",))
    np.testing.assert_array_equal(p_an, [[1.0, 2.0], [3.0, -1.0], [0, 0]])


def test_too_little_memory_names_the_swap_that_carries_it(gpu, cache, make_bundle, monkeypatch):
    gpu(free=64 << 20, total=4 << 30)
    monkeypatch.setattr("tvau_edge.runtime.engine_build._swap_free", lambda: 0)
    with pytest.raises(BackendError, match=r"needs about 0\.1 GB, 0\.1 GB are free: .*fallocate -l 1G"):
        build_engines(make_bundle(), cache)
    monkeypatch.setattr("tvau_edge.runtime.engine_build._swap_free", lambda: 1 << 30)
    build_engines(make_bundle(), cache)


def test_the_graph_that_is_for_tensorrt_comes_first(make_bundle):
    bundle = make_bundle(vision=(("onnxruntime", "int8"), ("onnxruntime", "fp32"), ("tensorrt", "int8")))
    assert next((g.backend, g.precision) for g in graphs_to_build(bundle)) == ("tensorrt", "int8")
    bundle = Bundle(
        bundle.path, bundle.manifest.model_copy(update={"vision": bundle.manifest.vision[:1]}), ""
    )
    with pytest.raises(BackendError, match=r"no vision graph that TensorRT runs"):
        graphs_to_build(bundle)


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


def test_a_cache_that_cannot_be_written(gpu, tmp_path, make_bundle):
    gpu()
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"cannot write .*--cache"):
        build_engines(make_bundle(), EngineCache(tmp_path / "file"))


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


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_verb_builds_and_lists(gpu, cache, make_bundle, tmp_path):
    gpu()
    bundle = make_bundle()
    assert "vision.onnx" in invoke("build", bundle.path, "--batch", "2", "--json", tmp_path / "built.json")
    built = json.loads((tmp_path / "built.json").read_text())
    assert [engine["graph"] for engine in built] == ["vision.onnx", "rae.onnx"]
    assert "was there" in invoke("build", bundle.path)
    assert "10.3.0" in invoke("list", "--json", tmp_path / "list.json")
    assert {facts["batch"] for facts in json.loads((tmp_path / "list.json").read_text())} == {2}


def test_listing_leaves_out_what_is_no_engine(cache):
    cache.folder.mkdir(parents=True)
    (cache.folder / "x.json").write_text("{")
    (cache.folder / "y.json").write_text('{"key": 1}')
    assert "10.3" not in invoke("list")


def test_the_verb_needs_a_bundle():
    with pytest.raises(ConfigError, match=r"give the folder of a bundle, or --config"):
        invoke("build")


def site(tmp_path, bundle, port):
    file = tmp_path / "site.toml"
    file.write_text(
        f'device = "box"\nbundle = "{bundle.path}"\n[broker]\nport = {port}\n'
        '[[camera]]\nname = "door"\nsource = "door.mp4"\n[[camera]]\nname = "yard"\nsource = "yard.mp4"\n'
    )
    return file


def test_news_of_a_build_reach_the_broker(gpu, cache, make_bundle, tmp_path, mosquitto, subscribe):
    trt, _ = gpu()
    subscriber = subscribe(mosquitto.port)
    invoke("build", "--config", site(tmp_path, make_bundle(), mosquitto.port))
    assert trt.built[0]._profiles[0]._shapes["frames"][2][0] == 2  # one for each camera
    subscriber.wait_payload("tvau/box/engines", b'{"state": "ready", "graph": "vision.onnx, rae.onnx"}')
    states = [json.loads(payload)["state"] for payload in subscriber.payloads("tvau/box/engines")]
    assert states[0] == "building"


def test_a_failure_is_news_as_well(gpu, cache, make_bundle, tmp_path, mosquitto, subscribe):
    trt, _ = gpu()
    trt.fail_build = True
    subscriber = subscribe(mosquitto.port)
    with pytest.raises(BackendError):
        invoke("build", "--config", site(tmp_path, make_bundle(), mosquitto.port))
    payload = json.loads(subscriber.wait("tvau/box/engines", 2)[-1].payload)
    assert payload["state"] == "failed"
    assert "MatMul_3" in payload["reason"]


def test_a_broker_that_is_not_there_does_not_stop_a_build(gpu, cache, make_bundle, tmp_path, free_port):
    gpu()
    assert "vision.onnx" in invoke("build", "--config", site(tmp_path, make_bundle(), free_port))


def test_tensorrt_runs_the_plain_onnx_when_it_is_asked_for(make_bundle):
    bundle = make_bundle(vision=(("onnxruntime", "int8"), ("onnxruntime", "fp32")))
    chosen = choose_graph(bundle.manifest.vision, "tensorrt", "auto")
    assert (chosen.backend, chosen.precision) == ("tensorrt", "fp32")
    assert choose_graph(bundle.manifest.vision, "auto", "auto").backend == "onnxruntime"
    with pytest.raises(BackendError, match=r"no graph for back end tensorrt at precision int8"):
        choose_graph(bundle.manifest.vision, "tensorrt", "int8")
