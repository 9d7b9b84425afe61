import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.language.calibration import YesCalibration, load_calibration, probability

VALUES = {
    "schema": "tvau.calibration/1",
    "slope": 0.5,
    "intercept": -1.0,
    "bundle": "b" * 64,
    "language": "q8_0",
    "data": "drawn clips",
    "windows": 100,
    "error_before": 0.2,
    "error_after": 0.05,
}


def write(tmp_path, **changes):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({**VALUES, **changes}))
    return path


def test_what_is_written_is_read(tmp_path):
    calibration = load_calibration(write(tmp_path), "b" * 64, "q8_0")
    assert json.loads(calibration.model_dump_json()) == VALUES
    assert calibration.apply(2.0) == pytest.approx(0.5)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_more_odds_are_never_less_probable(one, other):
    calibration = YesCalibration.model_validate(VALUES)
    low, high = sorted((one, other))
    assert 0 <= calibration.apply(low) <= calibration.apply(high) <= 1
    assert 0 <= probability(low) <= probability(high) <= 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"slope": -1}, "slope = -1"),
        ({"intercept": float("nan")}, "is not a calibration"),
        ({"extra": 1}, "unknown key"),
        ({"bundle": "c" * 64}, "is of bundle cccc"),
        ({"language": "q4_k_m"}, "is of language model q4_k_m, but q8_0 is in use"),
    ],
)
def test_what_is_not_this_models_is_refused(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        load_calibration(write(tmp_path, **changes), "b" * 64, "q8_0")


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_calibration(tmp_path / "none.json", "b", "q8_0")
