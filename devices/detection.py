"""What this machine is: the profile that fits it, and what was seen that says so.

Everything is read from files below a root, so that a recorded tree, or the root file system of a device that is not
running, is detected like the machine itself. Only NVML, which knows cards that no file names, needs the machine.
"""

import ctypes
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tvau_edge.devices.profile import DeviceError, JetPack, Profile, jetpacks, profiles

_ROOT = Path("/")
_NAME_BYTES = 96  # NVML_DEVICE_NAME_V2_BUFFER_SIZE
# Generic profiles, the most capable one first; those of named devices come before them.
_GENERIC = ("x86-amx", "x86-vnni", "x86-avx2", "arm-i8mm", "arm-dotprod")


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that was seen: where, what, and what it means."""

    where: str
    what: str
    meaning: str


@dataclass(slots=True)
class Machine:
    """Plain facts of a machine, as far as its files tell.

    Attributes:
        machine: as `uname -m` says; empty when unknown.
        model: of the device tree.
        compatible: of the device tree.
        cpu: name of the CPU.
        features: of the CPU.
        cores: that are there.
        hz: largest clock of the CPU, or 0.
        memory: bytes of MemTotal, or 0.
        l4t: version of Jetson Linux, such as "36.4.3".
        super: flashed with NVIDIA's Super configuration.
        gpus: names of NVIDIA cards with their memory in bytes.
        seen: how that is known.
    """

    machine: str = ""
    model: str = ""
    compatible: list[str] = field(default_factory=list)
    cpu: str = ""
    features: set[str] = field(default_factory=set)
    cores: int = 0
    hz: int = 0
    memory: int = 0
    l4t: str = ""
    super: bool = False
    gpus: list[tuple[str, int]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def note(self, where: str, what: str, meaning: str) -> None:
        """Remember what was seen."""
        self.seen.append(Seen(where, what, meaning))


@dataclass(frozen=True, slots=True)
class Detection:
    """What a machine is taken for.

    Attributes:
        profile: that fits best; of a generic one, cores and memory are the machine's own.
        machine: the facts.
        jetpack: its release, where there is one that we know.
        reason: why this profile.
    """

    profile: Profile
    machine: Machine
    jetpack: JetPack | None
    reason: str


def _text(root: Path, name: str) -> str:
    """The text of a file below root, NULs and space at its end removed; empty when it is not there."""
    try:
        return (root / name).read_bytes().decode(errors="replace").rstrip("\0\n ")
    except OSError:
        return ""


def observe(root: Path = _ROOT) -> Machine:
    """Collect the facts of a machine from the files below `root`."""
    machine = Machine()
    _device_tree(root, machine)
    _jetson_linux(root, machine)
    _cpu(root, machine)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _text(root, "proc/meminfo"), re.MULTILINE)
    if memory:
        machine.memory = int(memory[1]) * 1024
        machine.note(
            "/proc/meminfo", f"MemTotal {memory[1]} kB", f"{machine.memory / 2**30:.1f} GiB of memory"
        )
    if root == _ROOT:
        for name, size in nvml_cards():
            machine.gpus.append((name, size))
            machine.note("NVML", name, f"an NVIDIA GPU with {size / 2**30:.1f} GiB")
    return machine


def _device_tree(root: Path, machine: Machine) -> None:
    machine.model = _text(root, "proc/device-tree/model")
    if machine.model:
        machine.note("/proc/device-tree/model", machine.model, "the board's own name")
    machine.compatible = _text(root, "proc/device-tree/compatible").split("\0")
    machine.compatible = [name for name in machine.compatible if name]
    if machine.compatible:
        machine.note("/proc/device-tree/compatible", " ".join(machine.compatible), "board, module and chip")


def _jetson_linux(root: Path, machine: Machine) -> None:
    release = _text(root, "etc/nv_tegra_release").partition("\n")[0]
    version = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if version:
        machine.l4t = f"{version[1]}.{version[2].rstrip('.')}"
        machine.note("/etc/nv_tegra_release", release[:48].rstrip(", "), f"Jetson Linux {machine.l4t}")
    elif release:
        machine.note("/etc/nv_tegra_release", release[:60], "not in a form that we know")
    board = re.search(r"^TNSPEC\s+(\S+)", _text(root, "etc/nv_boot_control.conf"), re.MULTILINE)
    machine.super = "Super" in machine.model or (board is not None and "-super-" in board[1])
    if board:
        machine.note("/etc/nv_boot_control.conf", board[1], "what it was flashed as")


def _cpu(root: Path, machine: Machine) -> None:
    """Read the CPU: x86 calls them flags and names the model, Arm calls them Features and gives part numbers."""
    info = _text(root, "proc/cpuinfo")
    fields: dict[str, list[str]] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), []).append(value.strip())
    machine.cores = len(fields.get("processor", []))
    if "flags" in fields:
        machine.machine, machine.features = "x86_64", set(fields["flags"][0].split())
    elif "Features" in fields:
        machine.machine, machine.features = "aarch64", set(fields["Features"][0].split())
    elif root == _ROOT:
        machine.machine = platform.machine()
    machine.cpu = fields.get("model name", [""])[0]
    clock = _text(root, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if clock.isdigit():
        machine.hz = int(clock) * 1000
    elif "cpu MHz" in fields:
        machine.hz = int(float(fields["cpu MHz"][0]) * 1e6)
    if machine.cores:
        known = {
            "amx_bf16",
            "amx_int8",
            "avx512_bf16",
            "avx512_vnni",
            "avx_vnni",
            "avx2",
            "i8mm",
            "asimddp",
            "asimdhp",
        }
        useful = " ".join(sorted(known & machine.features)) or "none that we use"
        name = machine.cpu or machine.machine
        machine.note("/proc/cpuinfo", f"{machine.cores} x {name}", f"features: {useful}")


def computes_bf16(machine: Machine) -> bool:
    """Whether the CPU multiplies bfloat16 itself, as OpenVINO makes use of it on x86."""
    return bool({"amx_bf16", "avx512_bf16"} & machine.features)


def nvml_cards() -> Iterator[tuple[str, int]]:
    """Name and memory in bytes of each NVIDIA card, from NVML; none where it is not installed."""

    class Memory(ctypes.Structure):
        _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    if nvml.nvmlInit_v2() != 0:
        return
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        card, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES), Memory()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(card)) != 0:
            continue
        nvml.nvmlDeviceGetName(card, name, _NAME_BYTES)
        nvml.nvmlDeviceGetMemoryInfo(card, ctypes.byref(memory))
        yield name.value.decode(errors="replace"), int(memory.total)
    nvml.nvmlShutdown()


def detect(root: Path = _ROOT) -> Detection:
    """Find the profile that fits the machine whose files lie below `root`.

    Raises:
        DeviceError: none fits; says what was seen.
    """
    machine = observe(root)
    profile, reason = choose(machine)
    release = next((r for r in jetpacks().values() if _version_begins(machine.l4t, r.l4t)), None)
    if machine.l4t:
        found = f"JetPack {release.jetpack}" if release else "no release of JetPack that we know"
        machine.note("Jetson Linux", machine.l4t, found)
    return Detection(profile, machine, release, reason)


def _version_begins(version: str, start: str) -> bool:
    return f"{version}.".startswith(f"{start}.")


def choose(machine: Machine) -> tuple[Profile, str]:
    """The profile of a machine, and why.

    Raises:
        DeviceError: none fits.
    """
    fitting = [p for p in profiles().values() if set(p.match.compatible) & set(machine.compatible)]
    if fitting:
        # Modules that come in two configurations differ by `super`; one with several sizes, by the memory.
        same = [p for p in fitting if p.match.super == machine.super] or fitting
        best = min(same, key=lambda p: abs(p.memory.bytes - (machine.memory or p.memory.bytes)))
        name = next(name for name in machine.compatible if name in best.match.compatible)
        return best, f"the device tree says {name}" + (", flashed as Super" if best.match.super else "")
    for profile in profiles().values():
        if profile.match.cpu and re.search(profile.match.cpu, machine.cpu):
            return profile, f"the CPU is a {machine.cpu}"
    for name in _GENERIC:
        profile = profiles()[name]
        match = profile.match
        if set(match.features) <= machine.features and (not match.any or set(match.any) & machine.features):
            has = sorted((set(match.features) | set(match.any)) & machine.features)
            return fitted(profile, machine), f"the CPU has {', '.join(has)}"
    seen = "; ".join(f"{seen.where}: {seen.what}" for seen in machine.seen) or "nothing that tells"
    raise DeviceError(
        f"no profile fits this machine ({seen}); it needs at least AVX2, or Arm's dot products: "
        "`tvau devices list` names the devices, --device NAME chooses one"
    )


def fitted(profile: Profile, machine: Machine) -> Profile:
    """A generic profile with the machine's own cores, clock and memory; bandwidth stays the example's."""
    cores, hz = machine.cores or profile.cpu.cores, machine.hz or profile.cpu.hz
    compute = profile.compute
    rates = {
        kind: cores * hz * getattr(compute, f"{kind}_per_cycle")
        for kind in ("int8", "fp16", "fp32")
        if getattr(compute, f"{kind}_per_cycle")
    }
    return profile.model_copy(
        update={
            "cpu": profile.cpu.model_copy(
                update={"cores": cores, "hz": hz, "name": machine.cpu or profile.cpu.name}
            ),
            "memory": profile.memory.model_copy(update={"bytes": machine.memory or profile.memory.bytes}),
            "compute": compute.model_copy(update=rates),
            "prefer": profile.prefer.model_copy(update={"threads": cores}),
        }
    )
