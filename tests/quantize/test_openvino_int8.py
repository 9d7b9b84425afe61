import numpy as np
import pytest

from tvau_edge.quantize.openvino_int8 import cpu_has_bf16, quantize_openvino, run_openvino
from tvau_edge.quantize.prepared import agreement
from tvau_edge.runtime.backends.openvino import ARITHMETIC, OpenVinoGraph

OUTPUTS = ("h_c", "p_v")
LEFT = ("gate_proj", "up_proj", "down_proj")  # of the block with outliers, and the AHD behind it


@pytest.fixture(scope="module")
def quantized(outlying, prepared, tmp_path_factory):
    _, feeds = outlying
    left = [
        layer.node
        for layer in prepared.layers
        if ("blocks.2" in layer.weight and layer.weight.split(".")[-2] in LEFT)
        or "ahd.mlps.1" in layer.weight
    ]
    path = tmp_path_factory.mktemp("openvino") / "vision.int8.xml"
    nodes = [layer.node for layer in prepared.layers if layer.node not in left]
    quantize_openvino(prepared.path, path, feeds[:8], nodes)
    return path, left


def test_it_runs_in_the_runtimes_back_end_and_agrees(prepared, quantized):
    value = agreement(prepared.expected, run_openvino(quantized[0], prepared.checked, OUTPUTS))
    print(f"cosine {value:.6f}")
    assert value >= 0.98
    graph = OpenVinoGraph(str(quantized[0]))
    batch = {k: np.concatenate([v, v]) if k == "frames" else v for k, v in prepared.checked[0].items()}
    (h_c,) = graph.run(batch, ["h_c"])
    graph.close()
    assert h_c.shape == (2, 2, 4, 6)
    np.testing.assert_allclose(h_c[0], h_c[1], atol=1e-4)


def test_left_layers_and_cosines_are_in_float_and_weights_in_int8(quantized):
    import openvino

    path, left = quantized
    model = openvino.Core().read_model(path)
    products = {
        op.get_friendly_name(): op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"
    }

    def fed_by_rounding(op):
        kinds = [op.input_value(port).get_node().get_type_name() for port in range(2)]
        return "FakeQuantize" in kinds

    assert left
    for name in left:
        assert not fed_by_rounding(products[name]), name
    rounded = [name for name, op in products.items() if fed_by_rounding(op)]
    assert len(rounded) == 16
    integers = [
        op
        for op in model.get_ordered_ops()
        if op.get_type_name() == "Constant" and op.get_element_type().size == 1
    ]
    assert len(integers) >= 10


def test_bf16_is_written_into_the_ir_and_obeyed(outlying, prepared, quantized, tmp_path):
    import openvino

    if not cpu_has_bf16():
        pytest.skip("this CPU does not compute bf16 itself")
    _, feeds = outlying
    path = tmp_path / "vision.int8.xml"
    nodes = [layer.node for layer in prepared.layers if layer.node not in quantized[1]]
    quantize_openvino(prepared.path, path, feeds[:4], nodes, "bf16")
    assert openvino.Core().read_model(path).get_rt_info(list(ARITHMETIC)).astype(str) == "bf16"
    graph = OpenVinoGraph(str(path))
    hint = graph._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
    graph.close()
    assert hint == openvino.Type.bf16
    plain = OpenVinoGraph(str(quantized[0]))
    assert plain._request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
    plain.close()
