"""An importance matrix: which columns of each weight the calibration dialogues use, so that rounding spares them.

llama.cpp's quantizer takes one through its C interface since its structure is public; its own tool that collects one
reads text files, and ours must see embeddings. So the mean square of each product's input is taken while the
dialogues run, by llama.cpp's evaluation callback.
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.extras import load

log = logging.getLogger(__name__)

Importance = dict[str, NDArray[np.float32]]
_F32 = 0  # GGML_TYPE_F32


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, as llama-cpp-python 0.3.16 to 0.3.36 bring it."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class Collector:
    """Adds up the squares of what flows into each weight."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._rows: dict[str, int] = {}

    @property
    def importance(self) -> Importance:
        """Mean square of each column, by the name of the weight."""
        return {name: (total / self._rows[name]).astype(np.float32) for name, total in self._sums.items()}

    def see(self, address: int, ask: bool) -> bool:
        """Called before (`ask`) and after each node is computed; tells whether it is to be called after it."""
        weight, rows = _product(ctypes.cast(address, ctypes.POINTER(_Tensor)).contents)
        if weight is None or rows is None:
            return not ask  # after a node: go on
        if not ask:
            name = weight.name.decode(errors="replace")
            # Rows of activations [n, width] as they lie in memory, of the CPU since nothing is on a GPU.
            width, count = rows.ne[0], rows.ne[1] * rows.ne[2] * rows.ne[3]
            pointer = ctypes.cast(rows.data, ctypes.POINTER(ctypes.c_float))
            values = np.ctypeslib.as_array(pointer, shape=(count, width)).astype(np.float64)
            self._sums[name] = self._sums.get(name, 0) + (values**2).sum(axis=0)
            self._rows[name] = self._rows.get(name, 0) + count
        return True


def _product(node: _Tensor) -> tuple[_Tensor | None, _Tensor | None]:
    """The weight and the input of a node that is a product with a weight, else two None."""
    if not _sane(node) or not node.src[0] or not node.src[1]:
        return None, None
    weight, rows = node.src[0].contents, node.src[1].contents
    named = _sane(weight) and weight.name.endswith(b".weight") and weight.ne[1] > 1
    dense = (
        _sane(rows) and rows.type == _F32 and rows.nb[0] == 4 and rows.nb[1] == 4 * rows.ne[0] and rows.data
    )
    if not (named and dense) or rows.ne[0] != weight.ne[0] or node.ne[0] != weight.ne[1]:
        return None, None
    return weight, rows


def _sane(tensor: _Tensor) -> bool:
    """Whether a structure looks like a tensor: a guard against another layout than ours."""
    return all(0 < size < 1 << 31 for size in tensor.ne) and tensor.name.isascii()


@contextmanager
def collecting() -> Iterator[Collector]:
    """While this lasts, language models that are opened tell the collector what flows into their weights."""
    api = load("llama_cpp", "the importance matrix", "llm")
    collector = Collector()
    defaults = api.llama_context_default_params

    def see(tensor: int, ask: bool, _: Any) -> bool:
        return collector.see(tensor, ask)

    callback = api.ggml_backend_sched_eval_callback(see)

    def with_callback() -> Any:
        settings = defaults()
        settings.cb_eval = callback
        return settings

    # A language model opens its context with llama.cpp's defaults: meanwhile they carry the callback.
    api.llama_context_default_params = with_callback
    try:
        yield collector
    finally:
        api.llama_context_default_params = defaults


def matrix_of(api: Any, importance: Importance) -> tuple[Any, list[Any]]:
    """llama.cpp's array of importance data, which ends with an empty entry, and what must live as long as it."""
    kept: list[Any] = []
    entries = (api.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        raw, numbers = name.encode(), np.ascontiguousarray(values, np.float32)
        entry.name, entry.size = raw, len(numbers)
        entry.data = numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        kept += [raw, numbers]
    return entries, kept
