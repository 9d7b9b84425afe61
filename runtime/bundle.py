"""The bundle: one writer, one reader. What the writer leaves behind is whole, or it is not there."""

import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tvau_edge.devices.host import disk_free
from tvau_edge.runtime.errors import BundleError, DiskFullError
from tvau_edge.runtime.manifest import SCHEMA, FileEntry, GraphFile, LanguageFile, Manifest
from tvau_edge.runtime.problems import explain

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_FULL = 1 << 20  # bytes: a disk with less room left counts as full
_OLD = ".old"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
_CLASS_FEATURES = "class_features"


def sha256_of(path: Path) -> str:
    """The sha256 of a file's contents, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class Bundle:
    """A bundle on disk whose manifest has been read and whose files have been checked.

    Attributes:
        path: its folder.
        manifest: what it holds.
        sha256: of manifest.json; with the checksums in it, of the whole bundle.
    """

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path, self.manifest, self.sha256 = path, manifest, sha256

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> "Bundle":
        """Read a bundle.

        Args:
            path: its folder.
            verify: check the sha256 of every file, not only its presence and size.

        Raises:
            BundleError: it is no bundle, of another schema, or a file is missing, torn or altered.
        """
        file = path / MANIFEST
        try:
            if not path.is_dir():
                raise BundleError(f"{path}: no such bundle; `tvau export CHECKPOINT --out {path}` makes one")
            raw = file.read_bytes()
        except FileNotFoundError as error:
            raise BundleError(
                f"{path} has no {MANIFEST}: it is no bundle, or its export was interrupted"
            ) from error
        except OSError as error:
            raise _unreadable(file, error) from error
        manifest = _parse(file, raw)
        for name, entry in manifest.files.items():
            _check(path / name, entry, verify)
        return cls(path, manifest, hashlib.sha256(raw).hexdigest())

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    def vision(self, backend: str, precision: str = "auto") -> GraphFile | None:
        """The vision graph for a back end, at a precision or at the first there is; None when there is none."""
        return _graph(self.manifest.vision, backend, precision)

    def rae(self, backend: str) -> GraphFile | None:
        """The RAE graph for a back end, or None."""
        return _graph(self.manifest.rae, backend, "auto")

    def language(self, kind: str | None = None) -> LanguageFile | None:
        """The language model of GGUF type `kind`, or the first; None when the bundle has none.

        Raises:
            BundleError: it has language models, but none of that type.
        """
        files = self.manifest.language.files if self.manifest.language else []
        if kind is None:
            return files[0] if files else None
        for file in files:
            if file.type == kind.lower():
                return file
        there = ", ".join(file.type for file in files) or "none"
        raise BundleError(f"{self.path} has no language model of type {kind}; it has: {there}")

    def class_features(self) -> NDArray[np.float32]:
        """Features of the class prompts [2, D]: row 0 normal, row 1 abnormal.

        Raises:
            BundleError: the file does not hold them.
        """
        path = self.file(self.manifest.class_prompts.file)
        try:
            features = load_file(path)[_CLASS_FEATURES]
        except (SafetensorError, KeyError) as error:
            raise BundleError(f"{path} holds no tensor {_CLASS_FEATURES}: {error}") from error
        if features.ndim != 2 or features.shape[0] != 2:
            raise BundleError(f"{path}: {_CLASS_FEATURES} has shape {list(features.shape)}, expected [2, D]")
        return np.asarray(features, dtype=np.float32)


def _graph(graphs: list[GraphFile], backend: str, precision: str) -> GraphFile | None:
    fitting = [g for g in graphs if g.backend == backend and precision in ("auto", g.precision)]
    return fitting[0] if fitting else None


def _parse(file: Path, raw: bytes) -> Manifest:
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({error}); export the bundle again") from error
    schema = table.get("schema") if isinstance(table, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{file} has schema {schema!r}; this version of tvau-edge reads {SCHEMA!r}: "
            "export the bundle again with it, or install the version that made it"
        )
    try:
        return Manifest.model_validate(table)
    except ValidationError as error:
        problems = "; ".join(explain(error, Manifest))
        raise BundleError(f"{file} is not a valid manifest: {problems}") from error


def _check(path: Path, entry: FileEntry, verify: bool) -> None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            raise BundleError(
                f"{path} has {size} bytes, its manifest says {entry.size}: it is torn; copy or export the bundle again"
            )
        altered = verify and sha256_of(path) != entry.sha256
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing; copy the bundle again, or export it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if altered:
        raise BundleError(
            f"{path} is corrupt or was altered: its sha256 is not the manifest's; copy or export the bundle again"
        )


def _unreadable(path: Path, error: OSError) -> BundleError:
    advice = "; allow this user to read it" if isinstance(error, PermissionError) else ""
    return BundleError(f"{path} cannot be read: {error.strerror or error}{advice}")


class BundleWriter:
    """Writes a bundle beside its place and moves it there when it is whole.

    As a context manager: `finish` puts the bundle into its place; leaving without it, or by an error, removes what
    was written and leaves an older bundle as it was. What a killed writer left behind, the next one removes.

    Args:
        out: folder of the bundle.
        needed: bytes that will be written, as far as is known, checked before anything is.

    Raises:
        DiskFullError: the disk has no room, now or while writing.
        BundleError: `out` is there and is no bundle, or its place cannot be written.
    """

    def __init__(self, out: Path, needed: int = 0) -> None:
        self.out = Path(os.path.abspath(out))
        try:
            self._check_place(needed)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{self._prefix}-", dir=self.out.parent))
            self._lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise _writing(out, error) from error
        with suppress(OSError):  # a file system without locks: nothing is ever taken for left behind there
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def _prefix(self) -> str:
        return f".{self.out.name}.part"

    def _check_place(self, needed: int) -> None:
        out = self.out
        if out.exists() and not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
            raise BundleError(f"{out} is there and is no bundle; choose another --out, or remove it")
        for folder in out.parent.glob(f"{glob.escape(self._prefix)}-*"):
            if folder.suffix == _OLD and not out.exists():
                folder.rename(out)  # its writer was killed between the two renames of `_move`
            elif not _locked(folder):
                shutil.rmtree(folder, ignore_errors=True)
        free = disk_free(out)
        if free < needed:
            raise DiskFullError(
                f"{out}: the bundle needs about {needed >> 20} MiB, the disk has {free >> 20} MiB free; make room "
                "or choose another --out"
            )

    def __enter__(self) -> "BundleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A library that met a full disk seldom says so; the room that is left does.
        full = isinstance(error, Exception) and disk_free(self.folder) < _FULL
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        if full and not isinstance(error, DiskFullError):
            raise _disk_full(self.out) from error
        if isinstance(error, OSError):
            raise _writing(self.out, error) from error

    def path(self, name: str) -> Path:
        """Where to write a file of the bundle."""
        return self.folder / name

    def add_class_features(self, name: str, features: NDArray[np.float32]) -> None:
        """Write the features of the class prompts, [2, D]."""
        save_file({_CLASS_FEATURES: np.ascontiguousarray(features, dtype=np.float32)}, self.path(name))

    def finish(self, describe: Callable[[dict[str, FileEntry]], Manifest]) -> Bundle:
        """Hash what was written, write the manifest last, and move the bundle into its place.

        Args:
            describe: makes the manifest, given the files.
        """
        files = {
            path.name: FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
            for path in sorted(self.folder.iterdir())
        }
        for name in files:
            self.path(name).chmod(0o644)
            _sync(self.path(name))
        text = describe(files).model_dump_json(indent=2) + "\n"
        self.path(MANIFEST).write_text(text)
        _sync(self.path(MANIFEST))
        self.folder.chmod(0o755)  # mkdtemp makes it private; the runtime is often another user
        _sync(self.folder)
        self._move()
        _sync(self.out.parent)
        return Bundle.open(self.out, verify=False)

    def _move(self) -> None:
        """Put the new folder in its place; leaving the context removes the older bundle, now in the new one's."""
        if not self.out.exists():
            self.folder.rename(self.out)
        elif not _exchange(self.folder, self.out):
            old = self.folder.with_name(f"{self.folder.name}{_OLD}")
            self.out.rename(old)
            try:
                self.folder.rename(self.out)
            except OSError:
                old.rename(self.out)
                raise
            old.rename(self.folder)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that a power cut finds either the old bundle or the new; False: not here."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _locked(folder: Path) -> bool:
    """Whether a writer is still at work in `folder`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True  # not ours to remove
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full(out: Path) -> DiskFullError:
    return DiskFullError(
        f"the disk is full: nothing was left in {out}, and a bundle that was there before is whole; make room "
        "or choose another --out"
    )


def _writing(out: Path, error: OSError) -> DiskFullError | BundleError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(out)
    place = f" ({error.filename})" if error.filename else ""
    return BundleError(f"cannot write {out}: {error.strerror or error}{place}")


def same_inputs(path: Path, provenance: dict[str, Any]) -> Bundle | None:
    """The intact bundle at `path` if its provenance has these values, else None."""
    try:
        bundle = Bundle.open(path)
    except BundleError:
        return None
    there = bundle.manifest.provenance.model_dump()
    return bundle if all(there.get(key) == value for key, value in provenance.items()) else None
