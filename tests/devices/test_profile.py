import pytest

from tvau_edge.devices.errors import TvauError
from tvau_edge.devices.profile import DeviceError, jetpacks, parse_profile, profile, profiles, sources

WHOLE = """
title = "A board"
family = "arm"
machine = "aarch64"
[memory]
bytes = 8_000_000_000
bandwidth = 10_000_000_000
unified = true
system = 0
[cpu]
name = "Cortex"
cores = 4
hz = 2_000_000_000
features = ["asimd"]
[compute]
on = "cpu"
int8 = 1
fp16 = 1
fp32 = 1
[prefer]
vision = "onnxruntime"
precisions = ["int8"]
rae = "onnxruntime"
gguf = "q4_k_m"
gpu_layers = 0
threads = 4
[match]
features = ["asimd"]
[sources]
memory = "ours"
cpu = "ours"
compute = "ours"
prefer = "ours"
match = "ours"
"""


def test_every_profile_is_whole():
    assert len(profiles()) == 18
    for name, device in profiles().items():
        assert device.name == name
        for fact in device.facts():
            assert sources()[device.source_key(fact)].title


def test_every_source_is_used_and_says_how_it_was_read():
    used = {key for device in profiles().values() for key in device.sources.values()}
    used |= {release.source for release in jetpacks().values()}
    assert used == set(sources())
    for key, source in sources().items():
        assert (source.url is None) == (source.read in ("derived", "ours")), key


@pytest.mark.parametrize("name", [n for n in profiles() if n.startswith(("jetson-orin", "jetson-agx"))])
def test_peaks_of_orin_follow_from_tensor_cores_and_clock(name):
    device = profile(name)
    assert device.compute.int8 == device.gpu.tensor_cores * 1024 * device.gpu.hz
    assert device.compute.fp16 * 2 == device.compute.int8
    assert device.compute.fp32 == device.gpu.cuda_cores * 2 * device.gpu.hz


@pytest.mark.parametrize(
    ("name", "tops"),
    [  # NVIDIA's dense INT8 figures of the GPU, in whole TOPS
        ("jetson-orin-nano-4gb", 10),
        ("jetson-orin-nano-8gb", 20),
        ("jetson-orin-nano-super", 33),
        ("jetson-orin-nx-8gb", 25),
        ("jetson-orin-nx-16gb", 30),
        ("jetson-agx-orin-64gb", 85),
    ],
)
def test_peaks_of_orin_are_those_of_the_data_sheets(name, tops):
    assert profile(name).compute.int8 / 1e12 == pytest.approx(tops, abs=0.5)


def test_peaks_of_cpus_follow_from_cores_and_clock():
    for device in profiles().values():
        if device.compute.int8_per_cycle:
            for kind in ("int8", "fp16", "fp32"):
                rate = device.cpu.cores * device.cpu.hz * getattr(device.compute, f"{kind}_per_cycle")
                assert getattr(device.compute, kind) == rate, (device.name, kind)


def test_a_device_that_is_preferred_for_tensorrt_has_one_that_we_support():
    for device in profiles().values():
        versions = [tuple(map(int, jetpacks()[r].tensorrt.split("."))) for r in device.jetpack]
        if device.prefer.vision == "tensorrt":
            assert min(versions) >= (10, 3), device.name
            assert device.gpu is not None


def test_a_whole_profile_is_read():
    assert parse_profile("a-board", WHOLE).cpu.cores == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("cores = 4", "cores = 0"), r"profile a-board: cpu\.cores: .*greater than 0"),
        (("cores = 4", "kores = 4"), r"profile a-board: cpu\.cores: .*required"),
        (('on = "cpu"', 'on = "tpu"'), r"compute\.on"),
        (('machine = "aarch64"', 'machine = "mips"'), r"machine"),
        (('cpu = "ours"', ""), r"profile a-board: cpu\.name has no source"),
        (('cpu = "ours"', 'cpu = "hearsay"'), r"source 'hearsay' of cpu is not in sources\.toml"),
        (('title = "A board"', 'title = "A board"\njetpack = ["9.9"]'), r"jetpack has no source"),
        (('title = "A board"', "title = "), r"not valid TOML"),
    ],
)
def test_a_wrong_profile(change, said):
    assert change[0] in WHOLE
    with pytest.raises(DeviceError, match=said):
        parse_profile("a-board", WHOLE.replace(*change, 1))


def test_an_unknown_device_names_those_that_are_near():
    with pytest.raises(TvauError, match=r"unknown device 'orin-nano-8gb'; did you mean jetson-orin-nano-8gb"):
        profile("orin-nano-8gb")
    with pytest.raises(TvauError, match=r"unknown device 'zzz'; `tvau devices list` names all"):
        profile("zzz")
