import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tvau_edge.reference import named
from tvau_edge.reference.samples import SHOWN
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.vision import Vision


def test_rows_are_compared_two_at_a_time_with_the_same_result(shipped_bundle, drawn):
    vision = Vision.open(Bundle.open(shipped_bundle), precision="fp32")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, Bundle.open(shipped_bundle).class_features().shape[1])).astype(np.float32)
    frames = drawn[0].frames[:2]
    together, apart = named.similarities(vision, frames, rows), named.similarities(vision, frames, rows[2:])
    vision.close()
    assert together.shape[:2] == (2, 4)
    np.testing.assert_allclose(together[:, 2:], apart, atol=1e-5)


def test_own_patches_the_others_and_the_normal_are_told_apart():
    now, before = np.array([0.9, 0.2, 0.4, 0.0, 0.2]), np.array([0.5, 0.5, 0.5, 0.5, 0.7])
    own, seen = np.array([1, 0, 0, 0, 0], bool), np.array([1, 1, 1, 0, 0], bool)
    found = named.change(now, before, own, seen)
    assert found == pytest.approx(
        {
            **{"own": 0.9, "others": 0.3, "normal": 0.1, "auc": 1.0},
            **{"own_before": 0.5, "others_before": 0.5, "normal_before": 0.6, "auc_before": 0.25},
        }
    )


def test_each_behaviour_of_the_split_gets_a_row(shipped_bundle, cache, tmp_path):
    app = typer.Typer()
    app.command()(named.main)
    out = tmp_path / "named.json"
    done = CliRunner().invoke(
        app,
        ["--bundle", str(shipped_bundle), "--count", "20", "--split", "familiar", "--cache", str(cache),
         "--json", str(out)],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    figures = json.loads(out.read_text())
    assert set(SHOWN["familiar"]) <= set(figures)
    assert figures["cosine of the device's reading"]["value"] > 0.99
