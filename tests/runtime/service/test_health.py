import json
import socket
import sys
import urllib.request

import pytest
from jsonschema import Draft202012Validator

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.config import parse_config
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.errors import ConfigError, MissingExtraError
from tvau_edge.runtime.service.health import Health, HealthReader, power, process_status, temperature
from tvau_edge.runtime.service.metrics import _BOX, _CAMERA, Metrics
from tvau_edge.runtime.service.pipeline import Pipeline

DELIVERY = {"waiting": 3, "dropped": 0, "durable": True}


class Sink:
    def publish_verdict(self, verdict):
        pass

    publish_state = publish_heatmap = lambda self, *_: None


@pytest.fixture(scope="module")
def pipeline(red_bundle, draw_clip, tmp_path_factory):
    """One that has watched a clip."""
    clip = draw_clip(tmp_path_factory.mktemp("health") / "clip.mp4", 6, (2, 3))
    bundle = Bundle.open(red_bundle)
    vision = Vision.open(bundle, threads=1)
    cameras = [
        {"name": "door", "source": str(clip), "motion_gate": 8},
        {"name": "yard", "source": str(clip)},
    ]
    done = Pipeline(parse_config({"bundle": red_bundle, "camera": cameras}, "test"), bundle, vision, Sink())
    done.run()
    yield done
    vision.close()


def test_it_tells_how_everything_does(pipeline):
    health = HealthReader("box").read(pipeline, DELIVERY)
    assert set(health.cameras) == {"door", "yard"}
    door, yard = health.cameras["door"], health.cameras["yard"]
    assert (door.state, door.frames, door.patches, door.events, door.event) == ("ended", 48, 12, 1, False)
    assert (yard.patches_still, door.patches_still) == (0, 24 - health.vision.patches)
    assert door.patches_still > 0
    assert door.lag_ms is None  # a file has none
    assert 0 < health.vision.ms <= health.vision.ms_p95
    assert (health.vision.backend, health.vision.precision) == ("onnxruntime", "fp32")
    assert health.verdicts == 4
    assert (health.delivery.waiting, health.delivery.durable) == (3, True)
    assert health.dialogue is None
    assert health.memory_bytes > 10e6
    assert health.peak_memory_bytes >= health.memory_bytes
    assert health.threads >= 1
    assert health.open_files > 2
    assert {"av", "numpy", "onnxruntime"} <= health.versions.keys()


def test_the_message_is_json_by_its_schema(pipeline):
    message = json.loads(HealthReader("box").read(pipeline, DELIVERY).to_json())
    Draft202012Validator(Health.model_json_schema(mode="serialization")).validate(message)
    assert message["schema"] == "tvau.health/1"
    assert message["time"].endswith("Z")


def test_sensors(tmp_path):
    for number, value in enumerate(["45000", "61500", "-273000", "asleep"]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(f"{value}\n")
    for number, value in enumerate(["4200000", "1300000"]):
        sensor = tmp_path / f"hwmon{number}"
        sensor.mkdir()
        (sensor / f"power{number + 1}_input").write_text(f"{value}\n")
    assert temperature(tmp_path) == 61.5
    assert power(tmp_path) == pytest.approx(5.5)
    assert temperature(tmp_path / "none") is power(tmp_path / "none") is None
    assert process_status(tmp_path / "none") == {}


# ---------------------------------------------------------------- Prometheus


@pytest.fixture
def metrics(pipeline):
    served = Metrics("127.0.0.1", 0, lambda: HealthReader("box").read(pipeline, DELIVERY))
    yield served
    served.close()


def scrape(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_prometheus_can_read_it(metrics, pipeline):
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(scrape(metrics.port))}
    samples = {
        (sample.name, sample.labels.get("camera")): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert samples["tvau_camera_patches_total", "door"] == 12
    assert samples["tvau_camera_events_total", "yard"] == 1
    assert samples["tvau_camera_up", "door"] == 0
    assert samples["tvau_outbox_waiting", None] == 3
    assert samples["tvau_vision_milliseconds", None] > 0
    assert ("tvau_dialogue_waiting", None) not in samples
    assert families["tvau_camera_patches"].type == "counter"
    assert families["tvau_camera_fps"].type == "gauge"
    assert all(family.documentation for family in families.values())


def test_what_is_shown_exists_in_health():
    fields = Health.model_fields
    for path, *_ in _BOX:
        assert path.split(".")[0] in fields, path
    camera = fields["cameras"].annotation.__args__[1].model_fields
    assert {key for key, *_ in _CAMERA} <= camera.keys()


def test_a_port_that_is_taken(pipeline):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="nothing can listen on"),
    ):
        Metrics("127.0.0.1", taken.getsockname()[1], lambda: None)


def test_a_host_that_is_not_ours():
    with pytest.raises(ConfigError, match=r"nothing can listen on 203\.0\.113\.1"):
        Metrics("203.0.113.1", 0, lambda: None)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"tvau-edge\[metrics\]"):
        Metrics("127.0.0.1", 0, lambda: None)
