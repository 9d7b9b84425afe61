"""What subscribers see: the verdict of an event, the state of a camera. JSON by a published schema.

`python -m tvau_edge.runtime.verdict` prints the JSON Schema of the verdict; the project keeps it beside this file.
"""

import json
import os
import time
from datetime import datetime, timezone
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

SCHEMA: Literal["tvau.verdict/1"] = "tvau.verdict/1"

Unit = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, StringConstraints(max_length=400)]


def rfc3339(moment: datetime) -> str:
    """A moment as RFC 3339 in UTC, to the millisecond: 2026-11-24T15:04:05.678Z."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at(epoch: float) -> datetime:
    """The moment of seconds since the epoch."""
    return datetime.fromtimestamp(epoch, timezone.utc)


def uuid7() -> UUID:
    """A version 7 UUID (RFC 9562): 48 bits of milliseconds, then random bits; it sorts by time."""
    value = (int(time.time() * 1000) & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return UUID(int=value)


Moment = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    Field(description="RFC 3339, UTC", json_schema_extra={"format": "date-time"}),
]


class Message(BaseModel):
    """Base of what is published: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="null"
    )


class Region(Message):
    """A hot region of the newest heatmap."""

    box: Annotated[
        tuple[Unit, Unit, Unit, Unit],
        Field(description="x1, y1, x2, y2 in 0..1 of the frame, from upper left"),
    ]
    score: Annotated[Unit, Field(description="its hottest cell")]
    name: Annotated[str, Field(description="where it lies, such as 'upper left'")]


class Prompts(Message):
    """The class prompts in force."""

    normal: list[str]
    abnormal: list[str]
    version: Annotated[
        int, Field(ge=0, description="0: the bundle's own; each that is set at run time has one")
    ] = 0


class Model(Message):
    """What made the verdict."""

    name: str
    bundle: Annotated[str, Field(description="sha256 of the bundle's manifest")]
    backend: Annotated[str, Field(description="of the vision graph")]
    quantization: Annotated[
        str, Field(description="of the vision graph, and the GGUF type of the language model")
    ]


class Verdict(Message):
    """One message about an event.

    Verdicts of one event have the same `event` and count `sequence` from 0. An explanation that comes after an
    event has ended is an `update` with a higher sequence than the `end`.
    """

    schema_: Annotated[Literal["tvau.verdict/1"], Field(alias="schema")] = SCHEMA
    id: Annotated[UUID, Field(description="UUIDv7 of this message; the same in every copy of it")]
    event: Annotated[UUID, Field(description="of the event")]
    sequence: Annotated[int, Field(ge=0, description="number of this message in its event")]
    phase: Literal["start", "update", "end"]
    device: str
    camera: str
    time: Annotated[Moment, Field(description="of the newest frame; RFC 3339, UTC")]
    started: Annotated[Moment, Field(description="of the event; RFC 3339, UTC")]
    ended: Annotated[Moment | None, Field(description="of the event, once it has; RFC 3339, UTC")] = None
    score: Annotated[Unit, Field(description="peak so far")]
    anomaly: Annotated[
        Literal["yes", "no", "unsure"],
        Field(description="by the language model; 'unsure' as well while it has not been asked"),
    ]
    p_yes: Annotated[Unit | None, Field(description="probability of yes, from the model's own logits")] = None
    target: Annotated[Text | None, Field(description="which target is abnormal and what it looks like")] = (
        None
    )
    appearance: Annotated[Text | None, Field(description="of the target, where it is asked for apart")] = None
    motion: Annotated[Text | None, Field(description="its state of motion")] = None
    from_: Annotated[Text | None, Field(alias="from", description="from where it comes")] = None
    to: Annotated[Text | None, Field(description="to where it goes")] = None
    explanation: Annotated[str | None, Field(max_length=2000, description="the answers as one text")] = None
    regions: list[Region] = []
    prompts: Prompts
    model: Model
    latency_ms: Annotated[dict[str, float], Field(description="per stage")] = {}
    late: Annotated[bool, Field(description="it waited in the outbox, or its explanation came late")] = False
    abridged: Annotated[
        bool, Field(description="texts, regions and prompts are left out: the broker takes no larger message")
    ] = False

    def to_json(self) -> bytes:
        """The message as it is published."""
        return self.model_dump_json().encode()


class State(Message):
    """Retained: whether a camera sees an anomaly right now."""

    anomaly: Literal["ON", "OFF"]
    score: Annotated[Unit, Field(description="of the newest temporal patch")]
    event: UUID | None = None
    time: Moment

    def to_json(self) -> bytes:
        """The message as it is published."""
        return self.model_dump_json().encode()


def marked_late(payload: bytes) -> bytes:
    """The same verdict as JSON, with `late` set."""
    # A quotation mark inside of a JSON string has a backslash before it, so this can only be the key.
    return payload.replace(b'"late":false', b'"late":true')


def abridged(payload: bytes) -> bytes:
    """The same verdict as JSON without all that makes it large."""
    bare: dict[str, Any] = {
        **dict.fromkeys(("target", "appearance", "motion", "from", "to", "explanation")),
        "regions": [],
        "prompts": {"normal": [], "abnormal": []},
        "latency_ms": {},
        "abridged": True,
    }
    return json.dumps(json.loads(payload) | bare, separators=(",", ":"), ensure_ascii=False).encode()


def verdict_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the verdict."""
    schema = Verdict.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **schema,
    }


if __name__ == "__main__":
    import sys

    sys.stdout.write(json.dumps(verdict_schema(), indent=2) + "\n")
