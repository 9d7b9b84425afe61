"""llama.cpp through llama-cpp-python's low-level API: tokens and embeddings in, logits out (extra: llm).

The one module that knows llama_cpp. People have asked llama-cpp-python for input embeddings since its issue 1757;
here they are: a batch of embeddings with M-RoPE positions goes through the same `llama_decode` as tokens do.
"""

import ctypes
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.extras import load

log = logging.getLogger(__name__)

ARCHITECTURE = "qwen2vl"
_BATCH = 512  # tokens evaluated in one go
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_callback: Any = None  # held here: llama.cpp keeps only the pointer
_listeners: list[Callable[[int, str], None]] = []
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A place in a sequence to come back to: a prefix that several continuations share.

    Attributes:
        evaluated: tokens before it.
        position: of the text that follows it.
    """

    evaluated: int
    position: int


class LanguageModel:
    """One GGUF and one sequence: what was evaluated so far stays in the KV cache.

    Args:
        path: of the GGUF, architecture qwen2vl.
        context: tokens that the sequence may have.
        threads: CPU threads; None leaves it to llama.cpp.
        gpu_layers: layers on the GPU; -1 all of them.
        exact_cache: keep keys and values in f32 instead of f16, and flash attention off, which rounds to f16: for
            comparisons, at twice the memory.

    Raises:
        MissingExtraError: the extra `llm` is not installed.
        LanguageModelError: the file is missing, damaged, of another architecture, or larger than the memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        exact_cache: bool = False,
    ) -> None:
        self._api = load("llama_cpp", "the language model", "llm")
        self._model = self._context = None
        self._path = path
        quiet(self._api)
        if not path.is_file():
            raise LanguageModelError(f"{path}: no such file")
        # On a GPU, llama.cpp is told that there is no room. On the CPU it never is: the system kills, detection too.
        free = memory_free() if gpu_layers == 0 else None
        size = path.stat().st_size
        self._check_memory(size, free)
        settings = self._api.llama_model_default_params()
        settings.n_gpu_layers = 999 if gpu_layers < 0 else gpu_layers
        if b"AMX_INT8 = 1" in self._api.llama_print_system_info():
            # llama.cpp sets up the AMX tile registers once per thread; an INT8 graph that runs on the same thread
            # sets them up otherwise, and llama.cpp then crashes. Without its packed buffers it leaves them alone.
            settings.use_extra_bufts = False
        with listening(self._api) as errors:
            self._model = self._api.llama_model_load_from_file(os.fsencode(path), settings)
        if not self._model:
            raise LanguageModelError(
                f"llama.cpp cannot load {path}: it is damaged, or memory is short{quoted(errors)}"
            )
        architecture = self._meta("general.architecture")
        if architecture != ARCHITECTURE:
            self.close()
            raise LanguageModelError(f"{path} holds architecture {architecture!r}, expected {ARCHITECTURE!r}")
        self._vocabulary = self._api.llama_model_get_vocab(self._model)
        self.tokens = int(self._api.llama_vocab_n_tokens(self._vocabulary))
        self.width = int(self._api.llama_model_n_embd(self._model))
        self.context = context
        self._marks: list[Mark] = []
        self._check_memory(size + self._cache_size(exact_cache), free)
        self._open_context(threads, exact_cache)
        self.clear()

    def _check_memory(self, needed: int, free: int | None) -> None:
        if free is not None and needed > free:
            self.close()
            raise LanguageModelError(
                f"{self._path} needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; a smaller GGUF "
                "type or a shorter context helps"
            )

    def _cache_size(self, exact: bool) -> int:
        """Bytes of the KV cache."""
        api, model = self._api, self._model
        row = self.width // api.llama_model_n_head(model) * api.llama_model_n_head_kv(model)
        return 2 * int(api.llama_model_n_layer(model) * row) * self.context * (4 if exact else 2)

    def _open_context(self, threads: int | None, exact_cache: bool) -> None:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = self.context
        settings.n_batch = settings.n_ubatch = min(_BATCH, self.context)
        settings.no_perf = True
        if threads:
            settings.n_threads = settings.n_threads_batch = threads
        if exact_cache:
            settings.type_k = settings.type_v = self._api.GGML_TYPE_F32
            settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with listening(self._api) as errors:
            self._context = self._api.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise LanguageModelError(
                f"{self._path}: no memory for a context of {self.context} tokens; a smaller GGUF type or window "
                f"helps{quoted(errors)}"
            )

    def __enter__(self) -> "LanguageModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free model and context."""
        if self._context:
            self._api.llama_free(self._context)
        if self._model:
            self._api.llama_model_free(self._model)
        self._context = self._model = None

    def clear(self) -> None:
        """Forget the sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self.evaluated = 0
        self.position = 0
        self._marks.clear()

    def mark(self) -> Mark:
        """Note where the sequence stands; what is evaluated from here on can be taken back."""
        self._marks.append(Mark(self.evaluated, self.position))
        return self._marks[-1]

    def rewind(self, mark: Mark) -> None:
        """Forget what was evaluated after `mark`, which stays valid; logits stand again after the next evaluation.

        Raises:
            LanguageModelError: the sequence was cleared, or rewound to before the mark, since it was made.
        """
        if mark not in self._marks:
            raise LanguageModelError("the sequence no longer holds what a mark was made after")
        # Whatever follows a mark lies at its position or after it, on the temporal axis too, which this goes by.
        memory = self._api.llama_get_memory(self._context)
        self._api.llama_memory_seq_rm(memory, 0, mark.position, -1)
        del self._marks[self._marks.index(mark) + 1 :]
        self.evaluated, self.position = mark.evaluated, mark.position

    def tokenize(self, text: str, *, control: bool = False) -> list[int]:
        """Tokens of a text; without `control`, control tokens in it are plain text, as a stranger's must be."""
        # Qwen's tokenizer composes accents first, llama.cpp does not; half a surrogate pair has no bytes.
        raw = unicodedata.normalize("NFC", text).encode(errors="replace")
        room = len(raw) + 8
        tokens = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocabulary, raw, len(raw), tokens, room, False, control)
        if count < 0:
            raise LanguageModelError(f"{self._path}: cannot tokenize a text of {len(raw)} bytes")
        return list(tokens[:count])

    def text(self, tokens: list[int]) -> str:
        """The text of tokens; control tokens have none, broken UTF-8 is replaced."""
        pieces = bytearray()
        buffer = ctypes.create_string_buffer(256)
        for token in tokens:
            count = self._api.llama_token_to_piece(self._vocabulary, token, buffer, len(buffer), 0, False)
            pieces += buffer.raw[: max(count, 0)]
        return pieces.decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def evaluate_tokens(self, tokens: list[int]) -> None:
        """Evaluate text tokens at the positions that follow what was evaluated."""
        for start in range(0, len(tokens), _BATCH):
            chunk = tokens[start : start + _BATCH]
            ids = (self._api.llama_token * len(chunk))(*chunk)
            positions = np.arange(self.position, self.position + len(chunk), dtype=np.int32)
            self._decode(len(chunk), positions, token=ids)
            self.position += len(chunk)

    def evaluate_embeddings(self, embeddings: NDArray[np.float32], positions: NDArray[np.int32]) -> None:
        """Evaluate embeddings [n, D] at M-RoPE positions [n, 3]; text goes on after the largest of them.

        Raises:
            LanguageModelError: their width is not the model's, or the context is full.
            ValueError: a position lies before what was evaluated.
        """
        count, width = embeddings.shape
        if positions.min() < self.position:
            raise ValueError(f"position {positions.min()} lies before {self.position}")
        if width != self.width:
            raise LanguageModelError(
                f"{self._path} has width {self.width}, the embeddings {width}: vision and language model are of "
                "different checkpoints"
            )
        for start in range(0, count, _BATCH):
            part = np.ascontiguousarray(embeddings[start : start + _BATCH], dtype=np.float32)
            place = positions[start : start + _BATCH]
            # llama.cpp's layout: all temporal positions, all rows, all columns, then an axis that Qwen leaves at 0.
            flat = np.concatenate([place.T.reshape(-1), np.zeros(len(part))]).astype(np.int32)
            self._decode(len(part), flat, embd=part.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), keep=part)
        self.position = int(positions.max()) + 1

    def _decode(
        self, count: int, positions: NDArray[np.int32], token: Any = None, embd: Any = None, keep: Any = None
    ) -> None:
        """Evaluate one batch; `keep` only holds memory alive that the batch points to."""
        if self.evaluated + count > self.context:
            raise LanguageModelError(
                f"the dialogue needs more than the context of {self.context} tokens; a longer context or fewer "
                "questions help"
            )
        api = self._api
        sequence = (api.llama_seq_id * 1)(0)
        pointer = ctypes.cast(sequence, ctypes.POINTER(api.llama_seq_id))
        logits = (ctypes.c_int8 * count)(*([0] * (count - 1)), 1)
        batch = api.llama_batch()
        batch.n_tokens = count
        if token is not None:
            batch.token = token
        else:
            batch.embd = embd
        batch.pos = positions.ctypes.data_as(ctypes.POINTER(api.llama_pos))
        batch.n_seq_id = (ctypes.c_int32 * count)(*[1] * count)
        batch.seq_id = (ctypes.POINTER(api.llama_seq_id) * count)(*[pointer] * count)
        batch.logits = logits
        status = api.llama_decode(self._context, batch)
        if status != 0:
            raise LanguageModelError(
                f"{self._path}: llama.cpp failed to evaluate {count} tokens (status {status})"
            )
        self.evaluated += count

    def logits(self) -> NDArray[np.float32]:
        """Logits [tokens of the vocabulary] after the last token that was evaluated."""
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.tokens,)).copy()

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = self._api.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if count >= 0 else ""


