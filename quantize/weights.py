"""Weights of ONNX graphs, read and written one at a time: a 7B tower is 2.6 GB, and is not held twice."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import set_external_data, uses_external_data

# Bytes up to which the weights of a graph stay inside its .onnx file; larger ones go to a file beside it.
LARGEST = 256 << 20
_ALIGNMENT = 4096  # of weights in that file, so that it can be mapped


def array_of(tensor: TensorProto, folder: Path) -> NDArray[np.generic]:
    """The numbers of an initializer, whether they lie in the graph or in `folder`."""
    return np.asarray(numpy_helper.to_array(tensor, str(folder)))


def loaded(tensor: TensorProto, folder: Path) -> TensorProto:
    """The tensor with its numbers inside."""
    if not uses_external_data(tensor):
        return tensor
    return numpy_helper.from_array(array_of(tensor, folder), tensor.name)


def write_graph(model: onnx.ModelProto, target: Path, tensors: Iterable[TensorProto], size: int) -> None:
    """Write a graph with these initializers, each taken when the one before is written.

    Args:
        model: without initializers; it gets them on the way, large ones without their numbers.
        target: .onnx; weights of more than `LARGEST` bytes lie in a file beside it, named `target`.data.
        tensors: with their numbers inside.
        size: bytes of all of them, about.
    """
    large = size > LARGEST
    data = target.with_name(f"{target.name}.data")
    with data.open("wb") as file:
        for tensor in tensors:
            if large and len(tensor.raw_data) >= _ALIGNMENT:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                offset = file.tell()
                file.write(tensor.raw_data)
                set_external_data(tensor, data.name, offset, len(tensor.raw_data))
                tensor.ClearField("raw_data")
            model.graph.initializer.append(tensor)
    if not large:
        data.unlink()
    onnx.save(model, target)


def size_of(tensor: TensorProto) -> int:
    """Bytes of an initializer."""
    return int(np.prod(tensor.dims)) * bytes_of(tensor.data_type)


def bytes_of(kind: int) -> int:
    """Bytes of one number of an ONNX type."""
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
