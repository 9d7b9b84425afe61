"""GGUF types by llama.cpp's own quantizer."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from tvau_edge.quantize.importance import Importance, matrix_of
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.extras import load
from tvau_edge.runtime.language.llama import listening, quoted

log = logging.getLogger(__name__)

# Name of a type -> llama.cpp's name of the file type.
TYPES = {
    "f16": "LLAMA_FTYPE_MOSTLY_F16",
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
}
# Numbers of a row that share their scales: a row is a multiple of it, or is not stored at the type.
_BLOCKS = {"f16": 1, "q8_0": 32, "q6_k": 256, "q5_k_m": 256, "q4_k_m": 256}
# What llama.cpp says as it begins a tensor, "[  5/ 27] blk.0.attn_k.weight  - [  64,  32,": it has no other progress.
_BEGINS = re.compile(
    r"\[ *(?P<done>\d+)/ *(?P<total>\d+)\] +(?P<name>\S+) +- +\[ *(?P<row>\d+), *(?P<rows>\d+),"
)


def quantize_gguf(
    source: Path,
    target: Path,
    kind: str,
    threads: int = 0,
    advance: Callable[[int, int], None] | None = None,
    importance: Importance | None = None,
) -> list[str]:
    """Write `source` (f32, f16, bf16 or q8_0) at another GGUF type.

    k-quants work on rows in multiples of 256; llama.cpp stores a matrix whose rows are not in a larger type. That
    works, but the file is larger than its type promises, so a warning names such matrices.

    Args:
        source: a GGUF.
        target: appears only when it is whole.
        kind: a key of `TYPES`.
        threads: 0 for all cores.
        advance: told of progress as (tensors begun, tensors in all).
        importance: mean square of what flows into each column of each weight, by the weight's name: rounding spares
            the columns that matter. f16 and q8_0 have no use for it.

    Returns:
        Names of the matrices whose rows do not fit the type.

    Raises:
        MissingExtraError: the extra `llm` is not installed.
        LanguageModelError: the type is not known, or llama.cpp cannot read or write.
    """
    if kind not in TYPES:
        raise LanguageModelError(f"unknown GGUF type {kind!r}; known: {', '.join(TYPES)}")
    api = load("llama_cpp", "GGUF quantization", "llm")
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, TYPES[kind])
    settings.nthread = threads
    # q8_0 is so near to f16 that what is made of it is as good; the caller decides what it gives.
    settings.allow_requantize = True
    entries, kept = matrix_of(api, importance) if importance else (None, [])
    if entries is not None:
        settings.imatrix = entries
    unfit: list[str] = []

    def hear(message: str) -> None:
        if begun := _BEGINS.match(message):
            if int(begun["rows"]) > 1 and int(begun["row"]) % _BLOCKS[kind]:
                unfit.append(begun["name"])
            if advance:
                advance(int(begun["done"]), int(begun["total"]))

    partial = target.with_name(f"{target.name}.part")
    try:
        with listening(api, hear) as errors:
            status = api.llama_model_quantize(os.fsencode(source), os.fsencode(partial), settings)
            del kept
        if status != 0:
            raise LanguageModelError(
                f"llama.cpp cannot quantize {source} to {kind} (status {status}){quoted(errors)}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    if unfit:
        log.warning(
            "%s: rows of %s are no multiple of %d; llama.cpp stored them in a larger type than %s",
            target.name,
            ", ".join(unfit),
            _BLOCKS[kind],
            kind,
        )
    return unfit
