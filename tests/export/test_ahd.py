import pytest
import torch
import torch.nn.functional as F

from tvau_edge.export.model.ahd import ABNORMAL, AHDConfig, AnomalyHeatmapDecoder, heatmap

CONFIG = AHDConfig(taps=3, width=16, hidden=12, features=24)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = AnomalyHeatmapDecoder(CONFIG)
    with torch.no_grad():
        decoder.weights.copy_(torch.tensor([2.0, -1.0, 0.5]))
    return decoder


def test_is_the_weighted_sum_of_cosines(decoder):
    taps, classes = [torch.randn(2, 4, 6, 16) for _ in range(3)], torch.randn(2, 24)
    h_c = decoder(taps, classes)
    expected = sum(
        weight * F.cosine_similarity(mlp(tap)[:, None], classes[None, :, None, None], dim=-1)
        for weight, mlp, tap in zip(decoder.weights, decoder.mlps, taps, strict=True)
    )
    assert h_c.shape == (2, 2, 4, 6)
    torch.testing.assert_close(h_c, expected, rtol=1e-5, atol=1e-6)


def test_the_heatmap_is_the_abnormal_channel_of_the_softmax():
    h_c = torch.randn(5, 2, 4, 6)
    torch.testing.assert_close(heatmap(h_c), h_c.softmax(1)[:, 1])
    assert ABNORMAL == 1
    torch.testing.assert_close(heatmap(h_c[0]), heatmap(h_c)[0])


def test_starts_where_the_softmax_can_be_sharp():
    weights = AnomalyHeatmapDecoder(AHDConfig(4, 16, 12, 24)).weights
    assert weights.tolist() == [2.5] * 4


def test_a_vector_of_zeros_gives_no_nan(decoder):
    for mlp in decoder.mlps:
        torch.nn.init.zeros_(mlp[2].weight)
        torch.nn.init.zeros_(mlp[2].bias)
    h_c = decoder([torch.randn(1, 2, 2, 16)] * 3, torch.zeros(2, 24))
    h_c.sum().backward()
    assert torch.equal(h_c, torch.zeros(1, 2, 2, 2))
    assert all(parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_widths_are_read_off_the_shapes_under_the_names_of_the_format(decoder):
    shapes = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    assert AHDConfig.from_shapes(shapes) == CONFIG
    assert set(shapes) == {"weights"} | {
        f"mlps.{tap}.{layer}.{kind}" for tap in range(3) for layer in (0, 2) for kind in ("weight", "bias")
    }
