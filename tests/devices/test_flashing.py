"""The folder that is carried to a device, and its install.sh, which runs here with systemd, users and pip replaced."""

import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tvau_edge.devices import flashing, wheelhouse
from tvau_edge.devices.flashing import (
    FlashError,
    check_rootfs,
    elf_machine,
    plan,
    put_into_rootfs,
    send,
    target,
    write_folder,
)
from tvau_edge.devices.profile import jetpacks, profile
from tvau_edge.devices.wheelhouse import collect, own_wheel, platforms

MACHINE = platform.machine()
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_wheel(folder, version="0.1.0", body="def main():\n    print('tvau')\n"):
    """A wheel of the name tvau-edge whose command only speaks."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"tvau_edge-{version}.dist-info"
    files = {
        "tvau_edge/__init__.py": body,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tvau-edge\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntvau = tvau_edge:main\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = folder / f"tvau_edge-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


@pytest.fixture
def make_folder(tmp_path):
    """Writes a folder for a device; this machine's own by default."""

    def make(device="x86-avx2", version="0.1.0", name="folder", jetpack=None, machine=MACHINE):
        chosen = profile(device).model_copy(update={"machine": machine})
        if device == "x86-avx2":
            prefer = chosen.prefer.model_copy(update={"vision": "onnxruntime"})
            chosen = chosen.model_copy(update={"prefer": prefer})
        bundle = tmp_path / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "manifest.json").write_text(f'{{"version": "{version}"}}')
        make_wheel(tmp_path / "wheels", version)
        release = write_folder(
            tmp_path / name,
            chosen,
            jetpacks()[jetpack] if jetpack else None,
            VERSION,
            version=version,
            bundle=bundle,
            config='device = "box"\n',
            wheels=tmp_path / "wheels",
            extras=(),
        )
        return tmp_path / name, release

    return make


@pytest.fixture
def machine(tmp_path):
    """A root to install into, and commands that only note that they were called."""
    commands, root = tmp_path / "commands", tmp_path / "root"
    commands.mkdir()
    root.mkdir()
    log = tmp_path / "calls"
    scripts = {
        # tests/devices knows the machine as healthy or not by the release that runs.
        "systemctl": f"""echo "systemctl $*" >>{log}
case "$1" in
    is-active) [ ! -e {root}/opt/tvau/current/bundle/sick ] ;;
    show) echo 0 ;;
esac""",
        "useradd": f'echo "useradd $*" >>{log}; touch {tmp_path}/user',
        "userdel": f'echo "userdel $*" >>{log}',
        "usermod": f'echo "usermod $*" >>{log}',
        "id": f'case "$1" in -u) echo 0 ;; *) [ -e {tmp_path}/user ] ;; esac',
        # Makes an environment at once; one test installs with the real one.
        f"python{VERSION}": f"""case "$1" in
    -c) exit 0 ;;
    -m) for last; do :; done; mkdir -p "$last/bin"
        printf '#!/bin/sh\\n[ ! -e {tmp_path}/no-pip ]\\n' >"$last/bin/python"
        printf '#!/bin/sh\\necho help\\n' >"$last/bin/tvau"
        chmod +x "$last/bin/python" "$last/bin/tvau" ;;
esac""",
    }
    for name, text in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)

    class Machine:
        def __init__(self):
            self.root, self.log, self.commands = root, log, commands

        def install(self, folder, *arguments, ok=True):
            environment = {
                **os.environ,
                "PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin",
                "TVAU_ROOT": str(root),
                "TVAU_HEALTH_SECONDS": "12",
                "TVAU_LOOK_SECONDS": "0",
            }
            script = [str(folder / "install.sh"), *arguments]
            done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
            assert (done.returncode == 0) == ok, done.stdout + done.stderr
            return done.stdout + done.stderr

        @property
        def current(self):
            return os.readlink(root / "opt/tvau/current")

        def calls(self):
            return log.read_text().splitlines() if log.exists() else []

    return Machine()


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


