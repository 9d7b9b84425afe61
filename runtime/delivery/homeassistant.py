"""Home Assistant's MQTT discovery: this box as one device with its cameras' entities, in one retained message.

Form: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload (Home Assistant 2024.12 and later).
A component that is gone must be named once more with nothing but its platform; so we keep beside the outbox what we
announced.
"""

import hashlib
import json
import logging
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from tvau_edge.runtime.config import SiteConfig

log = logging.getLogger(__name__)

Component = dict[str, Any]

# Availability is "online", "offline" by the last will, or "stopped".
_AVAILABLE = "{{ 'online' if value == 'online' else 'offline' }}"
# The event's type and, as attributes, all of the verdict.
_EVENT = "{{ dict(value_json, event_type=value_json.phase) | tojson }}"
# Of `health`: name of the entity, template, and more of its description.
_DIAGNOSTICS: dict[str, tuple[str, str, Component]] = {
    "waiting": ("Verdicts waiting", "{{ value_json.delivery.waiting }}", {"state_class": "measurement"}),
    "dropped": ("Verdicts dropped", "{{ value_json.delivery.dropped }}", {"state_class": "total_increasing"}),
    "memory": (
        "Memory",
        "{{ value_json.memory_bytes | default(none) }}",
        {"state_class": "measurement", "device_class": "data_size", "unit_of_measurement": "B"},
    ),
    "temperature": (
        "Temperature",
        "{{ value_json.temperature_celsius | default(none) }}",
        {"state_class": "measurement", "device_class": "temperature", "unit_of_measurement": "°C"},
    ),
}


class Announcing(Protocol):
    """Where a discovery message goes; `Publisher` is one."""

    root: str

    def publish_discovery(self, topic: str, payload: bytes, birth: str) -> None:
        """Publish it, retained, and again when Home Assistant says on `birth` that it is online."""


def slug(name: str) -> str:
    """A name of letters, digits, `_` and `-` alone, as discovery wants it; different for different names."""
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", name)
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def components(config: SiteConfig, root: str) -> dict[str, Component]:
    """The entities of a site: per camera an anomaly, a score, an event and perhaps a picture; health of the box.

    Args:
        config: the site's.
        root: of the topics.
    """
    device = slug(config.device)
    found: dict[str, Component] = {}

    def add(key: str, platform: str, **more: Any) -> None:
        found[key] = {"platform": platform, "unique_id": f"tvau_{device}_{key}", **more}

    for camera in config.camera:
        key, topics = slug(camera.name), f"{root}/{camera.name}"
        add(
            f"{key}_anomaly",
            "binary_sensor",
            name=f"{camera.name} anomaly",
            device_class="problem",
            state_topic=f"{topics}/state",
            value_template="{{ value_json.anomaly }}",
            payload_on="ON",
            payload_off="OFF",
        )
        add(
            f"{key}_score",
            "sensor",
            name=f"{camera.name} score",
            icon="mdi:chart-bell-curve",
            state_class="measurement",
            state_topic=f"{topics}/state",
            value_template="{{ value_json.score | round(3) }}",
            suggested_display_precision=2,
        )
        add(
            f"{key}_event",
            "event",
            name=f"{camera.name} event",
            icon="mdi:cctv",
            event_types=["start", "update", "end"],
            state_topic=f"{topics}/verdict",
            value_template=_EVENT,
        )
        if camera.heatmap:
            add(
                f"{key}_heatmap",
                "image",
                name=f"{camera.name} heatmap",
                content_type="image/jpeg",
                image_topic=f"{topics}/heatmap",
            )
    for key, (name, template, more) in _DIAGNOSTICS.items():
        add(
            f"health_{key}",
            "sensor",
            name=name,
            entity_category="diagnostic",
            state_topic=f"{root}/health",
            value_template=template,
            **more,
        )
    return found


class HomeAssistant:
    """Announces a site to Home Assistant, and takes back what is no longer there.

    Args:
        publisher: where the messages go.
        memory: JSON file that keeps what was announced; a file that is absent or damaged counts as empty.
    """

    def __init__(self, publisher: Announcing, memory: Path) -> None:
        self._publisher, self._memory = publisher, memory

    def announce(self, config: SiteConfig) -> None:
        """Announce the site as it is now: at start, and after each change of its cameras.

        Switched off, it takes back what an earlier run announced.
        """
        before = self._recall()
        topic = f"{config.homeassistant.prefix}/device/tvau_{slug(config.device)}/config"
        birth = f"{config.homeassistant.prefix}/status"
        for old in before.keys() - ({topic} if config.homeassistant.enabled else set()):
            self._publisher.publish_discovery(old, b"", birth)
        if not config.homeassistant.enabled:
            self._remember({})
            return
        now = components(config, self._publisher.root)
        gone = {key: platform for key, platform in before.get(topic, {}).items() if key not in now}
        payload = {
            "device": {
                "identifiers": [f"tvau_{slug(config.device)}"],
                "name": config.device,
                "manufacturer": "tvau-edge",
                "model": "T-VAU edge device",
                "sw_version": _version(),
            },
            "origin": {"name": "tvau-edge", "sw_version": _version()},
            "availability": [{"topic": f"{self._publisher.root}/available", "value_template": _AVAILABLE}],
            "qos": 1,
            "components": now | {key: {"platform": platform} for key, platform in gone.items()},
        }
        self._publisher.publish_discovery(topic, json.dumps(payload, ensure_ascii=False).encode(), birth)
        # What is gone stays named: Home Assistant may have been away when we said so.
        self._remember({topic: gone | {key: str(component["platform"]) for key, component in now.items()}})

    def _recall(self) -> dict[str, dict[str, str]]:
        """What was announced: discovery topic -> component -> its platform."""
        try:
            found = json.loads(self._memory.read_text(encoding="utf-8"))
            return {
                str(topic): {str(key): str(platform) for key, platform in named.items()}
                for topic, named in found.items()
                if str(topic).endswith("/config") and not set(topic) & set("+#\0")
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            log.warning("%s cannot be read (%s): entities of removed cameras may remain", self._memory, error)
            return {}

    def _remember(self, announced: dict[str, dict[str, str]]) -> None:
        partial = self._memory.with_name(f".{self._memory.name}.part")
        try:
            if not announced:
                self._memory.unlink(missing_ok=True)
                return
            partial.write_text(json.dumps(announced, indent=2, sort_keys=True), encoding="utf-8")
            partial.replace(self._memory)
        except OSError as error:
            log.warning(
                "%s cannot be written (%s): entities of cameras removed later may remain", self._memory, error
            )


def _version() -> str:
    try:
        return version("tvau-edge")
    except PackageNotFoundError:
        return "unknown"
