"""llama.cpp through llama-cpp-python's low-level API: tokens and embeddings in, logits out (extra: llm).

With `llama_grammar` and `llama_states` beside it, the one module that knows llama_cpp. People have asked
llama-cpp-python for input embeddings since its issue 1757; here they are: a batch of embeddings with M-RoPE positions
goes through the same `llama_decode` as tokens do.
"""

import ctypes
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.devices.host import memory_free
from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.extras import load

log = logging.getLogger(__name__)

ARCHITECTURE = "qwen2vl"
_BATCH = 512  # tokens evaluated in one go
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_callback: Any = None  # held here: llama.cpp keeps only the pointer
_listeners: list[Callable[[int, str], None]] = []


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """A place in a sequence to come back to: a prefix that several continuations share.

    Attributes:
        evaluated: tokens before it.
        position: of the text that follows it.
        moment: the first temporal position that is free after it; in a clip it may lie before `position`.
    """

    evaluated: int
    position: int
    moment: int


@dataclass(slots=True)
class Branch:
    """A sequence that went off the trunk and shares in the cache all that the trunk held then.

    Attributes:
        number: llama.cpp's id of the sequence, from 1; the trunk is 0.
        position: of the text that follows.
        logits: after its last token, [tokens of the vocabulary]; none before the first.
    """

    number: int
    position: int
    logits: NDArray[np.float32] | None = None


