import pytest

from tvau_edge.devices.workload import (
    GGUF_BITS,
    MODELS,
    Clip,
    float_operations,
    prefill_operations,
    product_operations,
)


@pytest.mark.parametrize(("name", "parameters"), [("7b", 7_615_616_512), ("3b", 3_085_938_688)])
def test_the_language_models_have_their_published_parameters(name, parameters):
    """Qwen2.5 7B and 3B, as their safetensors count them."""
    assert MODELS[name].decoder.parameters == parameters


def test_the_kv_cache_of_the_7b():
    assert MODELS["7b"].decoder.kv_bytes == 2 * 28 * 4 * 128 * 2


@pytest.mark.parametrize(("name", "kind", "gigabytes"), [("7b", "q4_k_m", 4.68), ("7b", "q8_0", 8.10)])
def test_gguf_sizes_are_near_those_that_are_published(name, kind, gigabytes):
    """Files of Qwen2.5-7B-Instruct-GGUF, in decimal gigabytes."""
    assert MODELS[name].language_weights(kind) / 1e9 == pytest.approx(gigabytes, rel=0.03)


def test_files_count_more_than_arithmetic():
    load = MODELS["7b"]
    own = type(load)("b", load.tower, load.decoder, load.clip, {"int8": 5}, {"q8_0": 7})
    assert own.vision_weights("int8") == 5
    assert own.language_weights("q8_0") == 7
    assert own.vision_weights("fp32") == load.vision_weights("fp32")


def test_a_clip_counts_its_tokens():
    clip = Clip(448, 252, 4.0, 8, 10, text_tokens=100, answer_tokens=50)
    assert (clip.patches, clip.merged) == (576, 144)
    assert clip.prompt_tokens == 8 * 144 + 7 * 20 + 100
    assert clip.context == clip.prompt_tokens + 50
    assert clip.patches_per_second == 2


def test_operations_of_four_blocks_of_the_7b():
    """Two operations for each weight and patch, a quarter of the patches in the merger."""
    tower, clip = MODELS["7b"].tower, Clip()
    block = 4 * 1280**2 + 3 * 1280 * 3420
    merger = 5120**2 + 5120 * 3584
    assert product_operations(tower, clip) == 2 * 576 * 32 * block + 2 * 144 * merger
    attention = 4 * 576 * 1280 * (4 * 576 + 28 * 64)
    heatmap = 4 * 2048 * (1280 + 3584)
    assert float_operations(tower, clip) == 2 * 576 * (1176 * 1280 + heatmap) + attention


def test_a_longer_prompt_costs_more_than_in_proportion():
    decoder = MODELS["3b"].decoder
    assert prefill_operations(decoder, 2000) > 2 * prefill_operations(decoder, 1000) * 0.99
    assert prefill_operations(decoder, 2000) / 2000 > prefill_operations(decoder, 1000) / 1000


def test_types_of_gguf_get_smaller():
    bits = list(GGUF_BITS.values())
    assert bits == sorted(bits, reverse=True)