def test_it_installs_and_starts(make_folder, machine):
    folder, release = make_folder()
    said = machine.install(folder)
    assert f"{release.id} runs" in said
    assert machine.current == f"releases/{release.id}"
    assert (machine.root / "etc/tvau/site.toml").read_text() == 'device = "box"\n'
    assert (machine.root / "etc/systemd/journald@tvau.conf").exists()
    calls = machine.calls()
    assert any(call.startswith("useradd --system") for call in calls)
    assert "systemctl enable tvau.service" in calls
    assert "systemctl restart tvau.service" in calls
    assert not any("engines" in call for call in calls)


def test_installing_again_changes_nothing(make_folder, machine):
    folder, release = make_folder()
    machine.install(folder)
    stamp = (machine.root / f"opt/tvau/releases/{release.id}/.complete").stat().st_mtime_ns
    assert "is there already" in machine.install(folder)
    assert (machine.root / f"opt/tvau/releases/{release.id}/.complete").stat().st_mtime_ns == stamp
    assert sum(call.startswith("useradd") for call in machine.calls()) == 1


def test_a_configuration_that_is_there_is_kept(make_folder, machine):
    folder, _ = make_folder()
    (machine.root / "etc/tvau").mkdir(parents=True)
    (machine.root / "etc/tvau/site.toml").write_text('device = "mine"\n')
    assert "was kept" in machine.install(folder)
    assert (machine.root / "etc/tvau/site.toml").read_text() == 'device = "mine"\n'
    assert (machine.root / "etc/tvau/site.toml.new").read_text() == 'device = "box"\n'


def test_what_was_cut_off_is_done_anew(make_folder, machine, tmp_path):
    folder, release = make_folder()
    (tmp_path / "no-pip").touch()
    assert "the wheels do not install" in machine.install(folder, ok=False)
    assert not (machine.root / "opt/tvau/current").exists()
    assert machine.calls() == []
    (tmp_path / "no-pip").unlink()
    machine.install(folder)
    assert machine.current == f"releases/{release.id}"


def test_an_update_keeps_the_one_before_and_drops_older_ones(make_folder, machine):
    ids = []
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        folder, release = make_folder(version=version, name=version)
        machine.install(folder)
        ids.append(release.id)
    assert machine.current == f"releases/{ids[2]}"
    assert {path.name for path in (machine.root / "opt/tvau/releases").iterdir()} == set(ids[1:])


def test_an_update_that_is_not_healthy_is_taken_back(make_folder, machine):
    good, first = make_folder()
    machine.install(good)
    unit = machine.root / "etc/systemd/system/tvau.service"
    before = unit.read_text()
    bad, second = make_folder(version="0.2.0", name="bad")
    (bad / "bundle/sick").touch()
    (bad / "units/tvau.service").write_text("[Service]\nExecStart=/bin/false\n")
    sums = (bad / "SHA256SUMS").read_text()
    (bad / "SHA256SUMS").write_text(
        "".join(line for line in sums.splitlines(True) if "units/tvau" not in line)
    )
    said = machine.install(bad, ok=False)
    assert f"{second.id} was not healthy within 12 s: {first.id} runs again" in said
    assert machine.current == f"releases/{first.id}"
    assert unit.read_text() == before
    assert machine.calls()[-1] == "systemctl restart tvau.service"


def test_a_first_release_that_is_not_healthy_says_so(make_folder, machine):
    folder, release = make_folder()
    (folder / "bundle/sick").touch()
    assert f"{release.id} is installed, but was not healthy" in machine.install(folder, ok=False)


def test_removal_keeps_configuration_and_verdicts_unless_purged(make_folder, machine):
    folder, _ = make_folder()
    machine.install(folder)
    (machine.root / "var/lib/tvau").mkdir(parents=True)
    machine.install(folder, "--remove")
    left = {str(p.relative_to(machine.root)) for p in machine.root.rglob("*") if p.is_file()}
    assert left == {"etc/tvau/site.toml"}
    assert (machine.root / "var/lib/tvau").is_dir()
    machine.install(folder, "--remove", "--purge")
    assert not (machine.root / "etc/tvau").exists()
    assert not (machine.root / "var/lib/tvau").exists()


