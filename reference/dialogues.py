"""Stage 2: RAE and a LoRA on the language model learn the paper's dialogue; everything else is frozen."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.model.ahd import AnomalyHeatmapDecoder
from tvau_edge.export.model.rae import RegionAwareEncoder
from tvau_edge.export.model.vision import VisionTower
from tvau_edge.reference.heatmaps import maps
from tvau_edge.reference.miniature import Sequences
from tvau_edge.reference.named_features import draw_named, numbers
from tvau_edge.reference.narration import QUESTIONS, answers
from tvau_edge.reference.pretrain import answer_loss, merge
from tvau_edge.reference.progress import Course
from tvau_edge.reference.samples import GEOMETRY, Sample

_FIRST = 8.0  # weight of the token that says yes or no
_OTHERS = 0.2  # share of the windows with an anomaly that are seen while only other behaviours are named


@dataclass(frozen=True)
class Evidence:
    """What the frozen vision side makes of one clip: h_c [K, 2, H', W'] and P_V [K, N, D]."""

    h_c: Tensor
    p_v: Tensor


def add_lora(model: Qwen2_5_VLForConditionalGeneration, rank: int = 16) -> PeftModel:
    """Freeze the language model and lay a LoRA over the linear layers of its blocks."""
    layers = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=layers, bias="none")
    )


def train_dialogue(
    model: PeftModel,
    rae: RegionAwareEncoder,
    samples: Sequence[Sample],
    evidence: Sequence[Evidence],
    other_maps: Callable[[int, int, Sequence[int]], Tensor],
    sequences: Sequences,
    course: Course,
    batch: int = 8,
) -> None:
    """Train on windows, half of them with an anomaly.

    Of those, some are seen while the class prompts name other behaviours: then nothing is abnormal, and only the
    similarity maps tell so. What the language model knows of behaviours by itself cannot answer these.

    Args:
        model: the language model with its LoRA, trained in place.
        rae: trained in place.
        samples: the clips.
        evidence: of each.
        other_maps: h_c [T', 2, H', W'] of (clip, first patch) while only the behaviours of these indices are named.
        sequences: lays out the dialogues.
        course: how long.
        batch: windows in a step.
    """
    rng = np.random.default_rng(course.seed + 3)
    base = model.get_base_model()
    language, embed = base.model.language_model, base.get_input_embeddings()
    lora = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = course.optimizer([*lora, *rae.parameters()], rate=2e-3)
    windows = {kind: [] for kind in (True, False)}
    for index, sample in enumerate(samples):
        for window in sample.windows:
            if window.abnormal is not None:
                windows[window.abnormal].append((index, window))
    patches = GEOMETRY.temporal_patches
    for _ in course.steps("dialogue"):
        h_c, p_v, turns = [], [], []
        for row in range(batch):
            choice = windows[row % 2 == 0]
            index, window = choice[rng.integers(len(choice))]
            said, named = window.answers, draw_named(rng)
            if window.abnormal and rng.random() < _OTHERS and not _shows(samples[index], numbers(named)):
                said = answers([])
                h_c.append(other_maps(index, window.start, named))
            else:
                h_c.append(evidence[index].h_c[window.start : window.start + patches])
            p_v.append(evidence[index].p_v[window.start : window.start + patches].flatten(0, 1))
            pairs = [(question.text, _one(said[question.key], rng)) for question in QUESTIONS]
            turns.append(sequences.turns(pairs))
        # Stacked outside of the reduced precision, which on a CPU takes no float16.
        maps_seen, tokens = (torch.stack(rows).float().to(course.device) for rows in (h_c, p_v))
        with course.precision():
            p_an = rae.forward_windows(maps_seen).flatten(1, 2)
            embeds, positions, labels = sequences.batch(embed, tokens, p_an, turns)
            loss = answer_loss(language, embed, embeds, positions, labels, first=_FIRST)
        course.update(loss, optimizer)


def _shows(sample: Sample, behaviours: NDArray[np.uint8]) -> bool:
    return bool(np.isin(sample.behaviour, behaviours).any())


def _one(wordings: Sequence[str], rng: np.random.Generator) -> str:
    """One of several wordings, the plainest half of the time."""
    return wordings[0] if rng.random() < 0.5 else wordings[rng.integers(len(wordings))]


@torch.no_grad()
def read_evidence(
    tower: VisionTower,
    decoder: AnomalyHeatmapDecoder,
    class_features: Tensor,
    taps: NDArray[np.float16],
    device: torch.device,
) -> Evidence:
    """What the frozen vision side makes of one clip, from its taps [K, taps, H', W', width]; float16."""
    values = torch.from_numpy(np.array(taps)).to(device).float()
    return Evidence(
        maps(decoder, class_features, values.transpose(0, 1)).half(), merge(tower, values[:, -1]).half()
    )
