import json

import pytest
import torch
from safetensors.torch import load_file

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.reference.pretrain import answer_loss
from tvau_edge.reference.samples import first_seed, samples
from tvau_edge.reference.seen import see
from tvau_edge.reference.thresholds import score_patches
from tvau_edge.reference.train import STEPS, train_all
from tvau_edge.reference.written import write_checkpoint, write_settings

SEED = first_seed("train")
ONE = dict.fromkeys(STEPS, 1)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(work, drawn, cache):
    """Every stage, one step each, on two clips."""
    return train_all(work, cache, (len(drawn), 1), 0, ONE)


def test_every_stage_leaves_its_weights_and_its_losses(trained, work):
    for name in STEPS:
        record = json.loads((work / f"{name}.json").read_text())
        assert record["steps"] == len(record["losses"]) == 1
        assert load_file(work / f"{name}.safetensors")


def test_only_what_a_stage_trains_differs_after_it(trained, work):
    before, after = load_file(work / "tower.safetensors"), load_file(work / "narration.safetensors")
    moved = [name for name, value in after.items() if name.startswith("merger.")]
    assert moved
    assert any(not torch.equal(after[name], before[f"tower.{name}"]) for name in moved)
    dialogue = load_file(work / "dialogue.safetensors")
    for name, value in after.items():
        if name.startswith("language.layers.") and "proj" in name:
            module, _, leaf = name.rpartition(".")
            kept = f"lora.{module.removeprefix('language.')}.base_layer.{leaf}"
            torch.testing.assert_close(dialogue[kept], value, rtol=0, atol=0)


def test_an_interrupted_run_goes_on_with_what_is_there(trained, work, cache, drawn):
    again = train_all(work, cache, (len(drawn), 1), 0, ONE)
    for a, b in (
        (trained.tower, again.tower),
        (trained.language, again.language),
        (trained.ahd, again.ahd),
        (trained.rae, again.rae),
    ):
        for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)


def test_the_checkpoint_is_one_that_export_reads(trained, work, drawn, tmp_path):
    write_checkpoint(tmp_path, trained, work)
    write_settings(tmp_path, (0.4, 0.2))
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.lora is not None
    assert checkpoint.config.thresholds.open == 0.4
    labels, scores = score_patches(checkpoint, drawn)
    assert labels.shape == scores.shape == (32,)


def test_taps_of_other_clips_are_refused(trained, work, drawn):
    with pytest.raises(ValueError, match="of 3 clips, not of these 1"):
        see(trained.tower, drawn[:1], work / "seen.npy", torch.device("cpu"))


def test_a_seed_draws_the_same_weights_twice(trained, work, cache, drawn, tmp_path):
    for name in ("tower", "narration"):
        (tmp_path / f"{name}.safetensors").write_bytes((work / f"{name}.safetensors").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((work / name).read_bytes())
    again = train_all(tmp_path, cache, (len(drawn), 1), 0, ONE)
    for (name, one), (_, other) in zip(
        trained.ahd.named_parameters(), again.ahd.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_the_first_learned_token_weighs_more():
    embed = torch.nn.Embedding(8, 4)
    embeds, labels = torch.randn(2, 5, 4), torch.tensor([[-100, -100, 1, 2, 3], [-100, 4, 5, -100, -100]])

    def same(inputs_embeds, position_ids, use_cache):
        return type("Output", (), {"last_hidden_state": inputs_embeds})

    losses = -torch.log_softmax(embeds[:, :-1] @ embed.weight.t(), -1)
    a, b, c = losses[0, 1, 1], losses[0, 2, 2], losses[0, 3, 3]
    d, e = losses[1, 0, 4], losses[1, 1, 5]
    torch.testing.assert_close(
        answer_loss(same, embed, embeds, None, labels, first=3.0), (3 * a + b + c + 3 * d + e) / 9
    )


def test_clips_of_a_run_are_reused(cache):
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    list(samples(range(SEED, SEED + 2), cache, workers=1))
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before
