import numpy as np
import pytest

from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.detection.zones import Zones
from tvau_edge.runtime.errors import ConfigError

LEFT = [(0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)]


def evidence(heat):
    heat = np.asarray(heat, np.float32)
    return Evidence(
        "door", 0, 0.0, 0.0, np.zeros((2, *heat.shape)), heat, float(heat.max()), np.zeros((1, 1))
    )


def test_only_what_is_included_counts():
    heat = np.full((4, 4), 0.1)
    heat[0, 3] = 0.9
    seen = Zones([LEFT], [], (4, 4), "door").apply(evidence(heat))
    assert seen.score == pytest.approx(0.1)
    np.testing.assert_array_equal(seen.heatmap[:, 2:], 0)
    np.testing.assert_allclose(seen.heatmap[:, :2], 0.1)


def test_what_is_excluded_does_not_count():
    heat = np.full((4, 4), 0.1)
    heat[0, 0] = 0.9
    assert Zones([], [LEFT], (4, 4), "door").apply(evidence(heat)).score == pytest.approx(0.1)
    upper = [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]
    both = Zones([LEFT], [upper], (4, 4), "door")
    np.testing.assert_array_equal(both.counts, [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])


def test_a_cell_counts_when_half_of_it_does():
    half = [(0.0, 0.0), (0.13, 0.0), (0.13, 1.0), (0.0, 1.0)]  # a bit more than half a cell of four
    less = [(0.0, 0.0), (0.1, 0.0), (0.1, 1.0), (0.0, 1.0)]
    assert Zones([half], [], (4, 4), "door").counts.sum() == 4
    with pytest.raises(ConfigError, match="camera door: its zones leave no cell of the 4x4 heatmap"):
        Zones([less], [], (4, 4), "door")


def test_no_zones_change_nothing():
    seen = evidence(np.full((4, 4), 0.3))
    assert Zones([], [], (4, 4), "door").apply(seen) is seen


def test_few_cells_are_judged_like_many():
    """The score is the mean of as many cells as in the whole map, where the zone has so many."""
    heat = np.zeros((18, 32))
    heat[:4, :4] = 0.8
    whole = Zones([], [], (18, 32), "door").apply(evidence(heat))
    small = [(0.0, 0.0), (0.125, 0.0), (0.125, 0.2222), (0.0, 0.2222)]
    zone = Zones([small], [], (18, 32), "door").apply(evidence(heat))
    assert zone.score == pytest.approx(0.8)
    assert whole.score == pytest.approx(0.8)
