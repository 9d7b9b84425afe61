"""Discovery: one device with its cameras' entities, as Home Assistant's schemas want them, and taken back cleanly."""

import json
import subprocess
from pathlib import Path

import pytest

from tvau_edge.runtime.config import SiteConfig
from tvau_edge.runtime.delivery.homeassistant import HomeAssistant, components, slug

SCHEMAS = Path(__file__).with_name("homeassistant_schemas.py")
PYTHON = Path(__file__).parents[3] / ".homeassistant" / "bin" / "python"  # `make homeassistant` makes it
TOPIC = "homeassistant/device/tvau_box/config"


class Board:
    """Keeps what is announced."""

    root = "tvau/box"

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes]] = []

    def publish_discovery(self, topic: str, payload: bytes, birth: str) -> None:
        assert not payload or birth == f"{topic.split('/')[0]}/status"
        self.told.append((topic, payload))

    @property
    def last(self) -> dict:
        return json.loads(self.told[-1][1])


def site(*names: str, enabled: bool = True, heatmap: bool = True, **more: object) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "device": "box",
            "bundle": "bundle",
            "homeassistant": {"enabled": enabled},
            "camera": [{"name": name, "source": "clip.mp4", "heatmap": heatmap} for name in names],
            **more,
        }
    )


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.fixture
def announcer(board, tmp_path) -> HomeAssistant:
    return HomeAssistant(board, tmp_path / "announced.json")


def test_a_camera_has_four_entities_and_the_box_its_health(announcer, board):
    announcer.announce(site("door"))
    ((topic, payload),) = board.told
    assert topic == TOPIC
    message = json.loads(payload)
    found = message["components"]
    assert {key: entity["platform"] for key, entity in found.items() if key.startswith("door")} == {
        "door_anomaly": "binary_sensor",
        "door_score": "sensor",
        "door_event": "event",
        "door_heatmap": "image",
    }
    health = [entity for key, entity in found.items() if key.startswith("health_")]
    assert {entity["entity_category"] for entity in health} == {"diagnostic"}
    assert len({entity["unique_id"] for entity in found.values()}) == len(found)
    assert message["device"]["identifiers"] == ["tvau_box"]
    assert message["origin"]["name"] == "tvau-edge"


def test_no_picture_unless_it_is_enabled():
    assert "door_heatmap" not in components(site("door", heatmap=False), "tvau/box")


def test_a_camera_that_is_removed_is_named_with_its_platform_alone(announcer, board, tmp_path):
    announcer.announce(site("door", "yard"))
    HomeAssistant(board, tmp_path / "announced.json").announce(site("yard"))  # the next run
    removed = {key: entity for key, entity in board.last["components"].items() if key.startswith("door")}
    assert removed == {
        "door_anomaly": {"platform": "binary_sensor"},
        "door_score": {"platform": "sensor"},
        "door_event": {"platform": "event"},
        "door_heatmap": {"platform": "image"},
    }
    assert board.last["components"]["yard_anomaly"]["state_topic"] == "tvau/box/yard/state"
    announcer.announce(site("yard"))
    assert board.last["components"]["door_event"] == {"platform": "event"}  # someone may have missed it
    announcer.announce(site("yard", "door"))
    assert board.last["components"]["door_event"]["state_topic"] == "tvau/box/door/verdict"


def test_switched_off_it_takes_back_everything_once(announcer, board):
    announcer.announce(site("door"))
    announcer.announce(site("door", enabled=False))
    assert board.told[1:] == [(TOPIC, b"")]
    announcer.announce(site("door", enabled=False))
    assert len(board.told) == 2


def test_another_prefix_or_device_takes_the_old_one_back(announcer, board):
    announcer.announce(site("door"))
    announcer.announce(site("door", homeassistant={"enabled": True, "prefix": "ha"}))
    assert [topic for topic, _ in board.told[1:]] == [TOPIC, "ha/device/tvau_box/config"]
    assert board.told[1][1] == b""


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"a": 1}', '{"#": {}}', "\ud800"])
def test_a_damaged_memory_counts_as_empty(announcer, board, tmp_path, content):
    (tmp_path / "announced.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    announcer.announce(site("door"))
    assert [topic for topic, _ in board.told] == [TOPIC]


def test_names_become_slugs_that_differ():
    assert slug("door-1") == "door-1"
    made = {slug(name) for name in ("a b", "a_b", "a.b", "ä b", "日本")}
    assert len(made) == 5
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") for name in made
    )


def test_it_is_told_again_when_home_assistant_is_born(mosquitto, make_publisher, subscriber, tmp_path):
    publisher = make_publisher(mosquitto.port)
    publisher.start()
    HomeAssistant(publisher, tmp_path / "announced.json").announce(site("door"))
    (first,) = subscriber.wait(TOPIC)
    subscriber._client.publish("homeassistant/status", "offline", qos=1)
    subscriber._client.publish("homeassistant/status", "online", qos=1)
    again = subscriber.wait(TOPIC, 2)[1]
    assert first.payload == again.payload
    assert json.loads(again.payload)["availability"][0]["topic"] == "tvau/box/available"


def test_entities_fulfil_home_assistants_schemas(announcer, board):
    if not PYTHON.exists():
        pytest.skip("Home Assistant is not installed: make homeassistant")
    announcer.announce(site("door", "yard & garden"))
    done = subprocess.run(
        [PYTHON, SCHEMAS], input=board.told[0][1], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.splitlines()) == len(board.last["components"])
