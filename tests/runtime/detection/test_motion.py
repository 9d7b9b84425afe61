import numpy as np
import pytest

from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.motion import MotionGate
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.manifest import Geometry

CLIP = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)


def scene(seed=0, noise=0.0, square=None, level=0):
    """A picture of coarse shapes, with noise of so many levels and a bright square."""
    image = (
        np.random.default_rng(7)
        .integers(40, 200, (8, 12, 3))
        .repeat(7, axis=0)
        .repeat(7, axis=1)
        .astype(float)
    )
    image += np.random.default_rng(seed).normal(0, noise, image.shape) + level
    if square is not None:
        x, y, size = square
        image[y : y + size, x : x + size] = 255
    return np.clip(image, 0, 255).astype(np.uint8)


def patch(index, first, second, time=None):
    seconds = index / 2
    moment = 1000 + seconds if time is None else time
    return TemporalPatch("door", index, np.stack([first, second]), (seconds, seconds + 0.25), moment)


def evidence(of, score=0.1):
    heat = np.full(CLIP.grid, score, np.float32)
    return Evidence(
        "door", of.index, of.pts[1], of.time, np.zeros((2, *CLIP.grid)), heat, score, np.zeros((6, 4))
    )


def gate(threshold=6.0, refresh=60.0, counts=None):
    return MotionGate(threshold, CLIP, refresh, counts)


def looked_at(gate, *patches):
    """Which patches the vision graph has to look at."""
    looked = []
    for one in patches:
        if gate.hold(one) is None:
            gate.looked(one, evidence(one))
            looked.append(one.index)
    return looked


def test_a_scene_that_stands_still_is_looked_at_once():
    still = gate()
    assert looked_at(still, *(patch(k, scene(2 * k, 3), scene(2 * k + 1, 3)) for k in range(10))) == [0]
    assert still.still == 9


def test_what_is_held_is_the_evidence_at_its_own_time():
    still = gate()
    first = patch(0, scene(), scene())
    still.looked(first, evidence(first, 0.7))
    second = patch(1, scene(), scene())
    held = still.hold(second)
    assert (held.index, held.pts, held.time, held.score) == (1, second.pts[1], second.time, 0.7)
    np.testing.assert_array_equal(held.heatmap, evidence(first, 0.7).heatmap)


@pytest.mark.parametrize("moving", [0, 1])
def test_a_small_thing_is_motion_in_either_frame(moving):
    frames = [scene(), scene()]
    frames[moving] = scene(square=(40, 30, 8))
    assert looked_at(gate(), patch(0, scene(), scene()), patch(1, *frames)) == [0, 1]


def test_while_it_moves_every_patch_is_looked_at():
    moving = [patch(k, scene(square=(4 * k, 10, 8)), scene(square=(4 * k + 2, 10, 8))) for k in range(8)]
    assert looked_at(gate(), *moving) == list(range(8))


def test_after_motion_the_evidence_of_stillness_is_needed_first():
    """The patch in which something moved is not what a still scene looks like, though its newer frame is the same."""
    last = patch(0, scene(square=(0, 0, 20)), scene())
    rest = [patch(k, scene(), scene()) for k in (1, 2, 3)]
    assert looked_at(gate(), last, *rest) == [0, 1]


def test_what_creeps_is_seen():
    """Light that changes by less than the threshold from one patch to the next adds up."""
    creeping = [patch(k, scene(level=2 * k), scene(level=2 * k)) for k in range(12)]
    looked = looked_at(gate(5.0), *creeping)
    assert looked[:3] == [0, 3, 6]


def test_a_still_scene_is_looked_at_again_now_and_then():
    patches = [patch(k, scene(), scene()) for k in range(20)]
    assert looked_at(gate(refresh=3.0), *patches) == [0, 6, 12, 18]


def test_a_clock_that_is_set_back_does_not_keep_it_shut():
    assert looked_at(gate(), patch(0, scene(), scene()), patch(1, scene(), scene(), time=10.0)) == [0, 1]


def test_after_the_camera_was_away_it_is_looked_at():
    still = gate()
    assert looked_at(still, patch(0, scene(), scene())) == [0]
    still.forget()
    assert looked_at(still, patch(1, scene(), scene()), patch(2, scene(), scene())) == [1]


def test_motion_outside_of_the_zones_does_not_count():
    counts = np.ones(CLIP.grid, bool)
    counts[:, :3] = False
    left, right = scene(square=(5, 5, 10)), scene(square=(60, 30, 10))
    assert looked_at(gate(counts=counts), patch(0, scene(), scene()), patch(1, left, left)) == [0]
    assert looked_at(gate(counts=counts), patch(0, scene(), scene()), patch(1, right, right)) == [0, 1]


def test_the_threshold_is_in_levels():
    brighter = patch(1, scene(level=5), scene(level=5))
    assert looked_at(gate(4.5), patch(0, scene(), scene()), brighter) == [0, 1]
    assert looked_at(gate(5.5), patch(0, scene(), scene()), brighter) == [0]
