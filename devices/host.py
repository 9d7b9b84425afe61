"""What this machine has left: cores that we may use, memory, room on a disk."""

import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")


def usable_cores(quota: Path = _CGROUP_QUOTA) -> int:
    """Count the cores that this process may use: its affinity, cut by a container's CPU quota.

    Args:
        quota: the cgroup v2 file with "<microseconds or max> <period>".
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2, or one without a quota
    return max(1, cores)


def peak_memory(status: Path = _STATUS) -> int | None:
    """Peak resident memory of this process in bytes (VmHWM), or None where the system does not tell."""
    return _bytes_of("VmHWM", status)


def resident_memory(status: Path = _STATUS) -> int | None:
    """Resident memory of this process now, in bytes (VmRSS), or None where the system does not tell."""
    return _bytes_of("VmRSS", status)


def memory_free(facts: Path = _MEMORY) -> int | None:
    """Bytes that may be used without swapping (MemAvailable), or None where the system does not tell."""
    return _bytes_of("MemAvailable", facts)


def _bytes_of(key: str, file: Path) -> int | None:
    """The value of a line such as "VmHWM:  1234 kB"."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return int(kilobytes) * 1024 if kilobytes else None


def disk_free(path: Path) -> int:
    """Bytes that may still be written where `path` is or will be."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize
