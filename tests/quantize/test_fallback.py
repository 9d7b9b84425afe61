import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvau_edge.quantize.activations import Activation
from tvau_edge.quantize.fallback import Layer, choose_float
from tvau_edge.quantize.simulate import decibels, gated_error, product_error, quantize_weight


def layer(name, error, cost=1):
    return Layer(name, f"{name}.weight", f"{name}.x", cost, error)


def measured(layers):
    """Agreement that falls by the error of each layer in INT8."""
    asked = []

    def measure(left):
        asked.append(len(left))
        return 1 - sum(one.error for one in layers if one not in left)

    return measure, asked


def test_nothing_stays_in_float_when_all_is_well():
    layers = [layer("a", 1e-4), layer("b", 2e-4)]
    choice = choose_float(layers, measured(layers)[0], 0.99)
    assert choice.left == ()
    assert choice.reached
    assert [(point.left, point.cost) for point in choice.points] == [(0, 0)]


def test_the_one_layer_that_spoils_it_stays():
    layers = [layer("a", 1e-4), layer("b", 0.3), layer("c", 2e-4)]
    choice = choose_float(layers, measured(layers)[0], 0.99)
    assert [one.node for one in choice.left] == ["b"]
    assert [point.agreement for point in choice.points] == pytest.approx([0.6997, 0.9997])
    record = choice.record(layers, 0.99)
    assert record["left_in_float"] == ["b.weight"]
    assert record["layers"] == {"a.weight": 40.0, "b.weight": 5.2, "c.weight": 37.0}


def test_the_cheap_one_goes_first():
    layers = [layer("dear", 0.05, 100), layer("cheap", 0.04, 1)]
    choice = choose_float(layers, measured(layers)[0], 0.94)
    assert [one.node for one in choice.left] == ["cheap"]
    assert choice.points[-1].cost == pytest.approx(1 / 101)


def test_a_target_out_of_reach_is_said():
    layers = [layer("a", 0.1), layer("b", 0.2)]
    choice = choose_float(layers, lambda left: 0.5 + 0.1 * len(left), 0.99)
    assert not choice.reached
    assert len(choice.left) == 2


def test_what_was_taken_on_the_way_goes_back():
    layers = [layer(str(k), 0.2 - k / 100) for k in range(12)]  # by its own error, "9" is the tenth

    def measure(left):
        return 1.0 if layers[9] in left else 0.5 + 0.01 * len(left)

    choice = choose_float(layers, measure, 0.99)
    assert choice.left == (layers[9],)
    assert choice.reached
    assert (choice.chosen.cost, choice.chosen.agreement) == (pytest.approx(1 / 12), 1.0)


def test_the_agreement_told_is_that_of_the_choice():
    """More layers in float were measured on the way, and agreed more."""
    layers = [layer(str(k), 0.2 - k / 100) for k in range(12)]

    def measure(left):
        return (0.99 if layers[9] in left else 0.5) + 0.0001 * len(left)

    choice = choose_float(layers, measure, 0.99)
    assert choice.left == (layers[9],)
    assert choice.chosen.agreement == choice.record(layers, 0.99)["agreement"] == pytest.approx(0.9901)
    assert max(point.agreement for point in choice.points) > choice.chosen.agreement


@given(st.lists(st.floats(0, 0.2), min_size=1, max_size=40), st.floats(0.5, 0.999))
def test_as_few_as_reach_the_target(errors, target):
    layers = [layer(str(k), error) for k, error in enumerate(errors)]
    measure, asked = measured(layers)
    choice = choose_float(layers, measure, target)
    assert choice.reached
    assert measure(choice.left) >= target
    if choice.left:
        assert measure(choice.left[:-1]) < target
    assert len(asked) <= 2 * np.log2(len(errors) + 2) + 5 + 16
    assert [point.left for point in choice.points] == sorted({point.left for point in choice.points})


def activation(rows):
    return Activation(rows.min(axis=0), rows.max(axis=0), rows, len(rows))


def test_a_quiet_token_beside_a_loud_one_counts():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(64, 32)).astype(np.float32)
    weight = generator.normal(size=(32, 16)).astype(np.float32)
    before = product_error(activation(rows), weight)
    assert decibels(before) > 35
    loud = rows.copy()
    loud[0] *= 1000  # one token: the mean over all squares would still be as good as before
    assert decibels(product_error(activation(loud), weight)) < 5


@pytest.mark.parametrize("part", ["gate", "up"])
def test_a_gate_that_rounds_to_itself_changes_nothing(part):
    generator = np.random.default_rng(1)
    rows = generator.integers(-127, 129, (64, 8)).astype(np.float32)
    rows[0, :2] = -127, 128  # a step of one
    whole = generator.integers(-63, 64, (8, 12)).astype(np.float32)
    whole[0] = 63
    seen, zero, down = (
        activation(rows),
        np.zeros(12, np.float32),
        generator.normal(size=(12, 5)).astype(np.float32),
    )
    assert gated_error(seen, (whole / 1e4, zero), (whole / 1e4, zero), down, part) < 1e-9
    off = whole / 1e4
    off[3] *= 1.003
    gate, up = (off, whole / 1e4) if part == "gate" else (whole / 1e4, off)
    assert gated_error(seen, (gate, zero), (up, zero), down, part) > 1e-9


def test_rounding_of_a_weight_of_zeros_is_exact():
    assert not quantize_weight(np.zeros((4, 3), np.float32))[0].any()
