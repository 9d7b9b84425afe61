"""Building engines, against the stand-in, and the verb `tvau engines`."""

import json

import numpy as np
import pytest
from tiny_graphs import rae_model
from typer.testing import CliRunner

from tvau_edge.runtime.backends.cuda import Cuda
from tvau_edge.runtime.backends.tensorrt import TensorRtGraph
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.engines.build import Told, build_engines, graphs_to_build, limits
from tvau_edge.runtime.engines.cache import EngineCache, EngineKey
from tvau_edge.runtime.errors import BackendError, ConfigError
from tvau_edge.runtime.verbs.engines import app


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
    monkeypatch.setattr("tvau_edge.runtime.engines.build._swap_free", lambda: 0)
    with pytest.raises(BackendError, match=r"needs about 0\.1 GB, 0\.1 GB are free: .*fallocate -l 1G"):
        build_engines(make_bundle(), cache)
    monkeypatch.setattr("tvau_edge.runtime.engines.build._swap_free", lambda: 1 << 30)
    build_engines(make_bundle(), cache)


def test_the_graph_that_is_for_tensorrt_comes_first(make_bundle):
    bundle = make_bundle(vision=(("onnxruntime", "int8"), ("onnxruntime", "fp32"), ("tensorrt", "int8")))
    assert next((g.backend, g.precision) for g in graphs_to_build(bundle)) == ("tensorrt", "int8")
    bundle = Bundle(
        bundle.path, bundle.manifest.model_copy(update={"vision": bundle.manifest.vision[:1]}), ""
    )
    with pytest.raises(BackendError, match=r"no vision graph that TensorRT runs"):
        graphs_to_build(bundle)


def test_a_cache_that_cannot_be_written(gpu, tmp_path, make_bundle):
    gpu()
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"cannot write .*--cache"):
        build_engines(make_bundle(), EngineCache(tmp_path / "file"))


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
