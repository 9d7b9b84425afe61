"""Class features while training: what AHD compares cells with, of all class prompts or of some behaviours alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tvau_edge.export.model.prompts import mean
from tvau_edge.reference.anomalies import ABNORMAL, TRAINING
from tvau_edge.reference.miniature import Networks, Sequences
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.runtime.language.class_prompts import nested

_NUMBERS = np.array([1 + list(ABNORMAL).index(name) for name in TRAINING], np.uint8)
_MOST = 3  # behaviours that are named together


@dataclass(frozen=True)
class ClassFeatures:
    """Features of the frozen language model: mean over tokens, then over prompts (paper, AHD).

    Attributes:
        normal: [D], of the normal class prompts.
        behaviours: [n, D], of each behaviour of `TRAINING`; their mean is the abnormal class.
    """

    normal: Tensor
    behaviours: Tensor

    @classmethod
    @torch.no_grad()
    def read(cls, networks: Networks, sequences: Sequences) -> "ClassFeatures":
        """Read all prompts with the language model."""
        language = networks.language.model.language_model
        embed = networks.language.get_input_embeddings()

        def states(prompt: str) -> Tensor:
            ids = torch.tensor([sequences.encode(prompt)], device=embed.weight.device)
            positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
            hidden = language(inputs_embeds=embed(ids), position_ids=positions, use_cache=False)
            return hidden.last_hidden_state[0]  # [L, D]

        behaviours = torch.stack([mean(map(states, nested(behaviour))) for behaviour in TRAINING.values()])
        return cls(mean(map(states, CLASS_PROMPTS["normal"])), behaviours)

    def all(self) -> Tensor:
        """The features [2, D] of the checkpoint's class prompts: normal, abnormal."""
        return torch.stack([self.normal, self.behaviours.mean(0)])

    def of(self, chosen: Sequence[int]) -> Tensor:
        """The features [2, D] when only the behaviours with these indices are abnormal."""
        return torch.stack([self.normal, self.behaviours[list(chosen)].mean(0)])


def draw_named(rng: np.random.Generator) -> list[int]:
    """Choose which behaviours somebody names: one to three indices into `TRAINING`."""
    return rng.choice(len(TRAINING), rng.integers(1, _MOST + 1), replace=False).tolist()


def numbers(chosen: Sequence[int]) -> np.ndarray:
    """The values in `Sample.behaviour` of the behaviours with these indices."""
    return _NUMBERS[list(chosen)]
