"""The miniature: a Qwen2.5-VL of the true form with small numbers, and the sequence that its language model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.model.ahd import AHDConfig, AnomalyHeatmapDecoder
from tvau_edge.export.model.rae import RAEConfig, RegionAwareEncoder
from tvau_edge.export.model.vision import VisionConfig, VisionTower
from tvau_edge.reference.narration import SYSTEM_PROMPT
from tvau_edge.reference.samples import GEOMETRY
from tvau_edge.reference.tokenizer import VOCABULARY

WIDTH = 256  # D, a multiple of 256 so that k-quants apply
TAPS = (1, 2, 4, 8)
BASE_TOKENS = 10
IGNORE = -100  # a label that is not learned


def configuration(tokenizer: Tokenizer) -> Qwen2_5_VLConfig:
    """The configuration of the miniature, as Hugging Face writes it."""
    token = tokenizer.token_to_id
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 768,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": 8,
            "hidden_size": 192,
            "num_heads": 4,
            "intermediate_size": 512,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1, 3, 5, 7],
            "window_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


@dataclass
class Networks:
    """Everything that is trained."""

    tower: VisionTower
    language: Qwen2_5_VLForConditionalGeneration
    ahd: AnomalyHeatmapDecoder
    rae: RegionAwareEncoder

    @classmethod
    def build(cls, tokenizer: Tokenizer, seed: int) -> "Networks":
        """Make them with fresh weights."""
        torch.manual_seed(seed)
        config = configuration(tokenizer)
        vision = VisionConfig.from_huggingface(config.vision_config.to_dict())
        language = Qwen2_5_VLForConditionalGeneration(config)
        language.model.visual = nn.Identity()  # ours computes the same, faster
        return cls(
            VisionTower(vision, GEOMETRY.height, GEOMETRY.width, TAPS),
            language,
            AnomalyHeatmapDecoder(AHDConfig(len(TAPS), vision.hidden_size, 256, WIDTH)),
            RegionAwareEncoder(
                RAEConfig((32, 64, 64), (128, 128), (128, 128), BASE_TOKENS, WIDTH), *GEOMETRY.grid
            ),
        )

    def to(self, device: torch.device) -> "Networks":
        """Move all of them."""
        for network in (self.tower, self.language, self.ahd, self.rae):
            network.to(device)
        return self


@dataclass(frozen=True)
class Turns:
    """One dialogue as tokens.

    Attributes:
        ids: [L], what follows <|vision_end|> and P_An.
        labels: [L], `IGNORE` where nothing is learned.
    """

    ids: list[int]
    labels: list[int]


class Sequences:
    """Lays out [text, P_V, P_An, turns] as the runtime does, for a whole batch.

    Args:
        tokenizer: the miniature's.
        tokens_per_second: M-RoPE's temporal positions per second of video.
    """

    def __init__(self, tokenizer: Tokenizer, tokens_per_second: float = 2.0) -> None:
        self.tokenizer = tokenizer
        self.head = self.encode(
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        )
        self.vision_end = tokenizer.token_to_id("<|vision_end|>")
        self.pad = tokenizer.token_to_id("<|endoftext|>")
        rows, columns = GEOMETRY.merged_grid
        step = GEOMETRY.seconds_per_patch * tokens_per_second
        self.video = np.array(
            [
                (int(k * step), y, x)
                for k in range(GEOMETRY.temporal_patches)
                for y in range(rows)
                for x in range(columns)
            ]
        )  # [T' N, 3], Qwen2.5-VL's rule for video

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; its control tokens count as such."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turns(self, pairs: Sequence[tuple[str, str]]) -> Turns:
        """Tokens of questions and answers; only answers, with their <|im_end|>, are learned."""
        ids: list[int] = []
        labels: list[int] = []
        for index, (question, answer) in enumerate(pairs):
            opening = "" if index == 0 else "\n<|im_start|>user\n"
            asked = self.encode(f"{opening}{question}<|im_end|>\n<|im_start|>assistant\n")
            said = self.encode(f"{answer}<|im_end|>")
            ids += asked + said
            labels += [IGNORE] * len(asked) + said
        return Turns(ids, labels)

    def positions(self, prompts: int, text: int) -> Tensor:
        """M-RoPE positions [3, L] of head, P_V, <|vision_end|>, `prompts` P_An tokens and `text` tokens."""
        start = len(self.head)
        before = np.repeat(np.arange(start)[:, None], 3, axis=1)
        video = self.video + start
        after = np.repeat(video.max() + 1 + np.arange(1 + prompts + text)[:, None], 3, axis=1)
        return torch.from_numpy(np.concatenate([before, video, after]).T.copy())

    def batch(self, embed: torch.nn.Embedding, p_v: Tensor, p_an: Tensor | None, turns: Sequence[Turns]):
        """Assemble a batch.

        Args:
            embed: the language model's token embedding.
            p_v: [B, T' N, D].
            p_an: [B, K, D], or None for a dialogue without.
            turns: B dialogues.

        Returns:
            inputs_embeds [B, L, D], position_ids [3, B, L], labels [B, L].
        """
        count, device = p_v.shape[0], p_v.device
        longest = max(len(turn.ids) for turn in turns)
        ids = torch.full((count, longest), self.pad)
        labels = torch.full((count, longest), IGNORE)
        for row, turn in enumerate(turns):
            ids[row, : len(turn.ids)] = torch.tensor(turn.ids)
            labels[row, : len(turn.ids)] = torch.tensor(turn.labels)
        head = embed(torch.tensor(self.head, device=device)).expand(count, -1, -1)
        end = embed(torch.tensor([self.vision_end], device=device)).expand(count, -1, -1)
        prompts = 0 if p_an is None else p_an.shape[1]
        parts = [head, p_v, end, *([] if p_an is None else [p_an]), embed(ids.to(device))]
        embeds = torch.cat(parts, dim=1)  # [B, L, D]
        positions = self.positions(prompts, longest)[:, None].expand(3, count, -1).to(device)  # [3, B, L]
        skipped = torch.full((count, embeds.shape[1] - longest), IGNORE)
        return embeds, positions, torch.cat([skipped, labels], dim=1).to(device)
