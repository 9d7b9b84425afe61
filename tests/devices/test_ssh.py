"""`tvau flash --target` against a real sshd on loopback: its own port, its own keys, nothing of the user's read."""

import getpass
import os
import shutil
import socket
import subprocess
import time

import pytest

from tvau_edge.devices.flashing import FlashError, send

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None,
    reason="sshd or ssh is not installed: apt install openssh-server",
)


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """A host that `ssh box` reaches; its sudo notes the command and runs it. Returns how to stop it."""
    home = tmp_path / "ssh"
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    shutil.copy(home / "user.pub", home / "authorized_keys")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    commands = tmp_path / "sudo-commands"
    commands.mkdir()
    (commands / "sudo").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/sudo\nexec "$@"\n')
    (commands / "sudo").chmod(0o755)
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized_keys\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv PATH={commands}:/usr/bin:/bin\n"
    )
    key = (home / "host.pub").read_text()
    (home / "known").write_text(f"[127.0.0.1]:{port} {key}")
    (home / "config").write_text(
        f"Host box\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {home}/user\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {home}/known\n StrictHostKeyChecking yes\n"
    )
    # ssh takes the home of the password file, not HOME: the configuration is named to it.
    wrapped = tmp_path / "ssh-command"
    wrapped.mkdir()
    (wrapped / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/config "$@"\n')
    (wrapped / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapped}:{os.environ['PATH']}")
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where sshd of root gives up its rights
    with (home / "log").open("w") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", home / "sshd_config"], stderr=log)
    for _ in range(600):
        with socket.socket() as tried:
            if process.poll() is not None or tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    assert process.poll() is None, (home / "log").read_text()
    yield process
    process.terminate()
    process.wait()


def test_a_device_is_installed_over_a_real_ssh_twice(make_folder, sshd, tmp_path):
    folder, release = make_folder()
    # What arrived is checked where it lies on the device, and noted.
    script = (
        f'#!/bin/sh\ncd "$(dirname "$0")" && sha256sum --check --quiet sums && pwd >>{tmp_path}/installed\n'
    )
    (folder / "install.sh").write_text(script)
    (folder / "install.sh").chmod(0o755)
    sums = (folder / "SHA256SUMS").read_text().splitlines(True)
    (folder / "sums").write_text("".join(line for line in sums if not line.rstrip().endswith("install.sh")))
    place = f"/var/tmp/tvau-{release.id}"
    for _ in range(2):
        send(folder, "box", release)
    assert (tmp_path / "installed").read_text() == f"{place}\n{place}\n"
    assert (tmp_path / "sudo").read_text() == f"{place}/install.sh\n{place}/install.sh\n"
    assert not os.path.exists(place)
    assert not os.path.exists(f"{place}.part")


def test_an_installation_that_fails_there_and_a_host_that_is_away(make_folder, sshd, tmp_path):
    folder, release = make_folder()
    (folder / "install.sh").write_text('#!/bin/sh\necho "tvau: error: no room" >&2\nexit 1\n')
    (folder / "install.sh").chmod(0o755)
    with pytest.raises(FlashError, match=r"box: could not install: no room.*may be run again"):
        send(folder, "box", release)
    shutil.rmtree(f"/var/tmp/tvau-{release.id}")
    sshd.terminate()
    sshd.wait()
    with pytest.raises(FlashError, match=r"box: could not prepare a folder: .*Connection refused"):
        send(folder, "box", release)
