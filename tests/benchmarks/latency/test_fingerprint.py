import getpass
import json
import socket

from tvau_edge.benchmarks.latency.fingerprint import fingerprint


def test_this_machine_has_one_without_names(monkeypatch):
    monkeypatch.setenv("TVAU_BROKER_PASSWORD", "hunter2")
    found = fingerprint()
    assert found["cores"] >= 1
    assert "numpy" in found["libraries"]
    text = json.dumps(found)
    assert "hunter2" not in text
    words = text.replace('"', " ").split()
    assert socket.gethostname() not in words
    if getpass.getuser() != "root":
        assert getpass.getuser() not in words


def test_a_recorded_jetson_is_known(tmp_path):
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/cpuinfo": "processor : 0\nFeatures : fp asimd asimdhp asimddp\n\nprocessor : 1\n",
        "proc/meminfo": "MemTotal:        7802108 kB\n",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
        "var/lib/nvpmodel/status": "pmode:0002\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = fingerprint(tmp_path)
    assert found["device"].endswith("Developer Kit Super")
    assert found["cpu_features"] == ["asimd", "asimddp", "asimdhp"]
    assert found["memory_bytes"] == 7802108 * 1024
    assert found["jetson_linux"] == "R36 (release), REVISION: 4.3"
    assert (found["power_mode"], found["governor"]) == ("pmode:0002", "schedutil")
    assert "cpu" not in found  # Arm's cpuinfo has no name; blank, not empty


def test_a_machine_that_tells_nothing_is_still_described(tmp_path):
    assert "memory_bytes" not in fingerprint(tmp_path)
