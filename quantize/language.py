"""GGUF types by llama.cpp's own quantizer."""

import logging
from pathlib import Path

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.extras import load
from tvau_edge.runtime.llama import quiet

log = logging.getLogger(__name__)

# Name of a type -> llama.cpp's name of the file type.
TYPES = {
    "f16": "LLAMA_FTYPE_MOSTLY_F16",
    "q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0",
    "q6_k": "LLAMA_FTYPE_MOSTLY_Q6_K",
    "q5_k_m": "LLAMA_FTYPE_MOSTLY_Q5_K_M",
    "q4_k_m": "LLAMA_FTYPE_MOSTLY_Q4_K_M",
}


def quantize_gguf(source: Path, target: Path, kind: str, threads: int = 0) -> None:
    """Write `source` (f32 or f16) at another GGUF type.

    k-quants work on rows in multiples of 256; llama.cpp stores a matrix whose rows are not in a larger type.

    Args:
        source: a GGUF.
        target: appears only when it is whole.
        kind: a key of `TYPES`.
        threads: 0 for all cores.

    Raises:
        MissingExtraError: the extra `llm` is not installed.
        LanguageModelError: the type is not known, or llama.cpp cannot read or write.
    """
    if kind not in TYPES:
        raise LanguageModelError(f"unknown GGUF type {kind!r}; known: {', '.join(TYPES)}")
    api = load("llama_cpp", "GGUF quantization", "llm")
    quiet(api)
    settings = api.llama_model_quantize_default_params()
    settings.ftype = getattr(api, TYPES[kind])
    settings.nthread = threads
    partial = target.with_name(f"{target.name}.part")
    try:
        status = api.llama_model_quantize(str(source).encode(), str(partial).encode(), settings)
        if status != 0:
            raise LanguageModelError(f"llama.cpp cannot quantize {source} to {kind} (status {status})")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
