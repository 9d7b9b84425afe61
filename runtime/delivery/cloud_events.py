"""A verdict's CloudEvents attributes, as MQTT 5 properties (CloudEvents' MQTT protocol binding, binary mode)."""

import json
import re

from tvau_edge.runtime.delivery import properties
from tvau_edge.runtime.verdict import SCHEMA

_JSON = properties.content_type("application/json")
_SAME = properties.user(b"specversion", b"1.0") + properties.user(b"type", SCHEMA.replace("/", ".").encode())
# A quotation mark inside of a JSON string has a backslash before it, so this finds the keys and nothing else.
_ATTRIBUTES = re.compile(
    rb'"id":"([^"]+)".*?"device":"((?:[^"\\]|\\.)*)","camera":"((?:[^"\\]|\\.)*)","time":"([^"]+)"', re.DOTALL
)


class CloudEvents:
    """Writes the properties of verdicts; it remembers those of each camera.

    Args:
        expiry_seconds: after which the broker is to forget a verdict, counted from its storing; None: never.
    """

    def __init__(self, expiry_seconds: int | None) -> None:
        self._expiry_seconds = expiry_seconds
        self._sources: dict[bytes, bytes] = {}  # camera -> what all its verdicts have

    def properties(self, payload: bytes, age: float) -> bytes:
        """Content type, attributes and expiry of a verdict.

        Args:
            payload: JSON; of something else than a verdict there is the content type alone.
            age: seconds since it was stored.
        """
        found = _ATTRIBUTES.search(payload)
        if found is None:
            return _JSON
        number, device, camera, moment = found.groups()
        body = self._sources.get(camera)
        if body is None:
            source = f"urn:tvau:{_unquoted(device)}:{_unquoted(camera)}"
            body = self._sources[camera] = _JSON + _SAME + properties.user(b"source", source.encode())
        if self._expiry_seconds is not None:
            body += properties.expiry(max(1, self._expiry_seconds - int(max(age, 0))))
        return body + properties.user(b"id", number) + properties.user(b"time", moment)


def _unquoted(text: bytes) -> str:
    """A JSON string's value, given what stands between its quotation marks."""
    return str(json.loads(b'"%s"' % text))
