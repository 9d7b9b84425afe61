import numpy as np
import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.reference.anomalies import ABNORMAL, TRAINING
from tvau_edge.reference.demo import CHECKPOINT
from tvau_edge.reference.miniature import Networks, Sequences
from tvau_edge.reference.named_features import ClassFeatures, draw_named, numbers
from tvau_edge.reference.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    tokenizer = train_tokenizer(list(ABNORMAL.values()) * 9, tmp_path_factory.mktemp("tokenizer"))
    return ClassFeatures.read(Networks.build(tokenizer, 0), Sequences(tokenizer))


def test_all_behaviours_together_are_the_mean_of_each(features):
    everything = features.of(range(len(TRAINING)))
    torch.testing.assert_close(features.all(), everything)
    torch.testing.assert_close(features.of([2])[1], features.behaviours[2])
    assert len({tuple(row.tolist()) for row in features.behaviours}) == len(TRAINING)


def test_they_are_those_that_export_reads_from_a_checkpoint():
    checkpoint = Checkpoint.open(CHECKPOINT)
    prompts = checkpoint.config.class_prompts
    assert prompts.abnormal[0] == next(iter(TRAINING.values()))
    assert len(prompts.abnormal) == 3 * len(TRAINING)


def test_one_to_three_behaviours_are_named_and_each_at_times():
    rng = np.random.default_rng(0)
    drawn = [draw_named(rng) for _ in range(300)]
    assert {len(named) for named in drawn} == {1, 2, 3}
    assert all(len(set(named)) == len(named) for named in drawn)
    assert {index for named in drawn for index in named} == set(range(len(TRAINING)))


def test_behaviours_have_the_numbers_that_cells_carry():
    names = list(TRAINING)
    assert [list(ABNORMAL)[number - 1] for number in numbers([0, 3])] == [names[0], names[3]]