def test_a_folder_that_was_not_copied_whole(make_folder, machine):
    folder, _ = make_folder()
    (folder / "bundle/manifest.json").write_text("{}")
    assert "is damaged, or was not copied whole" in machine.install(folder, ok=False)
    (folder / "release.env").unlink()
    assert "release.env is missing" in machine.install(folder, ok=False)
    assert machine.calls() == []
    assert not list(machine.root.iterdir())


def test_another_machine(make_folder, machine):
    folder, _ = make_folder(machine="aarch64" if platform.machine() != "aarch64" else "x86_64")
    assert "this folder is for" in machine.install(folder, ok=False)


@pytest.fixture
def jetson(machine):
    """The machine as an Orin Nano with JetPack 6.2."""
    tree = machine.root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    (machine.root / "etc").mkdir()
    (machine.root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    return machine


def test_a_jetson_builds_its_engines_first(make_folder, jetson):
    folder, _ = make_folder("jetson-orin-nano-8gb", jetpack="6.2")
    jetson.install(folder)
    calls = [call for call in jetson.calls() if "restart" in call]
    assert calls == ["systemctl restart tvau-engines.service", "systemctl restart tvau.service"]


def test_a_folder_for_another_jetson(make_folder, jetson):
    folder, _ = make_folder("jetson-agx-orin-64gb", jetpack="6.2")
    assert "this folder is for jetson-agx-orin-64gb, the device tree says" in jetson.install(folder, ok=False)
    jetson.install(folder, "--any-device")


def test_a_folder_for_another_jetpack(make_folder, jetson):
    folder, _ = make_folder("jetson-orin-nano-8gb", jetpack="7.2")
    assert "is for Jetson Linux 39.2, this is '36.4.3'" in jetson.install(folder, ok=False)


def test_a_python_that_is_not_there(make_folder, machine):
    folder, _ = make_folder()
    (machine.commands / f"python{VERSION}").unlink()
    text = (folder / "release.env").read_text().replace(f"PYTHON={VERSION}", "PYTHON=3.99")
    (folder / "release.env").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines(True)
    (folder / "SHA256SUMS").write_text("".join(line for line in sums if "release.env" not in line))
    assert "python3.99 is not installed: apt install python3.99" in machine.install(folder, ok=False)


def test_a_disk_without_room(make_folder, machine):
    folder, _ = make_folder()
    text = re.sub(r"KILOBYTES=\d+", f"KILOBYTES={1 << 50}", (folder / "release.env").read_text())
    (folder / "release.env").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines(True)
    (folder / "SHA256SUMS").write_text("".join(line for line in sums if "release.env" not in line))
    assert "MiB are needed" in machine.install(folder, ok=False)


def test_it_installs_with_a_real_environment(make_folder, machine):
    """Pip installs the wheel without an index, and the command starts from where the unit expects it."""
    (machine.commands / f"python{VERSION}").unlink()
    (machine.commands / f"python{VERSION}").symlink_to(shutil.which(f"python{VERSION}") or sys.executable)
    folder, _ = make_folder()
    machine.install(folder, "--no-start")
    command = machine.root / "opt/tvau/current/venv/bin/tvau"
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([command], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout == "tvau\n"


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
    ],
)
def test_a_root_file_system_of_another_kind(orin, rootfs, change, said):
    if change == "none":
        (rootfs / "etc/os-release").unlink()
    elif change == "machine":
        (rootfs / "usr/bin/env").write_bytes(b"\x7fELF" + bytes(14) + b"\x3e\x00" + bytes(20))
    elif change == "release":
        (rootfs / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 5.0, GCID: 1\n")
    else:
        (rootfs / "etc/nv_tegra_release").unlink()
    with pytest.raises(FlashError, match=said):
        check_rootfs(rootfs, orin[1])


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


def test_platforms_begin_with_the_newest_c_library():
    tags = platforms("aarch64", "3.10")
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
        collect(tmp_path / "out", make_wheel(tmp_path), "aarch64", "3.10", ("llm",), tmp_path)
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
