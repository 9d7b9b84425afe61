"""M-RoPE positions of the dialogue's sequence, by Qwen2.5-VL's own rule for video.

A text token has the same position on all three axes (temporal, height, width). The video starts at the position p
after the text before it: the token of temporal patch k at row y, column x of the merged grid has (p + int(k s r), p +
y, p + x), s being seconds per temporal patch and r the model's tokens per second. Text goes on from the largest
position so far plus one. P_An lies there, as consecutive text (the paper leaves its place open).
"""

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.manifest import Geometry


def text_positions(start: int, count: int) -> NDArray[np.int32]:
    """Positions [count, 3] of text that begins at `start`."""
    return np.repeat(np.arange(start, start + count, dtype=np.int32)[:, None], 3, axis=1)


def video_positions(
    start: int, patches: int, geometry: Geometry, tokens_per_second: float
) -> NDArray[np.int32]:
    """Positions [patches N, 3] of P_V that begins at `start`, patch by patch, row by row."""
    rows, columns = geometry.merged_grid
    # In float32 and cut to an integer, as Hugging Face does.
    step = np.float32(geometry.seconds_per_patch) * np.float32(tokens_per_second)
    moments = (np.arange(patches, dtype=np.float32) * step).astype(np.int32)
    t, y, x = np.meshgrid(moments, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([t, y, x], axis=-1).reshape(-1, 3).astype(np.int32) + np.int32(start)


def moments_differ(geometry: Geometry, tokens_per_second: float) -> bool:
    """Whether each temporal patch of a window has a temporal position of its own.

    llama.cpp masks by position: of two temporal patches at one position, a token sees of the other only the cells
    above it or to its left, whereas the checkpoint was trained to see the whole of the older one.
    """
    patches = geometry.temporal_patches
    positions = video_positions(0, patches, geometry, tokens_per_second)
    return len(np.unique(positions[:, 0])) == patches
