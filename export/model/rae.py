"""RAE, the region-aware anomaly encoder: the motion of the similarity maps as prompt tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

REGIONS = 3  # the grid of regions is 3 x 3


@dataclass(frozen=True)
class RAEConfig:
    """Widths of the encoder; the defaults are those for a Qwen2.5-VL 7B."""

    channels: tuple[int, int, int] = (64, 128, 256)  # of the three convolutions
    region_hidden: tuple[int, int] = (1024, 1024)  # of the two layers of the regions' MLP
    global_hidden: tuple[int, int] = (1024, 1024)
    base_tokens: int = 10
    features: int = 3584  # D: width of the language model

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> "RAEConfig":
        """Read the widths off the tensors' shapes.

        Args:
            shapes: tensor name (without `rae.`) -> shape.

        Raises:
            KeyError: a tensor that tells a width is missing; its argument is the name.
        """
        first, second, third = (shapes[f"conv.{index}.weight"][0] for index in (0, 2, 4))
        region = shapes["region_mlp.0.weight"][0], shapes["region_mlp.2.weight"][0]
        whole = shapes["global_mlp.0.weight"][0], shapes["global_mlp.2.weight"][0]
        return cls((first, second, third), region, whole, *shapes["base"])


class RegionAwareEncoder(nn.Module):
    """Similarity maps of a window -> prompt tokens P_An.

    Args:
        config: widths.
        rows: H' of the patch grid; any positive number, 3 need not divide it.
        columns: W' of the patch grid.
    """

    def __init__(self, config: RAEConfig, rows: int, columns: int) -> None:
        super().__init__()
        self.config, self.grid = config, (rows, columns)
        first, second, third = config.channels
        self.conv = nn.Sequential(
            nn.Conv2d(2, first, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(second, third, 3, padding=1),
            nn.GELU(),
        )
        self.region_mlp = perceptron(third, *config.region_hidden)
        self.region_out = nn.Linear(config.region_hidden[1], config.features)
        self.global_mlp = perceptron(third, *config.global_hidden)
        self.global_out = nn.Linear(config.global_hidden[1], config.features)
        # As small as a language model's token embeddings are.
        self.base = nn.Parameter(torch.randn(config.base_tokens, config.features) * 0.02)
        self.register_buffer("pool_rows", pooling(rows, REGIONS), persistent=False)  # [3, H']
        self.register_buffer("pool_columns", pooling(columns, REGIONS), persistent=False)  # [3, W']

    def forward(self, h_c: Tensor) -> Tensor:
        """Encode a window.

        Args:
            h_c: [T', 2, H', W'], oldest first.

        Returns:
            [T' - 1, base_tokens + 10, D]; per step the base tokens, the nine regions row by row, the whole.
        """
        motion = h_c[1:] - h_c[:-1]  # [T' - 1, 2, H', W']
        features = self.conv(motion)  # [T' - 1, C, H', W']
        regions = self.pool_rows @ features @ self.pool_columns.t()  # [T' - 1, C, 3, 3]
        regions = regions.flatten(2).transpose(1, 2)  # [T' - 1, 9, C]
        regions = self.region_out(self.region_mlp(regions))  # [T' - 1, 9, D]
        whole = features.mean(dim=(2, 3))[:, None]  # [T' - 1, 1, C]
        whole = self.global_out(self.global_mlp(whole))  # [T' - 1, 1, D]
        base = self.base.expand(motion.shape[0], -1, -1)  # [T' - 1, base, D]
        return torch.cat((base, regions, whole), dim=1)  # [T' - 1, base + 10, D]

    def forward_windows(self, h_c: Tensor) -> Tensor:
        """Encode several windows at once, for training: [B, T', 2, H', W'] -> [B, T' - 1, base + 10, D]."""
        return torch.stack([self(window) for window in h_c])


def perceptron(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


def pooling(cells: int, bins: int) -> Tensor:
    """The matrix [bins, cells] of adaptive average pooling along one axis.

    Bin i averages the cells from floor(i cells / bins) up to, not including, ceil((i + 1) cells / bins), so
    neighbouring bins share a cell when `bins` does not divide `cells`. As a matrix it exports to any format.
    """
    matrix = torch.zeros(bins, cells, device="cpu")
    for index in range(bins):
        start, end = index * cells // bins, -(-(index + 1) * cells // bins)
        matrix[index, start:end] = 1 / (end - start)
    return matrix
