"""The folder that is carried to a device: wheels, bundle, configuration, units, and the script that installs them.

The folder installs without a network, can be installed again, and says what it is for, so that another device refuses
it. It reaches the device on a stick, over ssh, or inside a root file system that NVIDIA's tool flashes next.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tvau_edge.devices.errors import TvauError
from tvau_edge.devices.host import disk_free
from tvau_edge.devices.profile import JetPack, Profile, jetpacks

_FILES = Path(__file__).parent / "flash"
_INCOMING = Path("opt/tvau/incoming")
_WANTS = Path("etc/systemd/system/multi-user.target.wants")
_MODULES = {"llm": "llama_cpp", "openvino": "openvino"}  # which an extra brings, to try whether they load
_VENV = 600 << 20  # bytes that an installed environment takes besides the wheels, unpacked
_GPU_DEVICES = """# The GPU: NVIDIA's own device nodes, nvmap, which is a misc device, and the render nodes.
DeviceAllow=char-nv* rw
DeviceAllow=char-misc rw
DeviceAllow=char-drm rw
"""


class FlashError(TvauError):
    """A folder cannot be made, or not be carried to where it should go; says what to do."""


@dataclass(frozen=True, slots=True)
class Release:
    """What is carried, and for which device.

    Attributes:
        id: names the release on the device: version, and the beginning of a checksum over all that it holds.
        device: name of its profile.
        machine: as `uname -m` says.
        python: version, such as "3.10".
        l4t: beginning of Jetson Linux's version; empty elsewhere.
        compatible: names of the device tree, one of which the device has; empty where any machine will do.
        backend: of vision.
        extras: of tvau-edge that are installed.
    """

    id: str
    device: str
    machine: str
    python: str
    l4t: str
    compatible: tuple[str, ...]
    backend: str
    extras: tuple[str, ...]


def target(device: Profile, jetpack: str | None, python: str | None) -> tuple[JetPack | None, str]:
    """The JetPack and the Python that a device has.

    Args:
        device: its profile.
        jetpack: its release; None takes the first that the profile names.
        python: version where the system is none of NVIDIA's; None takes 3.11, Debian 12's.

    Raises:
        FlashError: the device does not run that JetPack, or its Python is too old.
    """
    if device.family != "jetson":
        if jetpack:
            raise FlashError(f"{device.name} is no Jetson; leave --jetpack out")
        return None, python or "3.11"
    name = jetpack or device.jetpack[0]
    if name not in device.jetpack:
        raise FlashError(f"{device.name} runs JetPack {', '.join(device.jetpack)}, not {name}")
    release = jetpacks()[name]
    version = python or release.python
    if tuple(map(int, version.split("."))) < (3, 10):
        raise FlashError(
            f"JetPack {name} brings Python {version}, tvau-edge needs 3.10 or newer: install one on the device "
            "(and name it with --python), or flash a newer JetPack"
        )
    return release, version


def write_folder(
    out: Path,
    device: Profile,
    jetpack: JetPack | None,
    python: str,
    *,
    version: str,
    bundle: Path,
    config: str,
    wheels: Path,
    extras: tuple[str, ...],
) -> Release:
    """Write the folder.

    Args:
        out: made; a folder that we wrote before is replaced, anything else is not.
        device: its profile.
        jetpack: that the device runs; None elsewhere.
        python: version of the device's Python.
        version: of tvau-edge.
        bundle: verified.
        config: text of the site's configuration.
        wheels: folder of the wheels; moved into the folder.
        extras: to install.

    Raises:
        FlashError: `out` is there and not ours, or the disk has no room.
    """
    if out.exists() and not (out / "release.env").exists() and any(out.iterdir()):
        raise FlashError(f"{out} is there and is none of our folders; choose another --out, or remove it")
    size = _size(bundle) + _size(wheels)
    if disk_free(out) < size:
        raise FlashError(
            f"{out}: the folder needs {size >> 20} MiB, the disk has {disk_free(out) >> 20} MiB free"
        )
    shutil.rmtree(out, ignore_errors=True)
    (out / "units").mkdir(parents=True)
    shutil.copytree(bundle, out / "bundle")
    shutil.move(wheels, out / "wheelhouse")
    (out / "site.toml").write_text(config, encoding="utf-8")
    backend = device.prefer.vision
    _write_units(out, backend)
    shutil.copy(_FILES / "install.sh", out / "install.sh")
    (out / "install.sh").chmod(0o755)
    sums = {str(file.relative_to(out)): _sha256(file) for file in _files(out)}
    digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:12]
    release = Release(
        id=f"{version}-{digest}",
        device=device.name,
        machine=device.machine,
        python=python,
        l4t=jetpack.l4t if jetpack else "",
        compatible=tuple(device.match.compatible),
        backend=backend,
        extras=extras,
    )
    _write_release(out, release, size)
    for name in ("release.env", "release.json"):
        sums[name] = _sha256(out / name)
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (out / "SHA256SUMS").write_text("".join(lines))
    return release


def _write_units(out: Path, backend: str) -> None:
    gpu = backend == "tensorrt"
    hardening = (
        (_FILES / "hardening.conf").read_text().replace("@GROUPS@", "video render" if gpu else "video")
    )
    hardening += _GPU_DEVICES if gpu else ""
    for name in ("tvau.service", "tvau-engines.service") if gpu else ("tvau.service",):
        text = (
            (_FILES / name)
            .read_text()
            .replace("@HARDENING@\n", f"{hardening}\n")
            .replace("@BACKEND@", backend)
        )
        (out / "units" / name).write_text(text)
    shutil.copy(_FILES / "journald@tvau.conf", out / "units")


def _write_release(out: Path, release: Release, size: int) -> None:
    """Write what the folder is for, for the shell and for people."""
    facts = {
        "RELEASE": release.id,
        "DEVICE": release.device,
        "MACHINE": release.machine,
        "PYTHON": release.python,
        "L4T": release.l4t,
        "COMPATIBLE": " ".join(release.compatible),
        "EXTRAS": f"[{','.join(release.extras)}]" if release.extras else "",
        "MODULES": " ".join(_MODULES[extra] for extra in release.extras),
        "ENGINES": "yes" if release.backend == "tensorrt" else "",
        "KILOBYTES": str((size + _VENV) >> 10),
    }
    lines = [f"{key}={shlex.quote(value)}\n" for key, value in facts.items()]
    (out / "release.env").write_text("".join(lines))
    (out / "release.json").write_text(json.dumps(asdict(release), indent=2) + "\n")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _files(folder))


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def put_into_rootfs(folder: Path, rootfs: Path, release: Release) -> Path:
    """Put the folder into a root file system that is flashed next; it is installed at the first boot.

    Raises:
        FlashError: it is no root file system, one for another machine or Jetson Linux, or too full.
    """
    check_rootfs(rootfs, release.device, release.machine, release.python, release.l4t)
    size = _size(folder)
    if disk_free(rootfs) < size:
        raise FlashError(
            f"{rootfs}: {size >> 20} MiB are needed, the disk has {disk_free(rootfs) >> 20} MiB free"
        )
    incoming = rootfs / _INCOMING
    part = incoming.with_name("incoming.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder, part)
        shutil.rmtree(incoming, ignore_errors=True)
        part.rename(incoming)
        unit = rootfs / "etc/systemd/system/tvau-install.service"
        unit.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_FILES / unit.name, unit)
        link = rootfs / _WANTS / unit.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"/etc/systemd/system/{unit.name}")
    except OSError as error:
        raise FlashError(
            f"{rootfs} cannot be written: {error.strerror or error}; run it as root, with sudo"
        ) from error
    return incoming


def check_rootfs(rootfs: Path, device: str, machine: str, python: str, l4t: str = "") -> None:
    """Refuse what is not the root file system of a device, or lacks what its first boot needs without a network.

    Args:
        rootfs: folder.
        device: name of its profile.
        machine: as `uname -m` says there.
        python: version of the device's Python.
        l4t: beginning of Jetson Linux's version; empty elsewhere.

    Raises:
        FlashError: says what is wrong with it.
    """
    if not (rootfs / "etc/os-release").is_file() or not (rootfs / "usr/bin").is_dir():
        hint = "; did you unpack NVIDIA's sample root file system into it, and run apply_binaries.sh?"
        raise FlashError(
            f"{rootfs} is no root file system (no etc/os-release){hint if rootfs.is_dir() else ''}"
        )
    seen = elf_machine(rootfs / "usr/bin/env")
    if seen not in (machine, None):
        raise FlashError(f"{rootfs} is for {seen}, {device} needs {machine}")
    if l4t:
        _check_jetson_linux(rootfs, l4t)
    lacks = [
        package
        for package, file in (
            (f"python{python}", "bin/python{}"),
            (f"python{python}-venv", "lib/python{}/ensurepip"),
        )
        if not any((rootfs / place / file.format(python)).exists() for place in ("usr", "usr/local"))
    ]
    if lacks:
        raise FlashError(
            f"{rootfs} lacks {' and '.join(lacks)}: sudo chroot {rootfs} apt install {' '.join(lacks)}"
        )


def _check_jetson_linux(rootfs: Path, l4t: str) -> None:
    found = (
        (rootfs / "etc/nv_tegra_release").read_text() if (rootfs / "etc/nv_tegra_release").is_file() else ""
    )
    major, _, minor = l4t.partition(".")
    if not found.startswith(f"# R{major} (release), REVISION: {minor}."):
        seen = found.partition(", GCID")[0].removeprefix("# ") or "no etc/nv_tegra_release"
        raise FlashError(f"{rootfs} has {seen}; this release is for Jetson Linux {l4t} (--jetpack chooses)")


def elf_machine(program: Path) -> str | None:
    """The machine that a program is for, from its ELF header; None when it cannot be told."""
    try:
        with program.open("rb") as file:
            head = file.read(20)
    except OSError:
        return None
    machines = {0xB7: "aarch64", 0x3E: "x86_64", 0x28: "armv7l"}
    return machines.get(int.from_bytes(head[18:20], "little")) if head[:4] == b"\x7fELF" else None


def send(folder: Path, host: str, release: Release, *, no_start: bool = False) -> None:
    """Carry the folder to a device over ssh and install it there. Safe to run again after it failed half-way.

    Args:
        folder: written.
        host: as ssh takes it, such as "user@10.0.0.7".
        release: what it holds.
        no_start: install only.

    Raises:
        FlashError: ssh fails, or the installation does; says at which step.
    """
    if host.startswith("-"):
        raise FlashError(f"--target {host}: expected user@host")
    place = f"/var/tmp/tvau-{release.id}"  # noqa: S108 (on the device; the checksums are compared there)
    part = shlex.quote(f"{place}.part")
    _ssh(host, f"rm -rf {part} && mkdir -p {part}", "prepare a folder")
    with subprocess.Popen(["tar", "-C", str(folder), "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
        _ssh(host, f"tar -C {part} -xf -", "copy the folder", stdin=tar.stdout)
    if tar.returncode != 0:
        raise FlashError(f"tar cannot read {folder}")
    _ssh(host, f"rm -rf {shlex.quote(place)} && mv {part} {shlex.quote(place)}", "put the folder in place")
    install = f"sudo {shlex.quote(f'{place}/install.sh')}{' --no-start' if no_start else ''}"
    _ssh(host, install, "install")
    _ssh(host, f"rm -rf {shlex.quote(place)}", "clear up")


def _ssh(host: str, command: str, step: str, stdin: IO[bytes] | None = None) -> None:
    try:
        done = subprocess.run(
            ["ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", host, command],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise FlashError("ssh is not installed: apt install openssh-client") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise FlashError(
            f"{host}: could not {step}: {reason.removeprefix('tvau: error: ')}; what ran there before runs on, and "
            "this command may be run again"
        )


def plan(folder_files: dict[str, int], destination: str) -> list[str]:
    """Lines that say each file and where it goes, for --dry-run."""
    return [f"{size:>12,}  {os.path.join(destination, name)}" for name, size in sorted(folder_files.items())]
