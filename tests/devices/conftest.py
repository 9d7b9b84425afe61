"""Trees of files as devices have them, from trees.toml."""

import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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
