"""What is asked of a language model that runs elsewhere, in another process or on another box, and what it answers.

A message is one safetensors file in memory: JSON in its metadata under the key `tvau`, arrays as its tensors. It
cannot hold code, every language has a reader for it, and docs/language.md describes it. The evidence of an event is
such a message: tensor `p_v` [T', N, D], and `p_an` [K, D] where there is one, in float16 unless a value leaves its
range, then in float32.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tvau_edge.runtime.errors import EvidenceError

SCHEMA: Literal["tvau.explain/1"] = "tvau.explain/1"
LONGEST_QUESTION = 500  # characters
_KEY = "tvau"
_LARGEST = 256 * 1024 * 1024  # bytes of a message

Tensors = dict[str, NDArray[np.generic]]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True, ser_json_inf_nan="null"
    )


class Turn(_Part):
    """One question about an event, and its answer."""

    key: Annotated[str, Field(max_length=20, description="of the manifest's question, or 'question'")]
    question: Annotated[str, Field(max_length=4 * LONGEST_QUESTION)]
    answer: Annotated[str, Field(max_length=4 * LONGEST_QUESTION)]
    tokens: Annotated[
        list[int] | None,
        Field(max_length=1000, description="of the answer as it was said; its text may be cut otherwise"),
    ] = None


class Request(_Part):
    """Explain an event, ask about it, or read class prompts."""

    schema_: Annotated[Literal["tvau.explain/1"], Field(alias="schema")] = SCHEMA
    kind: Literal["explain", "ask", "prompts"]
    checkpoint: Annotated[str, Field(max_length=64, description="sha256 of the checkpoint that saw the clip")]
    event: Annotated[UUID | None, Field(description="of the evidence")] = None
    device: Annotated[str, Field(max_length=64)] = ""
    camera: Annotated[str, Field(max_length=64)] = ""
    turns: Annotated[list[Turn], Field(max_length=100, description="ask: what was said before")] = []
    question: Annotated[str | None, Field(max_length=LONGEST_QUESTION, description="ask: it")] = None
    after: Annotated[
        str | None,
        Field(
            max_length=64, description="explain: `HeldPatches` of the event's patches that p_v goes on from"
        ),
    ] = None
    normal: Annotated[list[str] | None, Field(max_length=200, description="prompts: of the normal class")] = (
        None
    )
    abnormal: Annotated[list[str] | None, Field(max_length=200, description="prompts: of the other")] = None


class Reply(_Part):
    """What came of a request: tensor `features` [2, D] for prompts, the rest for the others."""

    schema_: Annotated[Literal["tvau.explain/1"], Field(alias="schema")] = SCHEMA
    ok: bool
    error: Annotated[str | None, Field(description="why not; for a person")] = None
    answers: Annotated[dict[str, str], Field(description="explain: by the question's key")] = {}
    p_yes: Annotated[float | None, Field(ge=0, le=1)] = None
    log_odds: float | None = None
    answer: Annotated[str | None, Field(description="ask: to the question")] = None
    turns: list[Turn] = []
    cosine: Annotated[float | None, Field(description="prompts: of the bundle's own to the exporter's")] = (
        None
    )
    tokens: Annotated[int, Field(ge=0, description="in the context")] = 0
    latency_ms: dict[str, float] = {}
    language: Annotated[str, Field(description="GGUF type that answered")] = ""


class HeldPatches:
    """Which temporal patches a sequence holds: SHA-256 over P_V as float32, patch after patch.

    Both sides reckon it, so that new patches are never appended to others than they came after.
    """

    def __init__(self, p_v: NDArray[np.generic]) -> None:
        self._hash = hashlib.sha256()
        self.append(p_v)

    def append(self, p_v: NDArray[np.generic]) -> None:
        """Take patches [k, N, D]."""
        self._hash.update(np.ascontiguousarray(p_v, dtype="<f4").data)

    @property
    def digest(self) -> str:
        """Of all patches so far, in hexadecimal."""
        return self._hash.hexdigest()


M = TypeVar("M", bound=BaseModel)


def pack(message: BaseModel, tensors: Tensors | None = None) -> bytes:
    """A message in its binary form."""
    arrays = {name: np.ascontiguousarray(array) for name, array in (tensors or {}).items()}
    return save(arrays, {_KEY: message.model_dump_json()})


def unpack(raw: bytes, model: type[M]) -> tuple[M, Tensors]:
    """Read a message.

    Args:
        raw: from anywhere.
        model: `Request` or `Reply`.

    Raises:
        EvidenceError: it is torn, too large, no such message, or holds what is no finite number.
    """
    if len(raw) > _LARGEST:
        raise EvidenceError(f"a message of {len(raw)} bytes; at most {_LARGEST}")
    try:
        tensors = load(raw)
        header: Any = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        message = model.model_validate_json(header.get("__metadata__", {}).get(_KEY, ""))
    except (SafetensorError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise EvidenceError(f"not a message of {SCHEMA}: {reason[:200]}") from error
    for name, array in tensors.items():
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise EvidenceError(f"tensor {name} of a message holds what is no finite number")
    return message, tensors


def halved(array: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
    """The array in float16, or in float32 where float16 would overflow."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.isfinite(half).all() else np.asarray(array, np.float32)


def evidence_of(
    tensors: Tensors, patches: int, tokens: int, width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """P_V [T', N, D] and P_An [K, D] of a message, float32.

    Args:
        tensors: of the message.
        patches: T' at most.
        tokens: N.
        width: D.

    Raises:
        EvidenceError: a shape is not that of the model.
    """
    p_v, p_an = tensors.get("p_v"), tensors.get("p_an")
    if p_v is None or p_v.ndim != 3 or not 1 <= len(p_v) <= patches or p_v.shape[1:] != (tokens, width):
        found = "is missing" if p_v is None else f"has shape {list(p_v.shape)}"
        raise EvidenceError(f"tensor p_v {found}; expected [1 to {patches}, {tokens}, {width}]")
    if p_an is not None and (p_an.ndim != 2 or p_an.shape[1] != width or len(p_an) > 64 * patches):
        raise EvidenceError(f"tensor p_an has shape {list(p_an.shape)}; expected [K, {width}]")
    return p_v.astype(np.float32), None if p_an is None else p_an.astype(np.float32)
