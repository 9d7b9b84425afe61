"""The wheels that a device installs without a network: for its Python, its machine and its C library."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from tvau_edge.devices.flashing import FlashError
from tvau_edge.devices.profile import JetPack

# Minor version of the GNU C library, 2.x, of a Jetson's Ubuntu, and of the system that has a Python as its own.
_UBUNTU = {"20.04": 31, "22.04": 35, "24.04": 39}
_PYTHON = {"3.10": 35, "3.11": 36, "3.12": 39, "3.13": 41}
_OLDEST = 17
_MISSING = re.compile(r"No matching distribution found for (\S+)")


def c_library(jetpack: JetPack | None, python: str) -> int:
    """Minor version of the device's GNU C library; an unknown one is taken for old, which only costs choice."""
    return _UBUNTU[jetpack.ubuntu] if jetpack else _PYTHON.get(python, 31)


def platforms(machine: str, glibc: int) -> list[str]:
    """Tags of wheels that a device with glibc 2.`glibc` takes, the newest first."""
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(glibc, _OLDEST - 1, -1)]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def collect(
    out: Path,
    own: Path,
    machine: str,
    python: str,
    glibc: int,
    extras: tuple[str, ...],
    local: Path | None,
    constraints: Path | None = None,
) -> list[Path]:
    """Collect the wheels of tvau-edge and of all that it needs, with pip.

    Args:
        out: folder, made.
        own: wheel of tvau-edge.
        machine: as `uname -m` says.
        python: version of the device's Python.
        glibc: minor version of the device's C library.
        extras: of tvau-edge.
        local: folder of wheels that no index has, such as llama-cpp-python's; None without.
        constraints: pip's file of versions; None takes the newest.

    Raises:
        FlashError: a wheel is missing for that Python and machine; names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    wanted = [f"tvau-edge{f'[{chr(44).join(extras)}]' if extras else ''} @ {own.resolve().as_uri()}"]
    if tuple(map(int, python.split("."))) < (3, 11):
        wanted.append("tomli>=2")  # pip takes markers from the Python that runs it, not from the device's
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(out),
    ]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for tag in platforms(machine, glibc):
        command += ["--platform", tag]
    if local is not None:
        command += ["--find-links", str(local.resolve())]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        missing = _MISSING.search(done.stderr)
        if missing:
            raise FlashError(
                f"there is no wheel of {missing[1]} for Python {python} on {machine}; build one and put it into a "
                "folder that --wheels names, or leave out what needs it (--no-llm, for llama-cpp-python)"
            )
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise FlashError(f"pip could not collect the wheels: {lines[-1]}")
    return sorted(out.glob("*.whl"))


def own_wheel(out: Path, given: Path | None) -> tuple[Path, str]:
    """The wheel of tvau-edge, given or built from the checkout that runs, and its version.

    Raises:
        FlashError: it is no wheel of tvau-edge, or there is no checkout to build one from.
    """
    if given is None:
        checkout = Path(__file__).resolve().parents[1]
        if not (checkout / "pyproject.toml").is_file():
            raise FlashError("tvau-edge does not run from a checkout here; name its wheel with --wheel")
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        done = subprocess.run(
            [*command, "--wheel-dir", str(out), str(checkout)], capture_output=True, text=True, check=False
        )
        built = sorted(out.glob("tvau_edge-*.whl"))
        if done.returncode != 0 or not built:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise FlashError(f"the wheel of tvau-edge could not be built: {lines[-1]}")
        given = built[-1]
    name = re.match(r"tvau_edge-([^-]+)-.*\.whl$", given.name)
    if name is None or not zipfile.is_zipfile(given):
        raise FlashError(f"{given} is no wheel of tvau-edge")
    return given, name[1]
