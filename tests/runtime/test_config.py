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
