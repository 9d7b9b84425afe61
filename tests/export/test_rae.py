import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from tvau_edge.export.model.rae import RAEConfig, RegionAwareEncoder, pooling

CONFIG = RAEConfig((4, 6, 8), (12, 10), (14, 9), 10, 16)
GRIDS = [(10, 18), (18, 32), (9, 9), (8, 8), (16, 10), (4, 5), (2, 2), (1, 7), (31, 2)]


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return RegionAwareEncoder(CONFIG, 10, 18).eval()


@pytest.mark.parametrize("grid", GRIDS)
def test_pooling_is_that_of_adaptive_avg_pool2d(grid):
    rows, columns = grid
    features = torch.randn(2, 5, rows, columns)
    found = pooling(rows, 3) @ features @ pooling(columns, 3).t()
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(features, 3), rtol=1e-5, atol=1e-6)


def test_tokens_are_base_then_regions_row_by_row_then_the_whole(encoder):
    h_c = torch.randn(4, 2, 10, 18)
    with torch.no_grad():
        tokens = encoder(h_c)
        features = encoder.conv(h_c[1:] - h_c[:-1])
        regions = F.adaptive_avg_pool2d(features, 3).permute(0, 2, 3, 1)  # [3, 3, 3, C]
        regions = encoder.region_out(encoder.region_mlp(regions))
        whole = encoder.global_out(encoder.global_mlp(features.mean((2, 3))))
    assert tokens.shape == (3, 20, 16)
    torch.testing.assert_close(tokens[:, :10], encoder.base.detach().expand(3, 10, 16))
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(tokens[:, 10 + 3 * row + column], regions[:, row, column])
    torch.testing.assert_close(tokens[:, 19], whole)


def test_a_scene_that_does_not_move_says_the_same_at_each_step(encoder):
    still = torch.randn(1, 2, 10, 18).expand(5, -1, -1, -1)
    tokens = encoder(still)
    # Not to the bit: some CPUs add the rows of a batch in another order.
    torch.testing.assert_close(tokens, tokens[:1].expand_as(tokens), rtol=1e-5, atol=1e-6)


def test_a_batch_of_windows_is_each_window(encoder):
    windows = torch.randn(3, 4, 2, 10, 18)
    together = encoder.forward_windows(windows)
    assert together.shape == (3, 3, 20, 16)
    torch.testing.assert_close(together[1], encoder(windows[1]), rtol=1e-5, atol=1e-6)


def test_widths_are_read_off_the_shapes_under_the_names_of_the_format(encoder):
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert RAEConfig.from_shapes(shapes) == CONFIG
    layers = [f"conv.{index}" for index in (0, 2, 4)]
    for part in ("region", "global"):
        layers += [f"{part}_mlp.0", f"{part}_mlp.2", f"{part}_out"]
    assert set(shapes) == {"base"} | {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_exports_on_a_grid_that_three_does_not_divide(encoder, tmp_path):
    h_c = torch.randn(8, 2, 10, 18)
    file = tmp_path / "rae.onnx"
    torch.onnx.export(
        encoder,
        (h_c,),
        str(file),
        dynamo=True,
        opset_version=20,
        input_names=["h_c"],
        output_names=["p_an"],
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {"h_c": h_c.numpy()})[0]
    np.testing.assert_allclose(found, encoder(h_c).detach().numpy(), atol=1e-5)
