"""install.sh, run here with systemd, users and pip replaced."""

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

MACHINE = platform.machine()
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def change_release(folder, **facts):
    """Write other facts into a folder's release.env."""
    text = (folder / "release.env").read_text()
    for key, value in facts.items():
        text, changed = re.subn(f"^{key}=.*$", f"{key}={value}", text, flags=re.MULTILINE)
        assert changed == 1
    (folder / "release.env").write_text(text)
    sums = (folder / "SHA256SUMS").read_text().splitlines(True)
    (folder / "SHA256SUMS").write_text("".join(line for line in sums if "release.env" not in line))


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


def test_installing_an_update_again_keeps_the_one_before(make_folder, machine):
    old, first = make_folder()
    new, second = make_folder(version="0.2.0", name="new")
    for folder in (old, new, new):
        machine.install(folder)
    assert {path.name for path in (machine.root / "opt/tvau/releases").iterdir()} == {first.id, second.id}
    (machine.root / "opt/tvau/current/bundle/sick").touch()  # which goes back still
    assert f"{first.id} runs again" in machine.install(new, ok=False)


def test_installing_again_needs_no_room(make_folder, machine):
    folder, _ = make_folder()
    machine.install(folder)
    change_release(folder, KILOBYTES=1 << 50)
    assert "is there already" in machine.install(folder)


def test_the_service_may_read_what_was_installed_and_no_one_else_the_configuration(make_folder, machine):
    folder, _ = make_folder()  # under root's umask 077
    machine.install(folder)
    modes = [path.stat().st_mode & 0o7777 for path in (machine.root / "opt").rglob("*") if path.is_dir()]
    assert set(modes) == {0o755}
    assert (machine.root / "etc/tvau/site.toml").stat().st_mode & 0o777 == 0o640
    assert any(call.startswith("chgrp tvau") and "site.toml" in call for call in machine.calls())


def test_a_mode_that_was_set_by_hand_stays(make_folder, machine):
    folder, _ = make_folder()
    machine.install(folder)
    (machine.root / "etc/tvau/site.toml").chmod(0o600)
    machine.install(folder)
    assert (machine.root / "etc/tvau/site.toml").stat().st_mode & 0o777 == 0o600


def test_an_extra_that_does_not_load(make_folder, machine, tmp_path):
    """As llama.cpp on a small Debian, whose wheel needs a library of the system."""
    folder, release = make_folder(extras=("llm",))
    reason = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "no-gomp").write_text(f"Traceback\nRuntimeError: {reason}\n")
    said = machine.install(folder, ok=False)
    assert f"llama_cpp does not load (RuntimeError: {reason}): apt install libgomp1" in said
    assert not (machine.root / "opt/tvau/current").exists()
    (tmp_path / "no-gomp").unlink()
    machine.install(folder)
    assert machine.current == f"releases/{release.id}"


def test_one_installs_at_a_time(make_folder, machine, tmp_path):
    folder, release = make_folder()
    (machine.commands / "useradd").write_text(f"#!/bin/sh\ntouch {tmp_path}/user\nexec sleep 600\n")
    first = machine.start(folder)
    while not (tmp_path / "user").exists():
        time.sleep(0.05)
    first.kill()  # what it started lives on
    first.wait()
    assert "another install.sh runs" in machine.install(folder, ok=False, TVAU_LOCK_SECONDS="0")
    os.killpg(first.pid, signal.SIGKILL)
    assert f"{release.id} runs" in machine.install(folder)


def test_it_goes_on_when_nobody_listens_any_more(make_folder, machine):
    """As when ssh breaks: a release that is half switched to would be looked after by nobody."""
    folder, release = make_folder()
    process = machine.start(folder)
    process.stdout.close()
    assert process.wait() == 0
    assert (machine.root / f"opt/tvau/releases/{release.id}/.good").exists()


def test_an_update_that_was_cut_off_goes_back_as_well(make_folder, machine, tmp_path):
    """Killed when the new release is in place and not yet known to be healthy."""
    good, first = make_folder()
    machine.install(good)
    bad, second = make_folder(version="0.2.0", name="bad")
    wait = machine.commands / "sleep"
    wait.write_text(f"#!/bin/sh\ntouch {tmp_path}/looks\nexec /bin/sleep 600\n")
    wait.chmod(0o755)
    process = machine.start(bad)
    while not (tmp_path / "looks").exists():
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait.unlink()
    assert machine.current == f"releases/{second.id}"
    (machine.root / "opt/tvau/current/bundle/sick").touch()
    newer, third = make_folder(version="0.3.0", name="newer")
    (newer / "bundle/sick").touch()
    for folder, release in ((bad, second), (newer, third)):
        assert f"{release.id} was not healthy within 12 s: {first.id} runs again" in machine.install(
            folder, ok=False
        )
        assert machine.current == f"releases/{first.id}"


def test_what_was_taken_back_makes_room_for_the_next(make_folder, machine):
    good, first = make_folder()
    machine.install(good)
    bad, _ = make_folder(version="0.2.0", name="bad")
    (bad / "bundle/sick").touch()
    machine.install(bad, ok=False)
    newer, _ = make_folder(version="0.3.0", name="newer")
    change_release(newer, KILOBYTES=1 << 50)
    machine.install(newer, ok=False)
    assert [path.name for path in (machine.root / "opt/tvau/releases").iterdir()] == [first.id]


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
    assert "systemctl stop systemd-journald@tvau.service" in machine.calls()
    log = machine.root / "var/log/journal/0123.tvau"
    log.mkdir(parents=True)
    machine.install(folder, "--remove", "--purge")
    assert not (machine.root / "etc/tvau").exists()
    assert not (machine.root / "var/lib/tvau").exists()
    assert not log.exists()


def test_it_is_removed_without_the_folder(make_folder, machine):
    """Which is gone where it came over ssh or with the root file system."""
    folder, _ = make_folder()
    machine.install(folder)
    shutil.rmtree(folder)
    machine.install(machine.root / "opt/tvau/current", "--remove")
    assert not (machine.root / "opt/tvau").exists()


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
    change_release(folder, PYTHON="3.99")
    assert "python3.99 is not installed: apt install python3.99" in machine.install(folder, ok=False)


def test_a_disk_without_room(make_folder, machine):
    folder, _ = make_folder()
    change_release(folder, KILOBYTES=1 << 50)
    assert "MiB are needed; nothing was changed" in machine.install(folder, ok=False)
    assert not list(machine.root.iterdir())


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
