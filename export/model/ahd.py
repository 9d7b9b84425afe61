"""AHD, the anomaly heatmap decoder: projected taps are compared with class prompts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NORMAL, ABNORMAL = 0, 1  # the order of the classes, everywhere


@dataclass(frozen=True)
class AHDConfig:
    """Widths of the decoder; the defaults are those for a Qwen2.5-VL 7B."""

    taps: int = 4
    width: int = 1280  # of the vision tower
    hidden: int = 2048
    features: int = 3584  # D: width of the language model

    @classmethod
    def from_shapes(cls, shapes: dict[str, tuple[int, ...]]) -> "AHDConfig":
        """Read the widths off the tensors' shapes.

        Args:
            shapes: tensor name (without `ahd.`) -> shape.

        Raises:
            KeyError: a tensor that tells a width is missing; its argument is the name.
        """
        hidden, width = shapes["mlps.0.0.weight"]
        return cls(shapes["weights"][0], width, hidden, shapes["mlps.0.2.weight"][0])


class AnomalyHeatmapDecoder(nn.Module):
    """Taps and class features -> one similarity map per class.

    `weights` are the learned weights of the taps. They are free (no softmax over them) and start at
    10 / taps: a cosine lies in -1..1, and the softmax over two such values alone could not be sharp.
    """

    def __init__(self, config: AHDConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.Parameter(torch.full((config.taps,), 10.0 / config.taps))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.features)
            )
            for _ in range(config.taps)
        )

    def forward(self, taps: list[Tensor], class_features: Tensor) -> Tensor:
        """Compare each patch with each class.

        Args:
            taps: `config.taps` tensors [B, H', W', width].
            class_features: [2, D], row 0 normal, row 1 abnormal.

        Returns:
            h_c [B, 2, H', W'], the weighted sum over taps of the cosine similarities.
        """
        batch, rows, columns, _ = taps[0].shape
        classes = unit(class_features).t()  # [D, 2]
        similarity = torch.zeros((), device=class_features.device)
        for index, (mlp, tap) in enumerate(zip(self.mlps, taps, strict=True)):
            projected = mlp(tap.reshape(batch, rows * columns, tap.shape[-1]))  # [B, N, D]
            similarity = similarity + self.weights[index] * (unit(projected) @ classes)  # [B, N, 2]
        return similarity.transpose(1, 2).reshape(batch, 2, rows, columns)  # [B, 2, H', W']


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one, in float32; a zero vector stays zero."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-12)


def heatmap(h_c: Tensor) -> Tensor:
    """The probability of the abnormal class, 0..1: h_c [..., 2, H', W'] -> [..., H', W']."""
    return h_c.softmax(dim=-3)[..., ABNORMAL, :, :]
