import numpy as np
import pytest

from tvau_edge.benchmarks.reliability import calibration_error, fit, plot


def overconfident(count=2000, factor=4.0):
    """Log-odds that claim `factor` times what the labels, drawn from them, bear out."""
    random = np.random.default_rng(0)
    true = random.normal(0, 1.5, count)
    labels = random.random(count) < 1 / (1 + np.exp(-(true + 0.5)))
    return factor * true, labels


def test_the_error_of_a_known_case():
    p = np.array([0.05, 0.05, 0.95, 0.95])
    assert calibration_error(p, np.array([False, False, True, True])) == pytest.approx(0.05)
    assert calibration_error(p, np.array([True, True, True, True])) == pytest.approx((0.95 + 0.05) / 2)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_the_curve_is_that_of_the_labels(tmp_path):
    odds, labels = overconfident()
    curve = fit(odds, labels)
    assert curve.slope == pytest.approx(0.25, abs=0.04)
    assert curve.intercept == pytest.approx(0.5, abs=0.15)
    before, after = curve.errors
    assert before > 0.1
    assert after < 0.03
    plot(curve, tmp_path / "reliability.png", "drawn")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_calibrated():
    odds, labels = overconfident(40)
    with pytest.raises(ValueError, match="at least 5 of each"):
        fit(odds, np.arange(40) < 3)
    with pytest.raises(ValueError, match="do not tell yes from no"):
        fit(-odds, labels)
