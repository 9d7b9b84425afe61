"""The Qwen2.5-VL vision tower at one fixed size, with taps: one temporal patch (two frames) per batch row.

Parameter names are Hugging Face's, with the prefix `model.visual.` or `visual.` taken off. Attention never
crosses temporal patches, so a row of the batch is final the moment it is encoded, whatever stands beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """Widths of the tower; the defaults are the 7B's. The 3B differs in `out_hidden_size`: 2048."""

    depth: int = 32
    hidden_size: int = 1280
    num_heads: int = 16
    intermediate_size: int = 3420
    out_hidden_size: int = 3584  # D: width of the language model
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)  # counted from zero, as Hugging Face does
    window_size: int = 112  # pixels
    patch_size: int = 14  # pixels
    spatial_merge_size: int = 2
    tokens_per_second: float = 2.0  # M-RoPE's temporal positions; not used in the tower itself

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> "VisionConfig":
        """Read the `vision_config` table of a Hugging Face config.json.

        Raises:
            ValueError: the tower is not one that this module computes; says which key and what is allowed.
        """
        fixed = {"hidden_act": "silu", "temporal_patch_size": 2, "in_channels": 3, "in_chans": 3}
        for key, allowed in fixed.items():
            if values.get(key, allowed) != allowed:
                raise ValueError(f"vision_config.{key} is {values[key]!r}; only {allowed!r} is supported")
        names = {name for name in cls.__dataclass_fields__ if name in values}
        config = cls(**{name: values[name] for name in names - {"fullatt_block_indexes"}})
        if "fullatt_block_indexes" in names:
            blocks = tuple(int(index) for index in values["fullatt_block_indexes"])
            config = cls(**{**config.__dict__, "fullatt_block_indexes": blocks})
        if config.hidden_size % config.num_heads or config.hidden_size // config.num_heads % 4:
            raise ValueError(
                f"vision_config.hidden_size {config.hidden_size} over num_heads {config.num_heads} "
                "must be a whole multiple of 4 (rotary embedding over rows and columns)"
            )
        if config.window_cells < 1:
            raise ValueError(f"vision_config.window_size {config.window_size} holds no merged cell")
        return config

    @property
    def window_cells(self) -> int:
        """Merged cells along one side of an attention window."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The patch grid (H', W') of a frame of `height` x `width` pixels.

        Raises:
            ValueError: a side is not a positive multiple of patch size times merge size.
        """
        unit = self.patch_size * self.spatial_merge_size
        for name, pixels in (("height", height), ("width", width)):
            if pixels < unit or pixels % unit:
                raise ValueError(f"{name} {pixels} is not a positive multiple of {unit}")
        return height // self.patch_size, width // self.patch_size


@dataclass(frozen=True)
class Windows:
    """How raster-ordered patches are laid out for window attention, and back.

    Windows of the same shape lie side by side, so that attention over ragged edges needs no mask: one
    batched attention per shape. Inside a window stand its merged cells in raster order, inside a cell its
    patches in raster order, which is what the merger needs.
    """

    order: list[int]  # order[k] is the raster index of the k-th patch
    inverse: list[int]  # inverse[r] is where the patch with raster index r lies
    cell_inverse: list[int]  # the same for merged cells
    groups: list[tuple[int, int]]  # (windows, patches in each), in the order of `order`

    @classmethod
    def of(cls, config: VisionConfig, rows: int, columns: int) -> "Windows":
        """Lay out a patch grid of `rows` x `columns`."""
        merge, side = config.spatial_merge_size, config.window_cells
        cell_rows, cell_columns = rows // merge, columns // merge
        by_shape: dict[tuple[int, int], list[list[tuple[int, int]]]] = {}
        for top in range(0, cell_rows, side):
            for left in range(0, cell_columns, side):
                ys = range(top, min(top + side, cell_rows))
                xs = range(left, min(left + side, cell_columns))
                by_shape.setdefault((len(ys), len(xs)), []).append([(y, x) for y in ys for x in xs])
        cells = [cell for windows in by_shape.values() for window in windows for cell in window]
        order = [
            (merge * y + dy) * columns + merge * x + dx
            for y, x in cells
            for dy in range(merge)
            for dx in range(merge)
        ]
        groups = [(len(windows), len(windows[0]) * merge**2) for windows in by_shape.values()]
        return cls(order, invert(order), invert([y * cell_columns + x for y, x in cells]), groups)


