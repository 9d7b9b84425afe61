"""The verdict: every message is valid by the published schema."""

import json
import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID, uuid4

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tvau_edge.runtime import verdict as module
from tvau_edge.runtime.verdict import (
    Model,
    Prompts,
    Region,
    State,
    Verdict,
    at,
    rfc3339,
    uuid7,
    verdict_schema,
)

STAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
FILE = Path(module.__file__).with_name("verdict.schema.json")

units = st.floats(0, 1)
texts = st.text(st.characters(codec="utf-8"), max_size=400)
moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(timezone.utc))
verdicts = st.builds(
    Verdict,
    id=st.builds(uuid7),
    event=st.uuids(version=4),
    sequence=st.integers(0, 10**6),
    phase=st.sampled_from(["start", "update", "end"]),
    device=texts,
    camera=texts,
    time=moments,
    started=moments,
    ended=st.none() | moments,
    score=units,
    anomaly=st.sampled_from(["yes", "no", "unsure"]),
    p_yes=st.none() | units,
    target=st.none() | texts,
    appearance=st.none() | texts,
    motion=st.none() | texts,
    from_=st.none() | texts,
    to=st.none() | texts,
    explanation=st.none() | texts,
    regions=st.lists(
        st.builds(Region, box=st.tuples(units, units, units, units), score=units, name=texts), max_size=3
    ),
    prompts=st.builds(Prompts, normal=st.lists(texts, max_size=2), abnormal=st.lists(texts, max_size=2)),
    model=st.builds(Model, name=texts, bundle=texts, backend=texts, quantization=texts),
    latency_ms=st.dictionaries(texts, st.floats(0, 1e9), max_size=3),
    late=st.booleans(),
)


def make(**changes: object) -> Verdict:
    moment = at(1_800_000_000.0)
    fields: dict[str, object] = {
        "id": uuid7(),
        "event": uuid4(),
        "sequence": 0,
        "phase": "start",
        "device": "gate-7",
        "camera": "door",
        "time": moment,
        "started": moment,
        "score": 0.9,
        "anomaly": "unsure",
        "prompts": Prompts(normal=["a person"], abnormal=["a thief"]),
        "model": Model(name="m", bundle="0" * 64, backend="onnxruntime", quantization="int8"),
    }
    return Verdict.model_validate(fields | changes)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())


def test_the_published_schema_is_current():
    expected = "python -m tvau_edge.runtime.verdict > runtime/verdict.schema.json"
    assert json.loads(FILE.read_text()) == verdict_schema(), f"make it anew: {expected}"


@settings(max_examples=60, deadline=None)
@given(message=verdicts)
def test_every_message_is_valid(validator, message):
    table = json.loads(message.to_json())
    validator.validate(table)
    assert Verdict.model_validate(table).to_json() == message.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "begin"},
        {"score": 1.1},
        {"sequence": -1},
        {"anomaly": "maybe"},
        {"id": "no uuid"},
        {"target": "x" * 401},
        {"unknown": 1},
        {"regions": [{"box": [0, 0, 1], "score": 0.5, "name": "left"}]},
        {"schema": "tvau.verdict/2"},
    ],
)
def test_schema_and_model_refuse_the_same(validator, change):
    table = json.loads(make().to_json()) | change
    with pytest.raises(ValidationError):
        Verdict.model_validate(table)
    assert not validator.is_valid(table)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1])
def test_a_score_is_a_number_in_0_to_1(score):
    with pytest.raises(ValidationError):
        make(score=score)


def test_keys_are_those_of_the_schema():
    table = json.loads(make(from_="the left", to="the door").to_json())
    assert (table["from"], table["to"]) == ("the left", "the door")
    assert table["schema"] == "tvau.verdict/1"
    assert "from_" not in table
    assert "schema_" not in table
    assert set(table) == set(verdict_schema()["properties"])


def test_moments_are_utc_to_the_millisecond():
    moment = datetime(2026, 11, 24, 16, 4, 5, 678900, timezone(timedelta(hours=1)))
    assert rfc3339(moment) == "2026-11-24T15:04:05.678Z"
    table = json.loads(make(ended=moment).to_json())
    for key in ("time", "started", "ended"):
        assert STAMP.match(table[key]), key


def test_a_state_says_on_or_off():
    table = json.loads(State(anomaly="ON", score=0.5, event=None, time=at(0)).to_json())
    assert table == {"anomaly": "ON", "score": 0.5, "event": None, "time": "1970-01-01T00:00:00.000Z"}


def test_uuid7_has_version_variant_and_order(monkeypatch):
    clock = iter([1e9 + step / 1000 for step in range(50)])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    ids = [uuid7() for _ in range(50)]
    assert {identity.version for identity in ids} == {7}
    assert all(identity.variant == UUID(int=2 << 62).variant for identity in ids)
    assert ids == sorted(ids)
    assert ids[0].int >> 80 == 10**12
    assert len({identity.int & (1 << 62) - 1 for identity in ids}) == 50
