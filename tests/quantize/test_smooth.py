import numpy as np
import onnx
import pytest

from tvau_edge.quantize.fallback import layers_of, products_of
from tvau_edge.quantize.prepared import agreement, prepare, quantize_onnx, run_graph
from tvau_edge.quantize.smooth import places, sound

OUTPUTS = ("h_c", "p_v")


def test_every_product_but_those_behind_a_gelu_has_its_place(outlying):
    path, _ = outlying
    graph = onnx.load(path).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    moved = {name for place in places(shapes) for name in place.products}
    assert all(sound(place, graph) for place in places(shapes))
    names = {node.input[1] for node in products_of(onnx.load(path))}
    assert names - moved == {
        "vision.merger.mlp.2.weight",
        *(f"ahd.mlps.{tap}.{part}.weight" for tap in (0, 1) for part in (0, 2)),
    }


def test_the_smoothed_graph_computes_the_same(prepared):
    found = run_graph(prepared.path, prepared.checked, OUTPUTS)
    for one, other in zip(prepared.expected, found, strict=True):
        for name in OUTPUTS:
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=1e-4 * np.abs(one[name]).max())


def test_norms_that_share_one_weight_are_left_alone(outlying, tmp_path):
    path, feeds = outlying
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    one, other = "vision.blocks.0.norm1.weight", "vision.blocks.1.norm1.weight"
    model.graph.initializer.remove(tensors[other])
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == other:
                node.input[index] = one
    onnx.save(model, tmp_path / "shared.onnx")
    shared = prepare(tmp_path / "shared.onnx", tmp_path / "smooth.onnx", feeds[:4], feeds[8:], OUTPUTS)
    assert agreement(shared.expected, run_graph(shared.path, shared.checked, OUTPUTS)) > 0.999999


def test_what_was_seen_is_what_flows_in_the_smoothed_graph(outlying, prepared):
    from tvau_edge.quantize.activations import observe

    _, feeds = outlying
    again = observe(prepared.path, [layer.tensor for layer in prepared.layers], feeds[:8])
    for layer in prepared.layers:
        mine, theirs = prepared.inputs[layer.weight], again[layer.tensor]
        scale = theirs.peaks.max()
        np.testing.assert_allclose(mine.high, theirs.high, rtol=0, atol=2e-3 * scale)
        np.testing.assert_allclose(mine.low, theirs.low, rtol=0, atol=2e-3 * scale)


def test_errors_fall(outlying, prepared):
    path, feeds = outlying
    from tvau_edge.quantize.activations import observe

    products = products_of(onnx.load(path))
    seen = observe(path, [node.input[0] for node in products], feeds[:8])
    before = layers_of(path, {node.input[1]: seen[node.input[0]] for node in products})
    gain = [a.decibels - b.decibels for b, a in zip(before, prepared.layers, strict=True)]
    print(
        [
            f"{layer.weight} {layer.decibels:.1f} ({g:+.1f})"
            for layer, g in zip(prepared.layers, gain, strict=True)
        ]
    )
    # Of gate and up, and of values, what is judged is not what was chosen by: a little may be lost there.
    assert min(gain) > -3
    assert np.mean(gain) > 0.5
    assert set(prepared.alphas.values()) != {0.0}


def test_what_outliers_spoil_stays_in_float_until_the_outputs_agree(prepared, tmp_path):
    easy = quantize_onnx(prepared, tmp_path / "easy.onnx", -1)
    assert easy.left == ()
    choice = quantize_onnx(prepared, tmp_path / "vision.int8.onnx", 0.995)
    print([(point.left, round(point.cost, 3), round(point.agreement, 4)) for point in choice.points])
    assert choice.reached
    assert 0 < len(choice.left) < len(prepared.layers)
    spoiled = {"vision.blocks.2.mlp.down_proj.weight", "ahd.mlps.1.0.weight"}
    assert spoiled & {layer.weight for layer in choice.left}
    # The file on disk is the graph that was chosen.
    found = run_graph(tmp_path / "vision.int8.onnx", prepared.checked, OUTPUTS)
    assert agreement(prepared.expected, found) >= 0.995
    graph = onnx.load(tmp_path / "vision.int8.onnx").graph
    kept = {tensor.name for tensor in graph.initializer}
    assert {layer.weight for layer in choice.left} <= kept


def test_saved_and_restored(prepared, tmp_path):
    record = prepared.save(tmp_path / "activations.npz")
    again = type(prepared).restore(
        prepared.path, tmp_path / "activations.npz", record, prepared.expected, prepared.checked
    )
    assert again.layers == prepared.layers
    assert again.ranges == prepared.ranges


def test_not_a_number_is_no_agreement():
    one = [{"p_v": np.ones(3, np.float32)}]
    assert agreement(one, [{"p_v": np.array([1, np.nan, 1], np.float32)}]) == -1
    assert agreement(one, one) == pytest.approx(1)
