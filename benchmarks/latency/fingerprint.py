"""Which machine, system and libraries: what a comparison needs, without names, addresses or secrets."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tvau_edge.benchmarks.latency.limits import largest_cache
from tvau_edge.benchmarks.latency.nvml import Nvml
from tvau_edge.devices.host import usable_cores

Fingerprint = dict[str, bool | str | int | float | list[str] | dict[str, str]]

LIBRARIES = (
    "tvau-edge",
    "numpy",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "llama-cpp-python",
    "torch",
    "av",
    "paho-mqtt",
)
# CPU features that decide which kernels a back end has.
FEATURES = {
    *(
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
        "f16c",
    ),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def fingerprint(root: Path = Path("/")) -> Fingerprint:
    """Facts of this machine, as far as files below `root` tell; what they do not tell is left out."""
    facts: dict[str, bool | str | int | float | list[str] | dict[str, str] | None] = {
        "device": _text(root / "proc/device-tree/model"),
        "architecture": platform.machine(),
        **_cpu(root),
        "cores": usable_cores(),
        "cache_bytes": largest_cache(),
        "memory_bytes": _memory(root),
        "gpu": _gpu(),
        "kernel": platform.release(),
        "system": _system(root),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": _text(root / "var/lib/nvpmodel/status"),
        "jetson_linux": _text(root / "etc/nv_tegra_release").partition(", GCID")[0].lstrip("# "),
        "virtual": "hypervisor" in _flags(root),
        "container": _container(root),
        "python": platform.python_version(),
        "threads_environment": {
            key: os.environ[key] for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if key in os.environ
        },
        "libraries": {name: _version(name) for name in LIBRARIES if _version(name)},
    }
    return {key: value for key, value in facts.items() if value or value is False}


def _flags(root: Path) -> set[str]:
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _cpu(root: Path) -> Fingerprint:
    names = [
        line.partition(":")[2].strip()
        for line in _text(root / "proc/cpuinfo").splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": names[0] if names else "", "cpu_features": sorted(FEATURES & _flags(root))}


def _memory(root: Path) -> int:
    lines = _text(root / "proc/meminfo").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), 0)


def _gpu() -> str | None:
    nvml = Nvml.open()
    return nvml.name() if nvml else None


def _system(root: Path) -> str:
    lines = _text(root / "etc/os-release").splitlines()
    names = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else sys.platform


def _container(root: Path) -> str:
    if (root / ".dockerenv").exists():
        return "docker"
    return "podman" if (root / "run/.containerenv").exists() else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
