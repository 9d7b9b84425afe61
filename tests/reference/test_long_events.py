import json
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tvau_edge.reference import long_events
from tvau_edge.reference.long_events import Told, draw, figures_of
from tvau_edge.reference.samples import first_seed
from tvau_edge.reference.windows import SeenWindow
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.dialogue import DialogueResult
from tvau_edge.runtime.manifest import Thresholds

NONE = np.zeros((2, 1, 1), np.float32)
MANIFEST = SimpleNamespace(
    thresholds=Thresholds(open=0.6, close=0.4), geometry=SimpleNamespace(temporal_patches=4)
)


def events(scores):
    evidence = [Evidence("drawn", k, k, k, NONE, NONE[0], score, NONE[0]) for k, score in enumerate(scores)]
    return list(long_events.long_events(MANIFEST, evidence))


def test_events_that_still_show_after_they_are_explained():
    (event,) = events([0.1, 0.9, 0.9, 0.9, 0.1, 0.5, *[0.1] * 4, 0.9])
    assert event.first.newest.index == 2
    assert [update.newest.index for update in event.later] == [3, 5]  # at 4 it is quiet
    assert [item.index for item in event.later[-1].window.evidence] == [2, 3, 4, 5]
    assert event.end.newest.index == 9
    assert events([0.1, 0.9, 0.9, *[0.1] * 4]) == []


def test_the_truth_is_that_of_the_whole_stretch():
    drawn = draw(first_seed("familiar") + 2, 8.0)  # somebody crawls all the time
    early, late, whole = drawn.truth(0, 3), drawn.truth(12, 15), drawn.truth(0, 15)
    assert early.abnormal
    assert whole.answers["from"] == early.answers["from"] != late.answers["from"]
    assert whole.answers["to"] == late.answers["to"] != early.answers["to"]


def test_figures_by_way():
    truth = SeenWindow(NONE, NONE, True, {"anomaly": ["Yes."], "to": ["To the lower left."]})

    def told(way, said, p_yes, seconds):
        result = DialogueResult({"to": said}, p_yes, (), 1, {"prefill": seconds, "answers": 1.0})
        return Told(way, 2, True, result, truth)

    found = figures_of([told("window", "To the lower left.", 0.9, 2.0), told("extend", "To.", 0.2, 1.0)])
    assert found["window"]["bleu4_to"] == pytest.approx(100)
    assert (found["window"]["yes_no"], found["extend"]["yes_no"]) == (100, 0)
    assert (found["extend"]["times_window_prefill"], found["window"]["times_window_all"]) == (0.5, 1)
    assert found.keys() == {"window", "extend"}


@pytest.mark.slow(reason="draws clips of eight seconds and explains their events in each way")
def test_the_ways_are_compared(shipped_bundle, tmp_path):
    app = typer.Typer()
    app.command()(long_events.main)
    out = tmp_path / "long.json"
    options = ["--bundle", str(shipped_bundle), "--count", "4", "--seconds", "8", "--json", str(out)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert set(json.loads(out.read_text())["at the end"]) == set(long_events.WAYS)
