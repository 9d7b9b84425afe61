import pytest
import torch

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError
from tvau_edge.export.model.prompts import TextConfig, class_features, hidden_states

PROMPTS = [[5, 300, 17, 44, 44, 2, 260], [9], [399, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]


class Recorder:
    """Weights that note what is read."""

    def __init__(self, checkpoint):
        self.checkpoint, self.read = checkpoint, []

    def tensor(self, name):
        self.read.append(name)
        return self.checkpoint.tensor(name)

    def rows(self, name, indices):
        self.read.append((name, len(indices)))
        return self.checkpoint.rows(name, indices)


@pytest.fixture
def checkpoint(tiny_checkpoint):
    return Checkpoint.open(tiny_checkpoint)


def transformers_states(model, prompt):
    with torch.no_grad():
        return model.model.language_model(torch.tensor([prompt])).last_hidden_state[0]


def test_hidden_states_agree_with_transformers(checkpoint, tiny_model):
    for prompt, found in zip(PROMPTS, hidden_states(checkpoint, checkpoint.text, PROMPTS), strict=True):
        expected = transformers_states(tiny_model, prompt)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_class_features_are_means_over_prompts_of_means_over_tokens(checkpoint, tiny_model):
    found = class_features(checkpoint, checkpoint.text, PROMPTS[:2], PROMPTS[2:])
    means = [transformers_states(tiny_model, prompt).mean(0) for prompt in PROMPTS]
    expected = torch.stack([(means[0] + means[1]) / 2, means[2]])
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_layers_are_read_in_turn_and_only_the_rows_that_are_needed(checkpoint):
    weights = Recorder(checkpoint)
    hidden_states(weights, checkpoint.text, PROMPTS)
    used = len({token for prompt in PROMPTS for token in prompt})
    assert weights.read[0] == ("model.embed_tokens.weight", used)
    layers = [int(name.split(".")[2]) for name in weights.read[1:-1]]
    assert layers == sorted(layers)
    assert weights.read[-1] == "model.norm.weight"
    assert "lm_head.weight" not in weights.read


def test_the_checkpoint_reads_its_own_prompts_or_others(checkpoint):
    own = checkpoint.class_features()
    sets = checkpoint.config.class_prompts
    assert own.shape == (2, 256)
    torch.testing.assert_close(own, checkpoint.class_features(sets.normal, sets.abnormal))
    assert not torch.allclose(own[1], checkpoint.class_features(abnormal=["a car on the pavement"])[1])


@pytest.mark.parametrize(("normal", "abnormal"), [([], ["x"]), (["x"], []), (["x"], [""])])
def test_a_class_without_words_is_refused(checkpoint, normal, abnormal):
    with pytest.raises(CheckpointError, match="prompt"):
        checkpoint.class_features(normal, abnormal)


def test_published_configurations_are_read():
    flat = {
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 32768,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }
    assert TextConfig.from_huggingface(flat) == TextConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is true"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type is 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_attention_heads": 27}, "not a multiple of num_attention_heads 27"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads 5"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [8, 8, 8]}}, "mrope_section"),
    ],
)
def test_models_of_another_kind_are_refused(change, message):
    values = {name: getattr(TextConfig(), name) for name in TextConfig.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        TextConfig.from_huggingface(values | change)
