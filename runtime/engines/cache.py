"""The engine cache: what TensorRT built from an ONNX graph, for one version of it and one GPU.

An engine runs only on the GPU and with the version that built it. Beside each lies a JSON file that says what it is
for and what its sha256 is, written last: an engine without one was never finished.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tvau_edge.runtime.bundle import MANIFEST, sha256_of
from tvau_edge.runtime.errors import BackendError

SCHEMA = "tvau.engine/1"
_FOLDER = "TVAU_ENGINES"  # environment variable


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine was built from, with and for.

    Attributes:
        tensorrt: version.
        gpu: as `Cuda.gpu` says.
        onnx: sha256 of the graph with its weights.
    """

    tensorrt: str
    gpu: str
    onnx: str

    @property
    def name(self) -> str:
        """Name of the files, without their ending."""
        return f"{self.onnx[:16]}-{self.gpu}-trt{self.tensorrt}"


def default_folder() -> Path:
    """Where engines lie: $TVAU_ENGINES, or the user's cache."""
    if folder := os.environ.get(_FOLDER):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvau" / "engines"


def graph_digest(onnx: Path) -> str:
    """The sha256 of a graph and of the weights beside it, from the bundle's manifest, or else from the files.

    A manifest's checksums were compared with the files when the bundle was opened.

    Raises:
        BackendError: the graph cannot be read.
    """
    names = [onnx.name, f"{onnx.name}.data"]
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        table = json.loads((onnx.parent / MANIFEST).read_bytes())["files"]
        known = {name: str(table[name]["sha256"]) for name in names if name in table}
    if names[0] not in known:
        try:
            known = {name: sha256_of(onnx.with_name(name)) for name in names if onnx.with_name(name).exists()}
        except OSError as error:
            raise BackendError(f"{onnx} cannot be read: {error.strerror or error}") from error
    if names[0] not in known:
        raise BackendError(f"{onnx}: no such graph")
    return hashlib.sha256("".join(known[name] for name in names if name in known).encode()).hexdigest()


class EngineCache:
    """A folder of engines.

    Args:
        folder: made when something is first written to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def engine(self, key: EngineKey) -> Path:
        """Where the engine for `key` lies, or would."""
        return self.folder / f"{key.name}.engine"

    def load(self, key: EngineKey, onnx: Path) -> bytes:
        """Read an engine.

        Args:
            key: of the engine.
            onnx: the graph, for messages.

        Raises:
            BackendError: there is none, only ones for other versions or GPUs, or it is damaged; says what to do.
        """
        build = f"`tvau engines build {onnx.parent}` builds it"
        try:
            facts = json.loads(self._facts(key).read_bytes())
            engine = self.engine(key).read_bytes()
        except FileNotFoundError as error:
            raise BackendError(f"{self._missing(key, onnx)}; {build}") from error
        except (OSError, ValueError) as error:
            raise BackendError(f"{self.engine(key)} cannot be read ({error}); {build} again") from error
        same = isinstance(facts, dict) and facts.get("key") == asdict(key)
        if not same or hashlib.sha256(engine).hexdigest() != facts.get("sha256"):
            raise BackendError(f"{self.engine(key)} is damaged, or not what its name says; {build} again")
        return engine

    def has(self, key: EngineKey) -> bool:
        """Whether an engine for `key` is there, whole."""
        try:
            self.load(key, Path())
        except BackendError:
            return False
        return True

    def store(self, key: EngineKey, engine: bytes, facts: dict[str, object]) -> Path:
        """Write an engine, then what it is; `facts` are kept beside it for people.

        Raises:
            BackendError: the folder cannot be written.
        """
        description = {
            "schema": SCHEMA,
            "key": asdict(key),
            "sha256": hashlib.sha256(engine).hexdigest(),
            "bytes": len(engine),
            **facts,
        }
        try:
            self._facts(key).unlink(missing_ok=True)
            self._write(self.engine(key), engine)
            self._write(self._facts(key), (json.dumps(description, indent=2) + "\n").encode())
        except OSError as error:
            raise BackendError(
                f"cannot write {self.folder}: {error.strerror or error}; make room, or name another folder with "
                f"--cache or {_FOLDER}"
            ) from error
        return self.engine(key)

    def timings(self, key: EngineKey) -> bytes:
        """TensorRT's timing cache for a version and GPU, empty when there is none."""
        try:
            return self._timings(key).read_bytes()
        except OSError:
            return b""

    def store_timings(self, key: EngineKey, timings: bytes) -> None:
        """Keep a timing cache; without it the next build only takes longer, so an error is no matter."""
        with suppress(OSError):
            self._write(self._timings(key), timings)

    def _facts(self, key: EngineKey) -> Path:
        return self.folder / f"{key.name}.json"

    def _timings(self, key: EngineKey) -> Path:
        return self.folder / f"timings-{key.gpu}-trt{key.tensorrt}.cache"

    def _missing(self, key: EngineKey, onnx: Path) -> str:
        others = sorted(self.folder.glob(f"{key.onnx[:16]}-*.engine"))
        if not others:
            return f"no engine for {onnx} in {self.folder}"
        there = ", ".join(other.stem.partition("-")[2] for other in others)
        return (
            f"the engine for {onnx} in {self.folder} is of another TensorRT or GPU ({there}); "
            f"this is {key.gpu}-trt{key.tensorrt}"
        )

    def _write(self, path: Path, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".part-", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except OSError:
            with suppress(OSError):
                os.unlink(name)
            raise
