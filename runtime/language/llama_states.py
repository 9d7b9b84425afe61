"""Hidden states of texts from the GGUF itself: what the text encoder of the class prompts is made of."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.llama import LanguageModel, listening, quoted


def hidden_states(
    model: LanguageModel, texts: Sequence[Sequence[int]], without: Path | None = None
) -> list[NDArray[np.float32]]:
    """The last hidden states, after the final norm, of each text by itself.

    They come from a context of their own, on the weights that are loaded; the dialogue's cache is left alone.

    Args:
        model: loaded.
        texts: token ids of each text, at least one each.
        without: a LoRA adapter in GGUF form that is merged into the weights and is taken off here.

    Returns:
        One array [L, D] per text.

    Raises:
        LanguageModelError: no memory, or the adapter is missing, damaged, or another model's.
    """
    api = model.api
    settings = model.settings(max(len(text) for text in texts))
    # A text at once, since llama.cpp keeps embeddings for one batch, and in full precision, since it costs little.
    settings.n_batch = settings.n_ubatch = settings.n_ctx
    settings.embeddings, settings.pooling_type = True, api.LLAMA_POOLING_TYPE_NONE
    settings.type_k = settings.type_v = api.GGML_TYPE_F32
    settings.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    adapter = _load(model, without) if without is not None else None
    context = api.llama_init_from_model(model.handle, settings)
    try:
        if not context:
            raise LanguageModelError(f"no memory for a text of {settings.n_ctx} tokens")
        if adapter is not None:
            adapters = (api.llama_adapter_lora_p_ctypes * 1)(adapter)
            api.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(-1.0))
        return [_states(model, context, text) for text in texts]
    finally:
        if context:
            api.llama_free(context)
        if adapter is not None:
            api.llama_adapter_lora_free(adapter)


def _load(model: LanguageModel, path: Path) -> object:
    if not path.is_file():
        raise LanguageModelError(f"{path}: no such file")
    with listening(model.api) as errors:
        adapter = model.api.llama_adapter_lora_init(model.handle, os.fsencode(path))
    if not adapter:
        raise LanguageModelError(f"llama.cpp cannot load the adapter {path}{quoted(errors)}")
    return adapter


def _states(model: LanguageModel, context: object, text: Sequence[int]) -> NDArray[np.float32]:
    api, count = model.api, len(text)
    api.llama_memory_clear(api.llama_get_memory(context), True)
    tokens = (api.llama_token * count)(*text)  # llama.cpp is given its address only
    status = api.llama_decode(context, api.llama_batch_get_one(tokens, count))
    if status != 0:
        raise LanguageModelError(f"llama.cpp failed to evaluate a text of {count} tokens (status {status})")
    rows = [api.llama_get_embeddings_ith(context, row) for row in range(count)]
    return np.stack([np.ctypeslib.as_array(row, shape=(model.width,)) for row in rows])
