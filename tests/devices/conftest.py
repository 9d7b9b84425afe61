"""Trees of files as devices have them, from trees.toml; folders to flash, and a machine to install them on."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from release_folders import make_wheel

from tvau_edge.devices.flashing import write_folder
from tvau_edge.devices.profile import jetpacks, profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MACHINE = platform.machine()
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="session")
def trees() -> dict[str, dict[str, Any]]:
    """What each device's tree holds, by the name of its profile."""
    return tomllib.loads(Path(__file__).with_name("trees.toml").read_text(encoding="utf-8"))


@pytest.fixture
def tree(tmp_path, trees):
    """Makes the tree of a device in a folder, with other contents for some files (None: without the file)."""

    def make(name: str, changes: dict[str, str | None] | None = None) -> Path:
        facts = trees[name]
        wanted = {key: value for key, value in facts.items() if "/" in key}
        wanted["proc/cpuinfo"] = wanted["proc/cpuinfo"] * facts["cores"]
        for file, text in {**wanted, **(changes or {})}.items():
            if text is not None:
                path = tmp_path / "root" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())
        return tmp_path / "root"

    return make


@pytest.fixture
def make_folder(tmp_path):
    """Writes a folder for a device; this machine's own by default."""

    def make(device="x86-avx2", version="0.1.0", name="folder", jetpack=None, machine=MACHINE, extras=()):
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
            extras=extras,
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
        "chgrp": f'echo "chgrp $*" >>{log}',
        "usermod": f'echo "usermod $*" >>{log}',
        "id": f'case "$1" in -u) echo 0 ;; *) [ -e {tmp_path}/user ] ;; esac',
        # Makes an environment at once; one test installs with the real one.
        f"python{VERSION}": f"""case "$1" in
    -c) exit 0 ;;
    -m) for last; do :; done; mkdir -p "$last/bin"
        cp {tmp_path}/venv-python "$last/bin/python"
        printf '#!/bin/sh\\necho help\\n' >"$last/bin/tvau"
        chmod +x "$last/bin/python" "$last/bin/tvau" ;;
esac""",
    }
    (tmp_path / "venv-python").write_text(
        f"""#!/bin/sh
case "$*" in
    "-c import tvau_edge.runtime, llama_cpp")
        [ ! -e {tmp_path}/no-gomp ] || {{ cat {tmp_path}/no-gomp >&2; exit 1; }} ;;
    *) [ ! -e {tmp_path}/no-pip ] ;;
esac
"""
    )
    for name, text in scripts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)

    class Machine:
        def __init__(self):
            self.root, self.log, self.commands = root, log, commands

        def start(self, folder, *arguments, **variables):
            environment = {
                **os.environ,
                "PATH": f"{commands}:/usr/sbin:/usr/bin:/sbin:/bin",
                "TVAU_ROOT": str(root),
                "TVAU_HEALTH_SECONDS": "12",
                "TVAU_LOOK_SECONDS": "0",
                **variables,
            }
            script = [str(folder / "install.sh"), *arguments]
            return subprocess.Popen(
                script,
                env=environment,
                umask=0o077,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

        def install(self, folder, *arguments, ok=True, **variables):
            process = self.start(folder, *arguments, **variables)
            said, _ = process.communicate()
            assert (process.returncode == 0) == ok, said
            return said

        @property
        def current(self):
            return os.readlink(root / "opt/tvau/current")

        def calls(self):
            return log.read_text().splitlines() if log.exists() else []

    return Machine()
