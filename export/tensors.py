"""Safetensors files that are read, and written, one tensor at a time."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tvau_edge.export.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # what weights may be stored as
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, as the header of its file says."""

    file: Path
    name: str  # in that file
    dtype: str  # "F32", "F16" or "BF16"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in its file."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


class TensorFiles:
    """The tensors of one or more safetensors files, by name. Opening reads the headers only.

    A tensor's memory is its own: it goes when the tensor goes, since no file is kept open or mapped.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = dict(stored)

    @classmethod
    def open(cls, *files: Path) -> "TensorFiles":
        """Read the headers of `files`.

        Raises:
            CheckpointError: a file is missing, truncated or not safetensors, or holds what are no weights.
        """
        stored: dict[str, Stored] = {}
        for file in files:
            for name, entry in header(file).items():
                if name in stored:
                    raise CheckpointError(f"{file}: tensor '{name}' stands in {stored[name].file.name} too")
                stored[name] = entry
        return cls(stored)

    @classmethod
    def open_model(cls, folder: Path) -> "TensorFiles":
        """Open `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

        Raises:
            CheckpointError: neither is there, a shard is missing, or index and shards disagree.
        """
        index = folder / "model.safetensors.index.json"
        if not index.is_file():
            return cls.open(folder / "model.safetensors")
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise CheckpointError(
                f"{index}: no 'weight_map' of tensor names to file names; save the model again"
            )
        shards = sorted(set(places.values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                wanted = sum(file == shard for file in places.values())
                raise CheckpointError(
                    f"{index}: shard '{shard}' ({wanted} tensors) is not in {folder}; fetch it again"
                )
        files = cls.open(*(folder / shard for shard in shards))
        for name, shard in places.items():
            if name not in files.stored:
                raise CheckpointError(
                    f"{folder / shard}: tensor '{name}' is listed in {index.name} but not there"
                )
        return files

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in the dtype that it is stored in."""
        return self._read(name, None)

    def rows(self, name: str, indices: Sequence[int]) -> Tensor:
        """Read only these rows of a matrix [R, C] -> [len(indices), C]."""
        return self._read(name, indices)

    def _read(self, name: str, indices: Sequence[int] | None) -> Tensor:
        file = self.stored[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                if indices is None:
                    return opened.get_tensor(self.stored[name].name)
                rows = opened.get_slice(self.stored[name].name)
                return torch.cat([rows[index : index + 1] for index in indices])
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: tensor '{name}' cannot be read: {error}") from error


def header(file: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file; raises CheckpointError when it is not a whole one."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; a checkpoint needs it")
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            stored = {n: Stored(file, n, s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except (OSError, SafetensorError) as error:
        size = file.stat().st_size
        raise CheckpointError(
            f"{file}: not a whole safetensors file ({size} bytes; {error}); copy or fetch it again"
        ) from error
    for name, entry in stored.items():
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor '{name}' is {entry.dtype}; weights must be one of {', '.join(DTYPES)}"
            )
    return stored


def read_json(file: Path) -> dict[str, object]:
    """Read a JSON file that holds one object.

    Raises:
        CheckpointError: it is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: no such file; a checkpoint needs it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file}: line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds {type(values).__name__}, not an object {{…}}")
    return values


class TensorWriter:
    """Writes one safetensors file tensor by tensor, so that only one is in memory.

    Args:
        file: where to; replaced when it exists.
        plan: name -> (dtype, shape), in the order in which the tensors will be written.

    Example:
        with TensorWriter(file, {"a": (torch.float32, (2, 3))}) as writer:
            writer.write("a", torch.zeros(2, 3))
    """

    def __init__(self, file: Path, plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self._waiting = list(plan.items())
        table: dict[str, object] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name, (dtype, shape) in plan.items():
            end = start + torch.Size(shape).numel() * dtype.itemsize
            table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
            start = end
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        self._file = file.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def __enter__(self) -> "TensorWriter":
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of the plan; raises ValueError when it is not the next one."""
        expected, (dtype, shape) = self._waiting.pop(0)
        if (name, tensor.dtype, tuple(tensor.shape)) != (expected, dtype, tuple(shape)):
            raise ValueError(f"expected {expected} {dtype} {shape}, not {name} {tensor.dtype} {tensor.shape}")
        self._file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._waiting:
            raise ValueError(f"{len(self._waiting)} tensors of the plan were not written")
