"""The vision graph: temporal patches and class features in, similarity maps and merged tokens out."""

from torch import Tensor, nn

from tvau_edge.export.model.ahd import AHDConfig, AnomalyHeatmapDecoder
from tvau_edge.export.model.vision import VisionConfig, VisionTower


class AnomalyVision(nn.Module):
    """Vision tower and AHD as one module, the form in which they are exported.

    Args:
        vision: widths of the tower.
        ahd: widths of the decoder; its tap count must be that of `taps`.
        height: pixels, a positive multiple of 28.
        width: pixels, a positive multiple of 28.
        taps: blocks counted from one, ascending.

    Raises:
        ValueError: size or taps are not possible, or do not fit the decoder.
    """

    def __init__(
        self, vision: VisionConfig, ahd: AHDConfig, height: int, width: int, taps: tuple[int, ...]
    ) -> None:
        super().__init__()
        if len(taps) != ahd.taps:
            raise ValueError(f"{len(taps)} taps {list(taps)} for a decoder of {ahd.taps}")
        self.vision = VisionTower(vision, height, width, taps)
        self.ahd = AnomalyHeatmapDecoder(ahd)

    def forward(self, frames: Tensor, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """Look at temporal patches.

        Args:
            frames: [B, 2, H, W, 3] uint8 RGB.
            class_features: [2, D] float32, row 0 normal, row 1 abnormal.

        Returns:
            h_c [B, 2, H', W'] and p_v [B, N, D].
        """
        taps, p_v = self.vision(frames)
        return self.ahd(taps, class_features), p_v  # [B, 2, H', W'], [B, N, D]
