from dataclasses import replace

import pytest

from tvau_edge.devices.errors import TvauError
from tvau_edge.devices.planner import Setup, fit, fits, memory, preferred, smaller, speed
from tvau_edge.devices.profile import profile, profiles
from tvau_edge.devices.workload import MODELS

SEVEN, THREE = MODELS["7b"], MODELS["3b"]


def answer(device, load=SEVEN, **settings):
    target = profile(device)
    return fit(target, load, preferred(target, load, **settings))


def test_every_device_has_an_answer_for_both_sizes():
    for device in profiles().values():
        for load in (SEVEN, THREE):
            found = fit(device, load, preferred(device, load))
            assert found.memory.running > found.memory.own > 0
            assert found.speed.patch > 0
            assert found.speed.dialogue >= found.speed.prefill
            assert found.advice or (found.fits and found.keeps_up)


def test_the_7b_does_not_fit_4_gb():
    found = answer("jetson-orin-nano-4gb")
    assert not found.fits
    assert found.instead.gguf is None
    assert any("without the language model it fits" in line for line in found.advice)
    assert any("swap" in line for line in found.advice)


def test_the_7b_fits_large_modules_at_8_bits():
    found = answer("jetson-agx-orin-64gb")
    assert found.setup.gguf == "q8_0"
    assert found.fits
    assert not found.tight
    assert found.keeps_up
    assert found.advice == ()


def test_a_type_that_is_too_large_is_replaced_by_the_largest_that_fits():
    device = profile("jetson-orin-nx-16gb")
    found = answer("jetson-orin-nx-16gb", gguf="f16")
    assert not found.fits
    assert found.instead.gguf == "q8_0"
    assert fits(device, SEVEN, found.instead)
    assert "GGUF q8_0 fits" in found.advice[0]


def test_smaller_setups_need_less_each_time():
    device = profile("jetson-orin-nx-16gb")
    setups = smaller(Setup("tensorrt", "int8", "f16", 4, 8))
    needs = [memory(device, SEVEN, setup).running for setup in setups]
    assert needs == sorted(needs, reverse=True)
    assert setups[-1] == Setup("tensorrt", "int8", None, 1, 8)


def test_nothing_smaller_is_left():
    tiny = profile("raspberry-pi-5")
    tiny = tiny.model_copy(update={"memory": tiny.memory.model_copy(update={"bytes": 1 << 30})})
    found = fit(tiny, SEVEN, preferred(tiny, SEVEN))
    assert found.instead is None
    assert "smaller model" in found.advice[0]


def test_more_cameras_than_the_device_can_follow():
    found = answer("jetson-orin-nano-super", THREE, cameras=8)
    assert found.needed_rate == 16
    assert not found.keeps_up
    assert any("5 cameras" in line for line in found.advice)


def test_decoding_is_bound_by_bandwidth():
    """A token reads every weight once; published speeds lie near: see docs/devices.md."""
    slow, fast = answer("jetson-orin-nano-8gb", THREE), answer("jetson-orin-nano-super", THREE)
    assert slow.speed.token / fast.speed.token == pytest.approx(102 / 68)


def test_bandwidth_helps_vision_until_operations_bound_it():
    device = profile("jetson-orin-nano-8gb")
    setup = preferred(device, SEVEN)

    def patch(times):
        wide = device.memory.model_copy(update={"bandwidth": times * device.memory.bandwidth})
        return speed(device.model_copy(update={"memory": wide}), SEVEN, setup).patch

    assert patch(10) == patch(20) < patch(1)


def test_int8_is_smaller_and_faster_than_float():
    device = profile("jetson-agx-orin-64gb")
    int8 = preferred(device, SEVEN)
    float32 = replace(int8, precision="fp32")
    assert memory(device, SEVEN, int8).vision < memory(device, SEVEN, float32).vision / 2
    assert speed(device, SEVEN, int8).patch < speed(device, SEVEN, float32).patch


def test_without_a_language_model():
    found = answer("raspberry-pi-5", gguf="none")
    assert found.setup.gguf is None
    assert found.memory.language == found.memory.cache == found.memory.scratch == 0
    assert found.speed.dialogue == 0


def test_an_unknown_type():
    with pytest.raises(TvauError, match=r"unknown GGUF type 'q3_x'; known: f32, f16, bf16, q8_0.*none"):
        answer("raspberry-pi-5", gguf="q3_x")
