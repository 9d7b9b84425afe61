"""The folder that is carried to a device, and the ways there."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from release_folders import make_wheel

from tvau_edge.devices import flashing, wheelhouse
from tvau_edge.devices.flashing import (
    FlashError,
    check_rootfs,
    elf_machine,
    plan,
    put_into_rootfs,
    send,
    target,
)
from tvau_edge.devices.profile import jetpacks, profile
from tvau_edge.devices.wheelhouse import c_library, collect, own_wheel, platforms

MACHINE = platform.machine()
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_folder_holds_what_a_device_needs(make_folder):
    folder, release = make_folder()
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "SHA256SUMS",
        "bundle/manifest.json",
        "install.sh",
        "release.env",
        "release.json",
        "site.toml",
        "units/journald@tvau.conf",
        "units/tvau.service",
        "wheelhouse/tvau_edge-0.1.0-py3-none-any.whl",
    }
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == names - {"SHA256SUMS"}
    assert release.id.startswith("0.1.0-")


def test_the_same_contents_have_the_same_name(make_folder):
    one, other = make_folder(name="a")[1], make_folder(name="b")[1]
    assert one.id == other.id
    assert make_folder(version="0.2.0", name="c")[1].id != one.id


def test_a_folder_replaces_its_own_kind_and_nothing_else(make_folder, tmp_path):
    make_folder()
    make_folder()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").write_text("")
    with pytest.raises(FlashError, match=r"photos is there and is none of our folders"):
        make_folder(name="photos")
    assert (tmp_path / "photos/one.jpg").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("device", ["raspberry-pi-5", "jetson-orin-nano-8gb"])
def test_systemd_takes_the_units(make_folder, tmp_path, device):
    jetpack = "6.2" if device.startswith("jetson") else None
    folder, _ = make_folder(device, jetpack=jetpack)
    shutil.copy(Path(flashing.__file__).parent / "flash/tvau-install.service", folder / "units")
    units = sorted((folder / "units").glob("*.service"))
    assert len(units) == (3 if jetpack else 2)
    for unit in units:  # whose programs are not on this machine
        unit.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "tvau" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr
    for unit in units:
        if unit.name == "tvau-install.service":
            continue  # installs, so it must be root
        threshold = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(unit)]
        done = subprocess.run(threshold, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.fixture
def rootfs(tmp_path):
    root = tmp_path / "rootfs"
    (root / "usr/bin").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=ubuntu\n")
    (root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1\n")
    (root / "usr/bin/env").write_bytes(b"\x7fELF" + bytes(14) + b"\xb7\x00" + bytes(20))
    (root / f"usr/bin/python{VERSION}").touch()
    (root / f"usr/lib/python{VERSION}/ensurepip").mkdir(parents=True)
    return root


@pytest.fixture
def orin(make_folder):
    return make_folder("jetson-orin-nano-8gb", jetpack="6.2", machine="aarch64")


def test_a_root_file_system_installs_at_its_first_boot(orin, rootfs):
    folder, release = orin
    for _ in range(2):
        assert put_into_rootfs(folder, rootfs, release) == rootfs / "opt/tvau/incoming"
    assert (rootfs / "opt/tvau/incoming/install.sh").stat().st_mode & 0o111
    link = rootfs / "etc/systemd/system/multi-user.target.wants/tvau-install.service"
    assert os.readlink(link) == "/etc/systemd/system/tvau-install.service"
    assert not (rootfs / "opt/tvau/incoming.part").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("none", r"is no root file system \(no etc/os-release\); did you unpack"),
        ("machine", "is for x86_64, jetson-orin-nano-8gb needs aarch64"),
        ("release", r"has R35 \(release\), REVISION: 5\.0; this release is for Jetson Linux 36\.4"),
        ("plain", "has no etc/nv_tegra_release"),
        ("venv", rf"lacks python{VERSION}-venv: sudo chroot \S+ apt install python{VERSION}-venv$"),
        ("python", rf"lacks python{VERSION} and python{VERSION}-venv: sudo chroot \S+ apt install"),
    ],
)
def test_a_root_file_system_of_another_kind(orin, rootfs, change, said):
    if change == "none":
        (rootfs / "etc/os-release").unlink()
    elif change == "machine":
        (rootfs / "usr/bin/env").write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00" + bytes(20))
    elif change == "release":
        (rootfs / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 5.0, GCID: 1\n")
    elif change == "plain":
        (rootfs / "etc/nv_tegra_release").unlink()
    else:
        (rootfs / f"usr/lib/python{VERSION}/ensurepip").rmdir()
        if change == "python":
            (rootfs / f"usr/bin/python{VERSION}").unlink()
    with pytest.raises(FlashError, match=said):
        put_into_rootfs(orin[0], rootfs, orin[1])
    assert not (rootfs / "opt").exists()


def test_a_python_of_one_s_own_in_a_root_file_system(orin, rootfs):
    (rootfs / f"usr/bin/python{VERSION}").unlink()
    (rootfs / f"usr/lib/python{VERSION}/ensurepip").rmdir()
    (rootfs / "usr/local/bin").mkdir(parents=True)
    (rootfs / f"usr/local/bin/python{VERSION}").touch()
    (rootfs / f"usr/local/lib/python{VERSION}/ensurepip").mkdir(parents=True)
    check_rootfs(rootfs, "jetson-orin-nano-8gb", "aarch64", VERSION, "36.4")


def test_machines_of_programs(tmp_path):
    assert elf_machine(Path(sys.executable)) == platform.machine()
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert elf_machine(tmp_path / "script") is None
    assert elf_machine(tmp_path / "none") is None


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """An ssh that runs commands here, below a folder, and can be told to fail at one of them."""
    commands, remote = tmp_path / "ssh-commands", tmp_path / "remote"
    commands.mkdir()
    (remote / "var/tmp").mkdir(parents=True)
    (commands / "ssh").write_text(
        f"""#!/bin/sh
