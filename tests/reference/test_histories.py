import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tvau_edge.reference import histories
from tvau_edge.reference.windows import SeenWindow

NONE = np.zeros((1, 1), np.float32)


def window(abnormal, **answers):
    return SeenWindow(NONE, NONE, abnormal, answers)


def test_any_wording_of_the_truth_is_right():
    truth = window(True, anomaly=["Yes."], to=["It goes to the lower left.", "To the lower left."])
    normal = window(False, anomaly=["No."], to=["Nothing to follow."])
    said = [
        {"anomaly": "Yes.", "to": "To the lower left."},
        {"anomaly": "Yes.", "to": "It goes to the lower left."},
    ]
    found = histories.judged(said, [True, True], [truth, normal])
    assert found == pytest.approx({"yes_no": 50.0, "bleu4_to": 100.0})


@pytest.mark.slow(reason="answers the five questions of ten windows in each of the ways to ask")
def test_the_ways_to_ask_are_compared(shipped_bundle, cache, tmp_path):
    app = typer.Typer()
    app.command()(histories.main)
    out = tmp_path / "histories.json"
    done = CliRunner().invoke(
        app, ["--bundle", str(shipped_bundle), "--count", "10", "--cache", str(cache), "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text())) == set(histories.HISTORIES)
