import os

import pytest

from tvau_edge.devices.host import disk_free, memory_free, peak_memory, usable_cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_a_quota_cuts_the_cores(tmp_path, quota, cores):
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("text", [None, "", "nonsense"])
def test_without_a_readable_quota_the_affinity_counts(tmp_path, text):
    file = tmp_path / "cpu.max"
    if text is not None:
        file.write_text(text)
    assert usable_cores(file) == len(os.sched_getaffinity(0))


def test_peak_memory_grows_with_use():
    before = peak_memory()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory() >= before
    assert peak_memory() > 64 << 20


def test_peak_memory_unknown(tmp_path):
    assert peak_memory(tmp_path / "none") is None


def test_disk_free_of_a_folder_that_is_not_there_yet(tmp_path):
    assert disk_free(tmp_path / "a" / "b") == pytest.approx(disk_free(tmp_path), rel=0.05)


@pytest.mark.parametrize("facts", ["MemTotal: 5 kB\nMemAvailable:   2048 kB\n", "MemTotal: 5 kB\n", None])
def test_memory_that_is_free(tmp_path, facts):
    file = tmp_path / "meminfo"
    if facts is not None:
        file.write_text(facts)
    assert memory_free(file) == (2048 * 1024 if facts and "Available" in facts else None)
