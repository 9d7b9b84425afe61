import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tvau_edge.export.graphs import export_vision
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.verify import cosine
from tvau_edge.quantize import weights as stored
from tvau_edge.quantize.activations import Range, observe
from tvau_edge.quantize.onnx_int8 import products_with_weights, quantize_products, quantize_vision
from tvau_edge.quantize.simulate import quantize_weight

CONFIG = VisionConfig(3, 64, 4, 96, 128, (2,))
HEIGHT, WIDTH, BLOCKS = 56, 84, 3
QDQ = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(2).normal(size=(2, 128)).astype(np.float32)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    module = AnomalyVision(CONFIG, AHDConfig(2, 64, 48, 128), HEIGHT, WIDTH, (1, 3)).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return module


@pytest.fixture(scope="module")
def frames():
    """Patches with large areas and edges, as pictures have: K = 8."""
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (8, 2, HEIGHT // 14, WIDTH // 14, 3), dtype=np.uint8)
    return coarse.repeat(14, axis=2).repeat(14, axis=3)


@pytest.fixture(scope="module")
def quantized(module, frames, features, tmp_path_factory):
    """The folder with vision.onnx and vision.int8.onnx, and the report."""
    folder = tmp_path_factory.mktemp("int8")
    export_vision(module, folder / "vision.onnx")
    report = quantize_vision(folder / "vision.onnx", folder / "vision.int8.onnx", frames, features)
    return folder, report


def makers_of(graph, name):
    """All nodes that tensor `name` follows from."""
    by_output = {output: node for node in graph.node for output in node.output}
    found, waiting = {}, [name]
    while waiting:
        node = by_output.get(waiting.pop())
        if node is not None and node.name not in found:
            found[node.name] = node
            waiting += node.input
    return found


def test_nothing_else_is_left_in_the_folder(quantized):
    folder, _ = quantized
    assert sorted(file.name for file in folder.iterdir()) == ["vision.int8.onnx", "vision.onnx"]


def test_qdq_stands_on_the_products_of_the_tower_only(quantized):
    folder, report = quantized
    graph = onnx.load(folder / "vision.int8.onnx").graph
    # A block has qkv, proj, gate, up and down; the merger has two.
    assert report["quantized_nodes"] == 5 * BLOCKS + 2
    assert report["calibration_patches"] == 8
    constants = {tensor.name: tensor for tensor in graph.initializer}
    by_output = {output: node for node in graph.node for output in node.output}
    int8 = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    weights = [node for node in int8 if constants[node.input[0]].data_type == TensorProto.INT8]
    assert len(weights) == 5 * BLOCKS + 2
    for node in weights:
        matrix, scale = constants[node.input[0]], constants[node.input[1]]
        assert len(matrix.dims) == 2
        assert list(scale.dims) == [matrix.dims[1]]  # one scale per output channel
        zero = onnx.numpy_helper.to_array(constants[node.input[2]])
        assert not zero.any()
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    fed = [n for n in products if any(i in by_output and by_output[i].op_type in QDQ for i in n.input[:2])]
    assert len(fed) == 5 * BLOCKS + 2
    for node in fed:
        left, right = (by_output[name] for name in node.input[:2])
        assert left.op_type == right.op_type == "DequantizeLinear"
        assert by_output[left.input[0]].op_type == "QuantizeLinear"
    others = {node.op_type for node in graph.node for i in node.input if i in by_output} - QDQ
    assert {"Softmax", "MatMul"} <= others
    for node in graph.node:
        if node.op_type in ("Softmax", "Pow", "ReduceMean", "Sqrt", "Div"):
            assert not any(i in by_output and by_output[i].op_type in QDQ for i in node.input), node.name


def test_patch_embedding_and_heatmap_decoder_stay_in_float(quantized, module):
    folder, _ = quantized
    graph = onnx.load(folder / "vision.int8.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    by_output = {output: node for node in graph.node for output in node.output}

    def float_product(weight):
        """The product with this matrix of torch's, in whatever order the graph holds it; it must be there, in float."""
        numbers = np.sort(weight.detach().numpy().ravel())
        for node in graph.node:
            if node.op_type not in ("MatMul", "Gemm", "Conv"):
                continue
            name = node.input[1]
            while name in by_output and by_output[name].op_type in ("Transpose", "Reshape"):
                name = by_output[name].input[0]
            if name in constants:
                matrix = constants[name]
                if matrix.size == numbers.size and np.array_equal(np.sort(matrix.ravel()), numbers):
                    assert not any(i in by_output and by_output[i].op_type in QDQ for i in node.input)
                    return node
        raise AssertionError(f"no product with a matrix {tuple(weight.shape)} in float")

    decoder = [parameter for _, parameter in module.ahd.named_parameters() if parameter.ndim > 1]
    assert len(decoder) == 4
    for weight in decoder:
        float_product(weight)
    embedding = float_product(module.vision.patch_embed.proj.weight)
    # Everything between the pixels and the patch embedding is float as well.
    assert not any(node.op_type in QDQ for node in makers_of(graph, embedding.input[0]).values())


def test_outputs_are_near_those_of_the_module(quantized, module, frames, features):
    folder, _ = quantized
    with torch.no_grad():
        expected = module(torch.from_numpy(frames), torch.from_numpy(features))
    session = onnxruntime.InferenceSession(folder / "vision.int8.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["h_c", "p_v"], {"frames": frames, "class_features": features})
    for name, mine, theirs in zip(("h_c", "p_v"), found, expected, strict=True):
        value = cosine(mine, theirs.numpy())
        print(f"{name}: cosine {value:.6f}")
        assert mine.shape == tuple(theirs.shape)
        assert mine.dtype == np.float32
        assert value >= 0.99
        assert not np.array_equal(mine, theirs.numpy())


def test_the_batch_stays_free(quantized, frames, features):
    folder, _ = quantized
    session = onnxruntime.InferenceSession(folder / "vision.int8.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 3, 8):
        h_c, p_v = session.run(["h_c", "p_v"], {"frames": frames[:size], "class_features": features})
        assert (h_c.shape, p_v.shape) == ((size, 2, 4, 6), (size, 6, 128))


def test_products_are_found_by_what_p_v_follows_from():
    def constant(name):
        return helper.make_tensor(name, TensorProto.FLOAT, [2, 2], [1.0, 0, 0, 1])

    def tensor(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2])

    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "embedding"),
        helper.make_node("MatMul", ["a", "w1"], ["b"], "first"),
        helper.make_node("MatMul", ["a", "w2"], ["h_c"], "decoder"),
        helper.make_node("MatMul", ["b", "a"], ["s"], "scores"),
        helper.make_node("Gemm", ["s", "w3"], ["p_v"], "second"),
    ]
    graph = helper.make_graph(
        nodes, "g", [tensor("x")], [tensor("h_c"), tensor("p_v")], [constant(f"w{k}") for k in range(4)]
    )
    assert products_with_weights(helper.make_model(graph)) == ["first", "second"]


def test_large_weights_lie_beside_the_graph(quantized, frames, features, tmp_path, monkeypatch):
    folder, _ = quantized
    graph = onnx.load(folder / "vision.onnx")
    onnx.save(graph, tmp_path / "vision.onnx", save_as_external_data=True, location="vision.onnx.data")
    monkeypatch.setattr(stored, "LARGEST", 1024)
    quantize_vision(tmp_path / "vision.onnx", tmp_path / "vision.int8.onnx", frames, features)
    names = {"vision.onnx", "vision.onnx.data", "vision.int8.onnx", "vision.int8.onnx.data"}
    assert {file.name for file in tmp_path.iterdir()} == names
    onnx.checker.check_model(str(tmp_path / "vision.int8.onnx"))
    (tmp_path / "vision.onnx.data").unlink()  # the new graph stands alone
    outputs = []
    for path in (folder, tmp_path):
        session = onnxruntime.InferenceSession(path / "vision.int8.onnx", providers=["CPUExecutionProvider"])
        outputs.append(session.run(["h_c", "p_v"], {"frames": frames, "class_features": features}))
    for mine, theirs in zip(*outputs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_no_cpu_cuts_off_what_a_product_adds_up(tmp_path):
    """Without VNNI, x86 adds pairs of products in 16 bits; the largest values there are must fit."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in ("x", "y")]
    weight = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (64, 64))
    weight[:, :8] = 1
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "a.onnx",
    )
    quantize_products(tmp_path / "a.onnx", tmp_path / "b.onnx", ["product"], {"x": Range(0.0, 1.0)})
    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    x = np.ones((40, 64), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weight, atol=1e-3)


def test_weights_are_within_half_a_step():
    weight = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * np.logspace(
        -3, 3, 7, dtype="f"
    )
    weight[:, 3] = 0
    values, scales = quantize_weight(weight)
    assert (values.dtype, values.shape, scales.shape) == (np.int8, (50, 7), (7,))
    assert np.abs(values).max(axis=0).tolist() == [63, 63, 63, 0, 63, 63, 63]
    assert (np.abs(values * scales - weight) <= scales / 2 * 1.0001).all()


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(-1, 1.55, 0.01, 100), (0, 2.55, 0.01, 0), (1, 2.55, 0.01, 0), (-2.55, -1, 0.01, 255), (0, 0, 1e-12, 0)],
)
def test_zero_is_on_a_step(low, high, scale, zero):
    found = Range(low, high).affine()
    assert found == (np.float32(scale), zero)
    assert found[1].dtype == np.uint8


def test_ranges_are_those_of_all_patches(quantized, module, frames, features):
    folder, _ = quantized
    graph = onnx.load(folder / "vision.onnx")
    first = next(n for n in graph.graph.node if n.name == products_with_weights(graph)[0])
    feeds = [{"frames": frames[k : k + 1], "class_features": features} for k in range(len(frames))]
    (found,) = observe(folder / "vision.onnx", [first.input[0]], feeds).values()
    seen = []
    handle = module.vision.blocks[0].attn.qkv.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(torch.from_numpy(frames), torch.from_numpy(features))
    handle.remove()
    channels = seen[0].numpy().reshape(-1, seen[0].shape[-1])
    np.testing.assert_allclose(found.low, channels.min(axis=0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.high, channels.max(axis=0), rtol=1e-3, atol=1e-4)
    assert found.range == Range(float(found.low.min()), float(found.high.max()))
    assert len(found.rows) >= 24 * 8


def test_products_that_share_an_input_share_its_rounding(quantized):
    folder, _ = quantized
    nodes = onnx.load(folder / "vision.int8.onnx").graph.node
    # qkv, proj, gate with up, down; two of the merger.
    assert sum(node.op_type == "QuantizeLinear" for node in nodes) == 4 * BLOCKS + 2