for last; do :; done
echo "$last" >>{tmp_path}/sent
if [ -e {tmp_path}/fail ] && echo "$last" | grep -q "$(cat {tmp_path}/fail)"; then
    echo "tvau: error: Connection reset by peer" >&2; exit 255
fi
exec sh -c "$(echo "$last" | sed "s#/var/tmp#{remote}/var/tmp#g; s#sudo ##")"
"""
    )
    (commands / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return remote


def stub_install(folder):
    (folder / "install.sh").write_text(f'#!/bin/sh\necho "$0 $*" >>{folder.parent}/installed\n')
    (folder / "install.sh").chmod(0o755)


def test_a_device_is_installed_over_ssh(make_folder, ssh, tmp_path):
    folder, release = make_folder()
    stub_install(folder)
    send(folder, "user@box", release)
    assert f"tvau-{release.id}/install.sh" in (tmp_path / "installed").read_text()
    assert list((ssh / "var/tmp").iterdir()) == []  # cleared up


@pytest.mark.parametrize(
    ("at", "step"), [("mkdir", "prepare a folder"), ("tar", "copy the folder"), ("install.sh", "install")]
)
def test_ssh_that_fails_half_way_may_be_run_again(make_folder, ssh, tmp_path, at, step):
    folder, release = make_folder()
    stub_install(folder)
    (tmp_path / "fail").write_text(at)
    with pytest.raises(
        FlashError, match=f"user@box: could not {step}: Connection reset by peer.*may be run again"
    ):
        send(folder, "user@box", release)
    assert not (tmp_path / "installed").exists()
    (tmp_path / "fail").unlink()
    send(folder, "user@box", release)
    assert (tmp_path / "installed").exists()


def test_ssh_that_is_not_there(make_folder, monkeypatch, tmp_path):
    folder, release = make_folder()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FlashError, match="ssh is not installed"):
        send(folder, "user@box", release)
    with pytest.raises(FlashError, match="expected user@host"):
        send(folder, "-oProxyCommand=x", release)


def test_targets():
    assert target(profile("jetson-orin-nano-8gb"), None, None)[1] == "3.10"
    assert target(profile("jetson-thor-t5000"), "7.1", None)[1] == "3.12"
    assert target(profile("raspberry-pi-5"), None, None) == (None, "3.11")
    with pytest.raises(FlashError, match=r"JetPack 5\.1 brings Python 3\.8.*3\.10 or newer"):
        target(profile("jetson-xavier-nx"), None, None)
    assert target(profile("jetson-xavier-nx"), None, "3.11")[1] == "3.11"
    with pytest.raises(FlashError, match=r"runs JetPack 6\.2, 7\.2, not 5\.1"):
        target(profile("jetson-orin-nx-8gb"), "5.1", None)
    with pytest.raises(FlashError, match="is no Jetson"):
        target(profile("raspberry-pi-5"), "6.2", None)


def test_the_c_library_is_that_of_the_device_s_system():
    assert c_library(jetpacks()["5.1"], "3.11") == 31  # with a Python that is not the system's
    assert c_library(jetpacks()["7.2"], "3.12") == 39
    assert c_library(None, "3.11") == 36
    assert c_library(None, "3.14") == 31


def test_platforms_begin_with_the_newest_c_library():
    tags = platforms("aarch64", 35)
    assert tags[0] == "manylinux_2_35_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux2014_aarch64"} <= set(tags)
    assert "manylinux_2_39_aarch64" not in tags


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (
            "ERROR: Could not find a version\nERROR: No matching distribution found for llama-cpp-python>=0.3.16",
            r"no wheel of llama-cpp-python>=0\.3\.16 for Python 3\.10 on aarch64.*--wheels",
        ),
        ("ERROR: the index is away", "pip could not collect the wheels: ERROR: the index is away"),
    ],
)
def test_wheels_that_cannot_be_had(monkeypatch, tmp_path, said, error):
    seen = []

    def run(command, **_):
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(wheelhouse.subprocess, "run", run)
    with pytest.raises(FlashError, match=error):
        collect(tmp_path / "out", make_wheel(tmp_path), "aarch64", "3.10", 35, ("llm",), tmp_path)
    assert "--only-binary=:all:" in seen[0]
    assert "tomli>=2" in seen[0]


def test_what_is_no_wheel_of_ours(tmp_path):
    (tmp_path / "other-1.0-py3-none-any.whl").write_text("")
    (tmp_path / "tvau_edge-1.0-py3-none-any.whl").write_text("no zip")
    for name in ("other-1.0-py3-none-any.whl", "tvau_edge-1.0-py3-none-any.whl"):
        with pytest.raises(FlashError, match="is no wheel of tvau-edge"):
            own_wheel(tmp_path, tmp_path / name)
    assert own_wheel(tmp_path, make_wheel(tmp_path / "good", "2.3"))[1] == "2.3"


def test_a_plan_names_each_file():
    assert plan({"b": 2000, "a": 1}, "/opt") == ["           1  /opt/a", "       2,000  /opt/b"]