class LanguageModel:
    """One GGUF and one sequence, the trunk: what was evaluated so far stays in the KV cache.

    For a while, `fork` lets several branches go on from where the trunk stands; they are evaluated in one batch.

    Args:
        path: of the GGUF, architecture qwen2vl.
        context: tokens that the trunk and its branches may have together.
        branches: that there may be at a time.
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
        branches: int = 0,
        threads: int | None = None,
        gpu_layers: int = 0,
        exact_cache: bool = False,
    ) -> None:
        self.api = load("llama_cpp", "the language model", "llm")
        self.handle = self._context = None
        self._path = path
        quiet(self.api)
        if not path.is_file():
            raise LanguageModelError(f"{path}: no such file")
        # On a GPU, llama.cpp is told that there is no room. On the CPU it never is: the system kills, detection too.
        free = memory_free() if gpu_layers == 0 else None
        size = path.stat().st_size
        self._check_memory(size, free)
        settings = self.api.llama_model_default_params()
        settings.n_gpu_layers = 999 if gpu_layers < 0 else gpu_layers
        if b"AMX_INT8 = 1" in self.api.llama_print_system_info():
            # llama.cpp sets up the AMX tile registers once per thread; an INT8 graph that runs on the same thread
            # sets them up otherwise, and llama.cpp then crashes. Without its packed buffers it leaves them alone.
            settings.use_extra_bufts = False
        with listening(self.api) as errors:
            self.handle = self.api.llama_model_load_from_file(os.fsencode(path), settings)
        if not self.handle:
            raise LanguageModelError(
                f"llama.cpp cannot load {path}: it is damaged, or memory is short{quoted(errors)}"
            )
        architecture = self._meta("general.architecture")
        if architecture != ARCHITECTURE:
            self.close()
            raise LanguageModelError(f"{path} holds architecture {architecture!r}, expected {ARCHITECTURE!r}")
        self.vocabulary = self.api.llama_model_get_vocab(self.handle)
        self.tokens = int(self.api.llama_vocab_n_tokens(self.vocabulary))
        self.width = int(self.api.llama_model_n_embd(self.handle))
        self.context = context
        self._sequences = branches + 1
        self._threads = threads
        self._marks: list[Mark] = []
        self._check_memory(size + self._cache_size(exact_cache), free)
        self._open_context(exact_cache)
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
        api, model = self.api, self.handle
        row = self.width // api.llama_model_n_head(model) * api.llama_model_n_head_kv(model)
        return 2 * int(api.llama_model_n_layer(model) * row) * self.context * (4 if exact else 2)

    def settings(self, context: int) -> Any:
        """llama.cpp's settings for a context of so many tokens."""
        settings = self.api.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = settings.n_ubatch = min(_BATCH, context)
        settings.no_perf = True
        if self._threads:
            settings.n_threads = settings.n_threads_batch = self._threads
        return settings

    def _open_context(self, exact_cache: bool) -> None:
        settings = self.settings(self.context)
        settings.n_seq_max = self._sequences
        settings.kv_unified = True  # one cache, in which sequences share what they have in common
        if exact_cache:
            settings.type_k = settings.type_v = self.api.GGML_TYPE_F32
            settings.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with listening(self.api) as errors:
            self._context = self.api.llama_init_from_model(self.handle, settings)
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
            self.api.llama_free(self._context)
        if self.handle:
            self.api.llama_model_free(self.handle)
        self._context = self.handle = None

    def clear(self) -> None:
        """Forget the sequence."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self._context), True)
        self.evaluated = self.position = self.moment = 0
        self._marks.clear()

    def mark(self) -> Mark:
        """Note where the sequence stands; what is evaluated from here on can be taken back."""
        self._marks.append(Mark(self.evaluated, self.position, self.moment))
        return self._marks[-1]

    def rewind(self, mark: Mark) -> None:
        """Forget what was evaluated after `mark`, which stays valid; logits stand again after the next evaluation.

        Raises:
            LanguageModelError: the sequence was cleared, or rewound to before the mark, since it was made.
        """
        if mark not in self._marks:
            raise LanguageModelError("the sequence no longer holds what a mark was made after")
        memory = self.api.llama_get_memory(self._context)
        self.api.llama_memory_seq_rm(memory, 0, mark.moment, -1)  # which goes by the temporal axis
        del self._marks[self._marks.index(mark) + 1 :]
        self.evaluated, self.position, self.moment = mark.evaluated, mark.position, mark.moment

    def holds(self, mark: Mark) -> bool:
        """Whether one may rewind to `mark`."""
        return mark in self._marks

    @contextmanager
    def fork(self, count: int) -> Iterator[list[Branch]]:
        """Let `count` branches go on from where the trunk stands; at the end they are forgotten.

        Nothing is copied: the cells that they have in common belong to all of them. Meanwhile the trunk waits.

        Raises:
            ValueError: the model was opened for fewer.
        """
        if count >= self._sequences:
            raise ValueError(f"{count} branches of a model that was opened for {self._sequences - 1}")
        memory, before = self.api.llama_get_memory(self._context), self.evaluated
        branches = [Branch(number, self.position) for number in range(1, count + 1)]
        for branch in branches:
            self.api.llama_memory_seq_cp(memory, 0, branch.number, -1, -1)
        try:
            yield branches
        finally:
            for branch in branches:
                self.api.llama_memory_seq_rm(memory, branch.number, -1, -1)
            self.evaluated = before

    def tokenize(self, text: str, *, control: bool = False) -> list[int]:
        """Tokens of a text; without `control`, control tokens in it are plain text, as a stranger's must be."""
        # Qwen's tokenizer composes accents first, llama.cpp does not; half a surrogate pair has no bytes.
        raw = unicodedata.normalize("NFC", text).encode(errors="replace")
        room = len(raw) + 8
        tokens = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocabulary, raw, len(raw), tokens, room, False, control)
        if count < 0:
            raise LanguageModelError(f"{self._path}: cannot tokenize a text of {len(raw)} bytes")
        return list(tokens[:count])

    def text(self, tokens: list[int]) -> str:
        """The text of tokens; control tokens have none, broken UTF-8 is replaced."""
        pieces = bytearray()
        buffer = ctypes.create_string_buffer(256)
        for token in tokens:
            count = self.api.llama_token_to_piece(self.vocabulary, token, buffer, len(buffer), 0, False)
            pieces += buffer.raw[: max(count, 0)]
        return pieces.decode(errors="replace")

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self.api.llama_vocab_is_eog(self.vocabulary, token))

    def is_control(self, token: int) -> bool:
        """Whether a token is one of the template's own, such as <|im_start|>."""
        return bool(self.api.llama_vocab_is_control(self.vocabulary, token))

    def evaluate_tokens(self, tokens: list[int]) -> None:
        """Evaluate text tokens at the positions that follow what was evaluated."""
        for start in range(0, len(tokens), _BATCH):
            chunk = tokens[start : start + _BATCH]
            self._decode(np.arange(self.position, self.position + len(chunk)), tokens=chunk)
            self.position += len(chunk)
            self.moment = self.position

    def evaluate_branches(self, texts: Sequence[tuple[Branch, list[int]]]) -> None:
        """Evaluate at least one token of each of some branches in one batch; each gets its logits."""
        flat = [
            (branch, token, index == len(tokens) - 1)
            for branch, tokens in texts
            for index, token in enumerate(tokens)
        ]
        for start in range(0, len(flat), _BATCH):
            chunk = flat[start : start + _BATCH]
            positions = []
            for branch, _, _ in chunk:
                positions.append(branch.position)
                branch.position += 1
            owners = [branch.number for branch, _, _ in chunk]
            last = [end for _, _, end in chunk]
            self._decode(
                np.array(positions), tokens=[token for _, token, _ in chunk], owners=owners, outputs=last
            )
            for row, (branch, _, end) in enumerate(chunk):
                if end:
                    branch.logits = self.logits(row)

    def evaluate_embeddings(self, embeddings: NDArray[np.float32], positions: NDArray[np.int32]) -> None:
        """Evaluate embeddings [n, D] at M-RoPE positions [n, 3]; text goes on after the largest of all so far.

        Raises:
            LanguageModelError: their width is not the model's, or the context is full.
            ValueError: a temporal position lies before the end of what was evaluated.
        """
        count, width = embeddings.shape
        if positions[:, 0].min() < self.moment:
            raise ValueError(f"position {positions[:, 0].min()} lies before {self.moment}")
        if width != self.width:
            raise LanguageModelError(
                f"{self._path} has width {self.width}, the embeddings {width}: vision and language model are of "
                "different checkpoints"
            )
        for start in range(0, count, _BATCH):
            part = np.ascontiguousarray(embeddings[start : start + _BATCH], dtype=np.float32)
            place = positions[start : start + _BATCH]
            # llama.cpp's layout: all temporal positions, all rows, all columns, then an axis that Qwen leaves at 0.
            self._decode(np.concatenate([place.T.reshape(-1), np.zeros(len(part))]), embeddings=part)
        self.position = max(self.position, int(positions.max()) + 1)
        self.moment = int(positions[:, 0].max()) + 1

    def _decode(
        self,
        positions: NDArray[np.generic],
        *,
        tokens: list[int] | None = None,
        embeddings: NDArray[np.float32] | None = None,
        owners: list[int] | None = None,
        outputs: list[bool] | None = None,
    ) -> None:
        """Evaluate one batch, of the trunk if it has no `owners`; its last token gives logits, or all `outputs`."""
        api = self.api
        batch = api.llama_batch()
        if tokens is not None:
            count = len(tokens)
            batch.token = (api.llama_token * count)(*tokens)
        else:
            assert embeddings is not None  # the other of the two
            count = len(embeddings)
            batch.embd = embeddings.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if self.evaluated + count > self.context:
            raise LanguageModelError(
                f"the dialogue needs more than the context of {self.context} tokens; a longer context or fewer "
                "questions help"
            )
        places = np.ascontiguousarray(positions, dtype=np.int32)
        sequences = (api.llama_seq_id * count)(*(owners or [0] * count))
        step = ctypes.sizeof(api.llama_seq_id)
        pointer = ctypes.POINTER(api.llama_seq_id)
        batch.n_tokens = count
        batch.pos = places.ctypes.data_as(ctypes.POINTER(api.llama_pos))
        batch.n_seq_id = (ctypes.c_int32 * count)(*[1] * count)
        batch.seq_id = (pointer * count)(
            *(ctypes.cast(ctypes.addressof(sequences) + step * index, pointer) for index in range(count))
        )
        batch.logits = (ctypes.c_int8 * count)(*(outputs or [False] * (count - 1) + [True]))
        status = api.llama_decode(self._context, batch)
        if status != 0:
            raise LanguageModelError(
                f"{self._path}: llama.cpp failed to evaluate {count} tokens (status {status})"
            )
        self.evaluated += count

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """Logits [tokens of the vocabulary] after the last token that was evaluated, or after another of its batch."""
        pointer = self.api.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.tokens,)).copy()

    def _meta(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        count = self.api.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
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
