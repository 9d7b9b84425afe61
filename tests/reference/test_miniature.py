import numpy as np
import pytest
import torch

from tvau_edge.reference.miniature import IGNORE, Sequences
from tvau_edge.reference.narration import QUESTIONS
from tvau_edge.reference.samples import GEOMETRY
from tvau_edge.reference.tokenizer import train_tokenizer
from tvau_edge.reference.train import texts
from tvau_edge.runtime.language.positions import text_positions, video_positions


@pytest.fixture(scope="module")
def sequences(drawn, tmp_path_factory):
    return Sequences(train_tokenizer(texts(drawn), tmp_path_factory.mktemp("tokenizer")))


def test_positions_are_those_of_the_runtime(sequences):
    start = len(sequences.head)
    video = video_positions(start, GEOMETRY.temporal_patches, GEOMETRY, 2.0)
    parts = [text_positions(0, start), video, text_positions(video.max() + 1, 1 + 140 + 9)]
    np.testing.assert_array_equal(sequences.positions(140, 9).T, np.concatenate(parts))


def test_only_answers_are_learned(sequences):
    turns = sequences.turns([(question.text, f"Answer {question.key}.") for question in QUESTIONS])
    learned = [token for token, label in zip(turns.ids, turns.labels, strict=True) if label != IGNORE]
    text = sequences.tokenizer.decode(learned, skip_special_tokens=False)
    assert text == "".join(f"Answer {question.key}.<|im_end|>" for question in QUESTIONS)


def test_a_dialogue_reads_as_the_template_says(sequences):
    turns = sequences.turns([("Who?", "Nobody."), ("Where?", "Nowhere.")])
    assert sequences.tokenizer.decode(sequences.head + turns.ids, skip_special_tokens=False) == (
        "<|im_start|>system\nYou watch a surveillance camera.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        "Who?<|im_end|>\n<|im_start|>assistant\nNobody.<|im_end|>\n<|im_start|>user\n"
        "Where?<|im_end|>\n<|im_start|>assistant\nNowhere.<|im_end|>"
    )


def test_a_batch_is_text_video_prompts_text(sequences):
    embed = torch.nn.Embedding(1024, 256)
    turns = [sequences.turns([("Who?", "Nobody.")]), sequences.turns([("Who?", "A person in a red jacket.")])]
    p_v, p_an = torch.randn(2, 360, 256), torch.randn(2, 140, 256)
    embeds, positions, labels = sequences.batch(embed, p_v, p_an, turns)
    start, longest = len(sequences.head), max(len(turn.ids) for turn in turns)
    assert embeds.shape == (2, start + 360 + 1 + 140 + longest, 256)
    assert positions.shape == (3, 2, embeds.shape[1])
    assert labels.shape == embeds.shape[:2]
    torch.testing.assert_close(embeds[:, start : start + 360], p_v)
    torch.testing.assert_close(embeds[:, start + 361 : start + 501], p_an)
    torch.testing.assert_close(embeds[0, start + 360], embed(torch.tensor(sequences.vision_end)))
    assert (labels[:, : start + 501] == IGNORE).all()
