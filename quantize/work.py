"""What a quantization has done so far, in a folder beside the new bundle: killed, it goes on from there."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvau_edge.quantize.errors import QuantizeError

_STATE = "steps.json"


class Work:
    """Finished steps of one quantization, each with its files and its record.

    Args:
        out: folder of the bundle to be.
        facts: everything that the steps' results follow from; what others left behind is removed.

    Raises:
        QuantizeError: another process is at work on the same bundle, or the folder cannot be written.
    """

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        out = Path(os.path.abspath(out))
        self.folder = out.with_name(f".{out.name}.quantize")
        key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise QuantizeError(f"cannot write {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise QuantizeError(f"another `tvau quantize` is at work on {out}; wait for it") from error
        self._steps: dict[str, Any] = {}
        state = self._read()
        if state.get("key") == key:
            self._steps = state["steps"]
        else:
            self._clear()
        self._key = key
        self.resumed = sorted(self._steps)

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads((self.folder / _STATE).read_text())
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) and isinstance(state.get("steps"), dict) else {}

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def path(self, name: str) -> Path:
        """Where a step writes a file."""
        return self.folder / name

    def step(self, name: str, files: Sequence[str], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a step, unless it was done before; returns its record.

        Args:
            name: of the step.
            files: that it writes; files that begin with one of these names and a dot belong to it as well.
            make: does it.
        """
        done = self._steps.get(name)
        if done is not None and all(self._whole(file, size) for file, size in done["files"].items()):
            return dict(done["record"])
        record = make()
        written = [p for p in self.folder.iterdir() if any(_belongs(p.name, file) for file in files)]
        sizes = {path.name: path.stat().st_size for path in written}
        self._steps[name] = {"files": sizes, "record": record}
        partial = self.path(f"{_STATE}.part")
        partial.write_text(json.dumps({"key": self._key, "steps": self._steps}, indent=1))
        partial.replace(self.path(_STATE))
        return json.loads(json.dumps(record))

    def files(self, name: str) -> list[str]:
        """The files of a finished step."""
        return list(self._steps[name]["files"])

    def _whole(self, name: str, size: int) -> bool:
        try:
            return self.path(name).stat().st_size == size
        except OSError:
            return False

    def close(self, *, remove: bool) -> None:
        """Let go of the folder; `remove` it when its bundle is in place."""
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _belongs(name: str, file: str) -> bool:
    return name == file or name.startswith(f"{file}.")
