"""Stage 0: the miniature learns to see drawn streets and to narrate them, in place of Qwen's own pre-training.

The tower first learns, cell by cell, what stands there (kind, posture, zone, heading, colours). Then the merger and
the language model learn to tell it in words. Nothing here says what is abnormal. Afterwards all of it is frozen.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.model.vision import VisionTower
from tvau_edge.reference.miniature import IGNORE, Sequences
from tvau_edge.reference.narration import NARRATE
from tvau_edge.reference.progress import Course
from tvau_edge.reference.samples import ATTRIBUTES, GEOMETRY, HEADINGS, Sample

_BACKGROUND = 0.15  # weight of a cell that shows nothing; most do


class CellHeads(nn.Module):
    """Linear readers of each attribute, on the last block and on the merged tokens; thrown away after training."""

    def __init__(self, width: int, merged: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.Linear(width, classes) for classes in ATTRIBUTES.values())
        self.merged = nn.ModuleList(nn.Linear(merged, classes) for classes in ATTRIBUTES.values())

    def loss(self, cells: Tensor, p_v: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over all attributes: cells [B, H', W', width], p_v [B, N, D], target [B, 6, H', W']."""
        small = F.max_pool2d(target.float(), 2).long().flatten(2)  # [B, 6, N]: a class beats the background
        total = cells.new_zeros(())
        for index, (head, merged) in enumerate(zip(self.cells, self.merged, strict=True)):
            weight = torch.ones(head.out_features, device=cells.device)
            weight[0] = _BACKGROUND
            total = total + F.cross_entropy(
                head(cells).flatten(0, 2).float(), target[:, index].flatten(), weight
            )
            total = total + 0.5 * F.cross_entropy(
                merged(p_v).flatten(0, 1).float(), small[:, index].flatten(), weight
            )
        return total / len(ATTRIBUTES)


def train_tower(tower: VisionTower, samples: Sequence[Sample], course: Course, batch: int = 24) -> None:
    """Train the tower on single temporal patches; half of them mirrored."""
    rng = np.random.default_rng(course.seed)
    heads = CellHeads(tower.config.hidden_size, tower.config.out_hidden_size).to(course.device)
    optimizer = course.optimizer([*tower.parameters(), *heads.parameters()], rate=7e-4)
    heading = list(ATTRIBUTES).index("heading")
    swap = {"left": "right", "right": "left"}
    mirrored = np.array([HEADINGS.index(swap.get(name, name)) for name in HEADINGS], np.uint8)
    for _ in course.steps("tower"):
        frames, target = [], []
        for _ in range(batch):
            sample = samples[rng.integers(len(samples))]
            patch = rng.integers(len(sample.frames))
            image, classes = sample.frames[patch], sample.attributes[patch].copy()
            if rng.random() < 0.5:
                image, classes = image[:, :, ::-1], classes[:, :, ::-1].copy()
                classes[heading] = mirrored[classes[heading]]
            frames.append(image)
            target.append(classes)
        pixels = torch.from_numpy(np.stack(frames)).to(course.device)
        classes = torch.from_numpy(np.stack(target)).long().to(course.device)
        with course.precision():
            taps, p_v = tower(pixels)
            loss = heads.loss(taps[-1], p_v, classes)
        course.update(loss, optimizer)


def merge(tower: VisionTower, cells: Tensor) -> Tensor:
    """Run the merger on the last block's output in raster order: [B, H', W', width] -> P_V [B, N, D]."""
    count, rows, columns, width = cells.shape
    units = cells.reshape(count, rows // 2, 2, columns // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
    return tower.merger(units.reshape(count, rows * columns, width))


def train_narration(
    model: Qwen2_5_VLForConditionalGeneration,
    tower: VisionTower,
    samples: Sequence[Sample],
    seen: NDArray[np.float16],
    sequences: Sequences,
    course: Course,
    batch: int = 8,
) -> None:
    """Train merger and language model to narrate windows of the clips whose taps are `seen` (see `see`)."""
    rng = np.random.default_rng(course.seed + 1)
    language, embed = model.model.language_model, model.get_input_embeddings()
    optimizer = course.optimizer([*language.parameters(), *tower.merger.parameters()], rate=1.5e-3)
    for _ in course.steps("narration"):
        cells, turns = [], []
        for _ in range(batch):
            index = rng.integers(len(samples))
            window = samples[index].windows[rng.integers(len(samples[index].windows))]
            cells.append(seen[index, window.start : window.start + GEOMETRY.temporal_patches, -1])
            turns.append(sequences.turns([(NARRATE, window.narration)]))
        stack = torch.from_numpy(np.stack(cells)).to(course.device).float()  # [B, T', H', W', width]
        with course.precision():
            p_v = merge(tower, stack.flatten(0, 1)).reshape(batch, -1, embed.embedding_dim)
            embeds, positions, labels = sequences.batch(embed, p_v, None, turns)
            loss = answer_loss(language, embed, embeds, positions, labels)
        course.update(loss, optimizer)


def answer_loss(
    language: nn.Module,
    embed: nn.Embedding,
    embeds: Tensor,
    positions: Tensor,
    labels: Tensor,
    first: float = 1.0,
) -> Tensor:
    """Mean cross-entropy of the next tokens that are learned; the head is tied to `embed`.

    Args:
        language: the blocks, which read `embeds` [B, L, D] at `positions` [3, B, L].
        embed: token embedding.
        embeds: what `Sequences.batch` laid out.
        positions: likewise.
        labels: likewise, [B, L].
        first: weight of the first learned token of each row, beside 1 for the others.
    """
    hidden = language(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    learned = labels[:, 1:] != IGNORE
    logits = hidden[:, :-1][learned] @ embed.weight.to(hidden.dtype).t()  # [tokens, vocabulary]
    weight = torch.where(learned & (learned.cumsum(1) == 1), first, 1.0)[learned]
    loss = F.cross_entropy(logits.float(), labels[:, 1:][learned], reduction="none")
    return (loss * weight).sum() / weight.sum()
