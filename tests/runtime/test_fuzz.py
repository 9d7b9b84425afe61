"""Whatever stands in a configuration or a manifest, it is read or refused in a sentence; nothing else ever escapes.

A short form runs always; `python -m pytest -m slow tests/runtime/test_fuzz.py` runs 10,000 inputs of each kind.
"""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.feed import Feed
from tvau_edge.runtime.cameras.intake import Intake
from tvau_edge.runtime.config import SiteConfig, load_config, parse_config
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.errors import BundleError, ConfigError
from tvau_edge.runtime.manifest import Geometry, Thresholds

SHORT, LONG = 200, 10_000
GEOMETRY = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)

SITE = {
    "device": "box",
    "bundle": "bundle",
    "broker": {
        "host": "localhost",
        "port": 1883,
        "tls": {"ca": "ca.pem"},
        "username": "me",
        "password_env": "P",
    },
    "vision": {"backend": "auto", "precision": "int8", "threads": 2, "batch": 8, "stall_seconds": 60.0},
    "trigger": {"open": 0.6, "close": 0.4, "open_after": 1, "close_after": 4, "update_seconds": 5.0},
    "language": {"enabled": "auto", "unsure": [0.4, 0.6], "gpu_layers": 0},
    "outbox": {"path": "outbox.db", "max_bytes": 1000, "max_age_seconds": 5.0},
    "health": {"seconds": 30.0, "prometheus_port": 9000},
    "camera": [
        {
            "name": "door",
            "source": "rtsp://cam/1",
            "stall_seconds": 5.0,
            "schedule": ["mon-fri 07:00-19:00"],
            "motion_gate": 5.0,
            "mask": [[[0, 0], [0.5, 0], [0.5, 0.5]]],
            "include": [[[0, 0], [1, 0], [1, 1], [0, 1]]],
        },
        {"name": "yard", "source": "yard.mp4", "upscale": True},
    ],
}

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 0.5, 2**31, 2**63, 2**64, 10**30, 1e308, float("inf"), float("nan"), 1e-320]),
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            " ",
            "a/b",
            "#",
            "+",
            "\0",
            "../..",
            "auto",
            "mon 25:00-26:00",
            "gst:",
            "gst: '",
            "rtsp://",
            "x" * 5000,
        ]
    ),
)
leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(tree, path=()):
    """Every place of a tree of dicts and lists, as a path."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(tree, path, change):
    """A copy of the tree, with `change` applied at a path."""
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed(copy[path[0]], path[1:], change)
    return copy


@st.composite
def spoilt(draw, tree):
    """A tree with one to three changes: a value replaced, a key dropped, renamed, doubled or added."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(tree))))
        what = draw(st.sampled_from(["replace", "drop", "rename", "add", "double"]))
        value = draw(values)
        name = draw(texts)

        def change(node, what=what, value=value, name=name):
            if what == "replace" or not isinstance(node, (dict, list)) or not node:
                return value
            if isinstance(node, list):
                return {"drop": node[1:], "add": [*node, value], "double": node + node}.get(what, [value])
            first = next(iter(node))
            rest = {key: item for key, item in node.items() if key != first}
            return {
                "drop": rest,
                "rename": {**rest, f"{first}s": node[first]},
                "add": {**node, name: value},
                "double": {**node, f"{first}{name}": node[first]},
            }[what]

        tree = changed(tree, path, change)
    return tree


def read_site(table):
    """A table is a configuration with which cameras can be set up, or it is refused in words."""
    site, problem = None, "site.toml: "
    try:
        site = parse_config(table, "site.toml")
    except ConfigError as error:
        problem = str(error)
    assert problem.startswith("site.toml: ")
    if site is None:
        return
    intake = Intake([camera.name for camera in site.camera])
    for camera in site.camera:
        Feed(camera, GEOMETRY, intake)
        Trigger(
            _thresholds(site),
            3,
            open_after=site.trigger.open_after,
            close_after=site.trigger.close_after,
            update_seconds=site.trigger.update_seconds,
        )


def _thresholds(site):
    low, high = sorted((site.trigger.open or 0.6, site.trigger.close or 0.4))
    return Thresholds(open=high, close=low)


def is_table(tree):
    return isinstance(tree, dict)


checks = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=SHORT, **checks)
@given(spoilt(SITE).filter(is_table))
def test_configurations(table):
    read_site(table)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=LONG, **checks)
@given(spoilt(SITE).filter(is_table))
def test_many_configurations(table):
    read_site(table)


TEXT = """
device = "box"
bundle = "bundle"
[broker]
host = "localhost"
[[camera]]
name = "door"
source = "rtsp://cam/1"
mask = [[[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]]]
"""


@st.composite
def spoilt_text(draw, text):
    """Bytes in which pieces are cut, doubled or replaced."""
    data = bytearray(text.encode())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        data[start:end] = draw(st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode)))
    return bytes(data)


def read_text(folder, data):
    path = folder / "site.toml"
    path.write_bytes(data)
    try:
        problem = None if isinstance(load_config(path), SiteConfig) else "no configuration"
    except ConfigError as error:
        problem = str(error)
    assert problem is None or problem.startswith(str(path))


@settings(max_examples=SHORT, **checks)
@given(data=spoilt_text(TEXT))
def test_files(tmp_path_factory, data):
    read_text(tmp_path_factory.getbasetemp(), data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=LONG, **checks)
@given(data=spoilt_text(TEXT))
def test_many_files(tmp_path_factory, data):
    read_text(tmp_path_factory.getbasetemp(), data)


# ---------------------------------------------------------------- manifests


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_red_bundle):
    """A bundle of our own, whose manifest may be spoilt."""
    return make_red_bundle(tmp_path_factory.mktemp("fuzz") / "bundle")


@pytest.fixture(scope="module")
def manifest(folder):
    return (folder / "manifest.json").read_text()


def open_bundle(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    problem = ""
    try:
        bundle = Bundle.open(folder)
        bundle.class_features()
        bundle.language()
        for name in bundle.manifest.files:
            assert bundle.file(name).parent == folder
    except BundleError as error:
        problem = str(error)
    assert "Traceback" not in problem


class Trees:
    """Spoilt manifests, by hypothesis, from one that is read while the test runs."""

    @staticmethod
    def of(data, manifest):
        if data.draw(st.booleans()):
            return json.dumps(data.draw(spoilt(json.loads(manifest)))).encode()
        return data.draw(spoilt_text(manifest))


@settings(max_examples=SHORT, **checks)
@given(data=st.data())
def test_manifests(folder, manifest, data):
    open_bundle(folder, Trees.of(data, manifest))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=LONG, **checks)
@given(data=st.data())
def test_many_manifests(folder, manifest, data):
    open_bundle(folder, Trees.of(data, manifest))
