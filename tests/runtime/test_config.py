from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvau_edge.runtime.config import SiteConfig, load_config, parse_config
from tvau_edge.runtime.errors import ConfigError

GOOD = """
device = "gate-7"
bundle = "bundle"

[broker]
host = "127.0.0.1"

[[camera]]
name = "door"
source = "door.mp4"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    config = load_config(write(tmp_path, GOOD))
    assert config.bundle == tmp_path / "bundle"
    assert config.camera[0].source == str(tmp_path / "door.mp4")
    assert config.outbox.path.parent == tmp_path


def test_addresses_stay_as_they_are(tmp_path):
    config = load_config(write(tmp_path, GOOD.replace("door.mp4", "rtsp://10.0.0.2/live")))
    assert config.camera[0].source == "rtsp://10.0.0.2/live"


def test_overrides_replace_top_level_values(tmp_path):
    assert load_config(write(tmp_path, GOOD), {"device": "other"}).device == "other"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "door"', 'name = "a/b"', ["camera[0].name = 'a/b'", "no '/'"]),
        ('name = "door"', 'name = "a+"', ["camera[0].name", "'+'"]),
        ('source = "door.mp4"', "", ["camera[0].source: is missing"]),
        ('device = "gate-7"', 'devise = "gate-7"', ["devise: unknown key; did you mean 'device'?"]),
        ("[broker]", "[vision]\nbackend = 'tpu'\n[broker]", ["vision.backend = 'tpu'", "'onnxruntime'"]),
        ("[broker]", "[trigger]\nopen = 1.5\n[broker]", ["trigger.open = 1.5", "less than 1"]),
        ("[broker]", "[language]\nunsure = [0.7, 0.2]\n[broker]", ["language", "the lower first"]),
        (
            "[broker]",
            "[vision]\nthread = 2\n[broker]",
            ["vision.thread: unknown key; did you mean 'threads'?"],
        ),
        (
            "[[camera]]",
            '[[camera]]\nname = "door"\nsource = "b"\n[[camera]]',
            ["camera names must differ", "door"],
        ),
    ],
)
def test_wrong_values_name_file_key_value_and_what_is_allowed(tmp_path, old, new, expected):
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace(old, new, 1)))
    message = str(caught.value)
    assert "site.toml" in message
    for part in expected:
        assert part in message


def test_every_problem_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, GOOD.replace('"gate-7"', '"a#"').replace('"door"', '""')))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [("device = ", "not valid TOML"), ("\xff", "not valid TOML"), ("[a]\n[a]", "not valid TOML")],
)
def test_bad_toml_says_where(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, text))


def test_not_text(tmp_path):
    path = tmp_path / "site.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "site.toml")


def test_every_key_has_a_description():
    def check(model, where):
        for name, field in model.model_fields.items():
            assert field.description, f"{where}.{name} has no description"
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation, f"{where}.{name}")

    check(SiteConfig, "site")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*SiteConfig.model_fields, "cameras", ""])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_table_is_a_configuration_or_a_config_error(table):
    problem = None
    try:
        parse_config(table, "any")
    except ConfigError as error:
        problem = str(error)
    assert problem is None or problem.startswith("any: ")


CAMERA = {"name": "door", "source": "rtsp://cam/1"}
SQUARE = [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"name": ""}, "camera[0].name = '': String should have at least 1"),
        ({"name": "x" * 65}, "at most 64"),
        ({"name": "a#"}, "no '/', '+', '#'"),
        ({"name": " a"}, "no space around it"),
        ({"name": "a\nb"}, "no control characters"),
        ({"name": "command"}, "is the name of another topic"),
        ({"source": ""}, "camera[0].source = '': "),
        ({"source": 5}, "camera[0].source = 5: "),
        ({"stall_seconds": 0}, "camera[0].stall_seconds = 0: Input should be greater than 0"),
        ({"stall_seconds": -1}, "greater than 0"),
        ({"stall_seconds": float("inf")}, "finite number"),
        ({"stall_seconds": float("nan")}, "finite number"),
        ({"stall_seconds": 1e9}, "less than or equal to 3600"),
        ({"stall_seconds": "soon"}, "camera[0].stall_seconds = 'soon': "),
        ({"reconnect": "perhaps"}, "camera[0].reconnect = 'perhaps': "),
        ({"reconnect_seconds": 0}, "greater than 0"),
        ({"image_rate": 0}, "greater than 0"),
        ({"image_rate": 1e6}, "less than or equal to 1000"),
        (
            {"schedule": ["always"]},
            "camera[0].schedule[0] = 'always': 'always' is no span of time; write it like",
        ),
        ({"schedule": ["mom 07:00-08:00"]}, "'mom' is no day; days are mon, tue"),
        ({"source": "door.mp4", "schedule": ["07:00-08:00"]}, "schedule is for live sources"),
        ({"motion_gate": 0}, "greater than 0"),
        ({"motion_gate": 256}, "less than or equal to 255"),
        ({"motion_refresh_seconds": 0}, "greater than 0"),
        ({"mask": [[[0, 0], [1, 1]]]}, "camera[0].mask[0]: List should have at least 3 items"),
        ({"mask": [[[0, 0], [0.5, 0.5], [1, 1]]]}, "camera[0].mask[0]: the corners lie on a line"),
        (
            {"mask": [[[0, 0], [1.5, 0], [1, 1]]]},
            "camera[0].mask[0][1][0] = 1.5: Input should be less than or equal",
        ),
        ({"include": [[[0, 0], [-1, 0], [1, 1]]]}, "camera[0].include[0][1][0] = -1: "),
        ({"exclude": [[0, 0, 1, 1]]}, "camera[0].exclude[0][0]"),
        ({"exclude": [SQUARE] * 33}, "camera[0].exclude: List should have at most 32 items"),
        ({"masks": [SQUARE]}, "camera[0].masks: unknown key; did you mean 'mask'?"),
        ({"stallseconds": 5}, "camera[0].stallseconds: unknown key; did you mean 'stall_seconds'?"),
        ({"qqq": 5}, "camera[0].qqq: unknown key; known keys: exclude, heatmap, image_rate, include"),
    ],
)
def test_each_key_of_a_camera_has_its_range(keys, expected):
    with pytest.raises(ConfigError) as caught:
        parse_config({"bundle": "b", "camera": [CAMERA | keys]}, "site.toml")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("site.toml: ")


@pytest.mark.parametrize(
    ("table", "keys", "expected"),
    [
        ("vision", {"batch": 0}, "vision.batch = 0: "),
        ("vision", {"batch": 65}, "less than or equal to 64"),
        ("vision", {"threads": 0}, "vision.threads = 0: "),
        ("vision", {"threads": 10**30}, "vision.threads"),
        ("vision", {"stall_seconds": 0}, "vision.stall_seconds = 0: "),
        ("trigger", {"open": 0}, "trigger.open = 0: "),
        ("trigger", {"close": 1}, "trigger.close = 1: "),
        ("trigger", {"open_after": 0}, "trigger.open_after = 0: "),
        ("trigger", {"close_after": 10**9}, "trigger.close_after = 1000000000: "),
        ("trigger", {"update_seconds": float("inf")}, "trigger.update_seconds"),
        ("language", {"gpu_layers": -2}, "language.gpu_layers = -2: "),
        ("language", {"explain_after": 0}, "language.explain_after = 0: "),
        ("language", {"explain_again": "often"}, "language.explain_again = 'often': "),
        ("language", {"explain_again_every": 0}, "language.explain_again_every = 0: "),
        ("language", {"unsure": [0.1]}, "language.unsure"),
        ("health", {"seconds": 0}, "health.seconds = 0: "),
        ("health", {"prometheus_port": 70000}, "health.prometheus_port = 70000: "),
        ("health", {"prometheus": 1}, "health.prometheus: unknown key; did you mean 'prometheus_"),
    ],
)
def test_each_key_of_a_table_has_its_range(table, keys, expected):
    with pytest.raises(ConfigError) as caught:
        parse_config({"bundle": "b", "camera": [CAMERA], table: keys}, "site.toml")
    assert expected in str(caught.value)


@pytest.mark.parametrize("cameras", [[], [CAMERA] * 2, [CAMERA | {"name": f"c{k}"} for k in range(257)]])
def test_how_many_cameras(cameras):
    with pytest.raises(ConfigError, match=r"camera: List should have at|used more than once: door"):
        parse_config({"bundle": "b", "camera": cameras}, "site.toml")


def test_a_pipeline_is_no_path(tmp_path):
    config = load_config(write(tmp_path, GOOD.replace("door.mp4", "gst: v4l2src ! nvvidconv")))
    assert config.camera[0].source == "gst: v4l2src ! nvvidconv"