def invert(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    inverse = [0] * len(order)
    for position, index in enumerate(order):
        inverse[index] = position
    return inverse


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32: the variance leaves float16's range in late blocks."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last axis."""
        y = x.float()  # [..., width]
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)  # [..., width]
        return self.weight * y.to(x.dtype)  # [..., width]


class PatchEmbed(nn.Module):
    """The non-overlapping 2 x 14 x 14 convolution, written as the matrix product that it is."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = config.patch_size
        kernel = (2, self.patch, self.patch)
        # A convolution for its name and its initialization; `forward` never calls it.
        self.proj = nn.Conv3d(3, config.hidden_size, kernel, stride=kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [B, 2, H, W, 3] -> patches [B, N, width] in raster order."""
        p, (batch, _, height, width, _) = self.patch, x.shape
        rows, columns = height // p, width // p
        x = x.reshape(batch, 2, rows, p, columns, p, 3)  # [B, 2, H', p, W', p, 3]
        x = x.permute(0, 2, 4, 1, 3, 5, 6)  # [B, H', W', 2, p, p, 3]
        x = x.reshape(batch, rows * columns, 2 * p * p * 3)  # [B, N, 6 p p]
        # The weights are moved to the pixels' channels-last order, not the pixels to theirs: it is done once.
        weight = self.proj.weight.permute(0, 2, 3, 4, 1).flatten(1)  # [width, 6 p p]
        return x.to(weight.dtype) @ weight.t()  # [B, N, width]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding in float32; x [B, N, heads, head], tables [1, N, 1, head]."""
    y = x.float()
    first, second = y.split([y.shape[-1] // 2] * 2, dim=-1)  # [B, N, heads, head / 2] each
    y = y * cosine + torch.cat((-second, first), dim=-1) * sine  # [B, N, heads, head]
    return y.to(x.dtype)


class Attention(nn.Module):
    """Self-attention, over the whole grid or inside each window.

    Written out, not by `scaled_dot_product_attention`: its export computes shapes inside the graph, and
    quantizers and compilers know the plain pattern of product, softmax, product.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.scale = (config.hidden_size // config.num_heads) ** -0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """Attend: x [B, N, width] in window order -> [B, N, width]; `groups` as in `Windows`."""
        batch, count, width = x.shape
        shape = (batch, count, self.heads, width // self.heads)
        q, k, v = self.qkv(x).split(width, dim=-1)  # [B, N, width] each
        q, k, v = q.reshape(shape), k.reshape(shape), v.reshape(shape)  # [B, N, heads, head] each
        q = rotate(q, cosine * self.scale, sine * self.scale)  # [B, N, heads, head]
        k = rotate(k, cosine, sine)  # [B, N, heads, head]
        outputs, start = [], 0
        for windows, patches in groups:
            end = start + windows * patches
            inside = (batch * windows, patches, self.heads, width // self.heads)
            qw, kw, vw = (part[:, start:end].reshape(inside).transpose(1, 2) for part in (q, k, v))
            scores = qw @ kw.transpose(2, 3)  # [B windows, heads, patches, patches]
            y = scores.softmax(dim=-1) @ vw  # [B windows, heads, patches, head]
            outputs.append(y.transpose(1, 2).reshape(batch, windows * patches, width))
            start = end
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # [B, N, width]
        return self.proj(y)  # [B, N, width]


class MLP(nn.Module):
    """SwiGLU with biases."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each patch: x [B, N, width] -> [B, N, width]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # [B, N, width]


class Block(nn.Module):
    """Attention and MLP, each behind its norm and added to the stream."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        """Run the block: x [B, N, width] -> [B, N, width]."""
        x = x + self.attn(self.norm1(x), cosine, sine, groups)  # [B, N, width]
        return x + self.mlp(self.norm2(x))  # [B, N, width]


class Merger(nn.Module):
    """Four neighbouring patches become one token of the language model."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(self.merged, self.merged), nn.GELU(), nn.Linear(self.merged, config.out_hidden_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Merge: x [B, 4 n, width], the four of a cell side by side -> [B, n, D]."""
        x = self.ln_q(x).reshape(x.shape[0], -1, self.merged)  # [B, n, 4 width]
        return self.mlp(x)  # [B, n, D]


class VisionTower(nn.Module):
    """The tower for frames of one size.

    Args:
        config: widths.
        height: pixels, a positive multiple of 28.
        width: pixels, a positive multiple of 28.
        taps: blocks whose outputs are returned, counted from one, ascending.

    Raises:
        ValueError: the size or a tap is not possible; says which.
    """

    def __init__(self, config: VisionConfig, height: int, width: int, taps: tuple[int, ...] = ()) -> None:
        super().__init__()
        for tap in taps:
            if not 1 <= tap <= config.depth:
                raise ValueError(f"tap {tap} does not exist; the tower has blocks 1 to {config.depth}")
        if list(taps) != sorted(set(taps)):
            raise ValueError(f"taps {list(taps)} are not ascending")
        self.config, self.height, self.width, self.taps = config, height, width, tuple(taps)
        self.grid = config.grid(height, width)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config)
        windows = Windows.of(config, *self.grid)
        self.groups = windows.groups
        self.whole = [(1, len(windows.order))]
        cosine, sine = rotary_tables(config, windows.order, self.grid[1])
        # On the CPU whatever the default device is: weights may be made on "meta" and filled in later.
        for name, table in (
            ("order", torch.tensor(windows.order, device="cpu")),  # [N]
            ("inverse", torch.tensor(windows.inverse, device="cpu")),  # [N]
            ("cell_inverse", torch.tensor(windows.cell_inverse, device="cpu")),  # [N / 4]
            ("cosine", cosine),  # [1, N, 1, head]
            ("sine", sine),  # [1, N, 1, head]
            ("scale", torch.tensor([1 / (255 * s) for s in STD], device="cpu")),  # [3]
            ("shift", torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device="cpu")),  # [3]
        ):
            self.register_buffer(name, table, persistent=False)

    def forward(self, frames: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode temporal patches.

        Args:
            frames: [B, 2, H, W, 3] uint8 RGB, 0..255.

        Returns:
            taps: one [B, H', W', width] per tap, cells in raster order.
            p_v: [B, N, D], merged cells in raster order.
        """
        # Not folded into the patch embedding's weights: uncentred pixels cost bf16 five times the error.
        return self._encode(frames.float() * self.scale + self.shift)

    def forward_pixels(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Encode pixels that are already normalized, [B, 3, 2, H, W] float; gradients flow to them."""
        return self._encode(pixels.permute(0, 2, 3, 4, 1))

    def _encode(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        rows, columns = self.grid
        x = self.patch_embed(pixels).index_select(1, self.order)  # [B, N, width]
        taps = []
        for number, block in enumerate(self.blocks, start=1):
            full = number - 1 in self.config.fullatt_block_indexes
            x = block(x, self.cosine, self.sine, self.whole if full else self.groups)  # [B, N, width]
            if number in self.taps:
                tap = x.index_select(1, self.inverse)  # [B, N, width]
                taps.append(tap.reshape(x.shape[0], rows, columns, x.shape[2]))
        p_v = self.merger(x).index_select(1, self.cell_inverse)  # [B, N / 4, D]
        return taps, p_v


def rotary_tables(config: VisionConfig, order: list[int], columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, N, 1, head] of the patches in `order`; half of the angles for the row."""
    half = config.hidden_size // config.num_heads // 2
    frequencies = 1.0 / 10000.0 ** (
        torch.arange(0, half, 2, dtype=torch.float32, device="cpu") / half
    )  # [head / 4]
    index = torch.tensor(order, device="cpu")  # [N]
    rows, cols = (index // columns).float()[:, None], (index % columns).float()[:, None]  # [N, 1] each
    angles = torch.cat((rows * frequencies, cols * frequencies), dim=-1)  # [N, head / 2]
    angles = torch.cat((angles, angles), dim=-1)[None, :, None]  # [1, N, 1, head]
    return angles.cos(), angles.sin()


def strip_prefix(name: str) -> str | None:
    """The tower's own name of a Hugging Face tensor, or None when it belongs to the language model."""
    for prefix in ("model.visual.", "visual."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return None
