import pytest

from tvau_edge.devices import detection
from tvau_edge.devices.detection import detect, observe
from tvau_edge.devices.profile import DeviceError, profile, profiles


def test_there_is_a_tree_of_each_device(trees):
    assert set(trees) == set(profiles())


@pytest.mark.parametrize("name", list(profiles()))
def test_each_device_is_known_by_its_files(tree, trees, name):
    found = detect(tree(name))
    assert found.profile.name == name
    assert found.machine.cores == trees[name]["cores"]
    assert found.reason
    release = found.jetpack.jetpack if found.jetpack else None
    assert release == trees[name].get("jetpack")
    where = {seen.where for seen in found.machine.seen}
    assert {"/proc/meminfo", "/proc/cpuinfo"} <= where


def test_a_module_that_was_not_flashed_as_super_is_not(tree):
    assert detect(tree("jetson-orin-nano-8gb")).profile.name == "jetson-orin-nano-8gb"
    conf = "TNSPEC 3767-300-0005-K.1-1-1-jetson-orin-nano-devkit-super-\n"
    found = detect(tree("jetson-orin-nano-8gb", {"etc/nv_boot_control.conf": conf}))
    assert found.profile.name == "jetson-orin-nano-super"
    assert "Super" in found.reason


def test_a_super_module_without_a_profile_of_its_own_is_the_plain_one(tree):
    conf = "TNSPEC 3767-000-0000-A.1-1-1-jetson-orin-nano-devkit-super-\n"
    assert detect(tree("jetson-orin-nx-16gb", {"etc/nv_boot_control.conf": conf})).profile.name == (
        "jetson-orin-nx-16gb"
    )


def test_a_generic_profile_takes_the_machine_s_own_numbers(tree):
    found = detect(tree("x86-avx2"))
    own, example = found.profile, profile("x86-avx2")
    assert own.cpu.cores == own.prefer.threads == 8
    assert own.memory.bytes == 16303428 * 1024
    assert own.compute.int8 == 8 * 3_800_000_000 * example.compute.int8_per_cycle
    assert own.memory.bandwidth == example.memory.bandwidth


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R36 (release), REVISION: 4.7, GCID: 1\n", "36.4.7", "6.2"),
        ("# R36 (release), REVISION: 3.0, GCID: 1\n", "36.3.0", None),
        ("# R99 (release), REVISION: 1.0\n", "99.1.0", None),
        ("garbage\n", "", None),
        (None, "", None),
    ],
)
def test_releases_of_jetson_linux(tree, release, l4t, jetpack):
    changes = {"etc/nv_tegra_release": release}
    root = tree("raspberry-pi-5", changes)  # has none of its own
    found = detect(root)
    assert found.machine.l4t == l4t
    assert (found.jetpack.jetpack if found.jetpack else None) == jetpack
    said = [seen for seen in found.machine.seen if "nv_tegra" in seen.where]
    assert bool(said) == (release is not None)


def test_a_machine_that_fits_nothing_says_what_was_seen(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : Old\nflags : sse2\n")
    with pytest.raises(DeviceError, match=r"no profile fits.*1 x Old.*AVX2.*--device"):
        detect(tmp_path)


def test_an_empty_tree(tmp_path):
    with pytest.raises(DeviceError, match="nothing that tells"):
        detect(tmp_path)


def test_files_that_are_broken(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"\xff\xfe\0\0")
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"\0\0\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal: many kB\n")
    (tmp_path / "proc/cpuinfo").mkdir()
    machine = observe(tmp_path)
    assert machine.compatible == []
    assert machine.memory == machine.cores == 0


def test_this_machine_is_detected():
    machine = observe()
    assert machine.cores >= 1
    assert machine.memory > 1 << 28


def test_nvml_that_is_not_installed(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(detection.ctypes, "CDLL", absent)
    assert list(detection.nvml_cards()) == []