def quiet(api: Any) -> None:
    """Send llama.cpp's messages to our log instead of the terminal, once."""
    global _callback
    if _callback is not None:
        return

    def tell(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        message = text.decode(errors="replace").strip()
        if message:
            log.log(logging.WARNING if level == _ERROR else logging.DEBUG, "llama.cpp: %s", message)
            for listener in tuple(_listeners):
                listener(level, message)

    _callback = api.llama_log_callback(tell)
    api.llama_log_set(_callback, ctypes.c_void_p(0))
    api.llama_backend_init()


@contextmanager
def listening(api: Any, hear: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Tell `hear` what llama.cpp says meanwhile; yields the errors among it, as they come."""
    quiet(api)
    errors: list[str] = []

    def listen(level: int, message: str) -> None:
        if level == _ERROR:
            errors.append(message)
        if hear:
            hear(message)

    _listeners.append(listen)
    try:
        yield errors
    finally:
        _listeners.remove(listen)


def quoted(errors: list[str]) -> str:
    """llama.cpp's first error, which says most, as the end of one of ours: " (llama.cpp: …)"."""
    return f" (llama.cpp: {errors[0].split(': ', 1)[-1]})" if errors else ""


def memory_free(facts: Path = _MEMORY) -> int | None:
    """Bytes that may be used without swapping (MemAvailable), or None where the system does not tell."""
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kilobytes) * 1024 if kilobytes else None
