"""llama.cpp's own grammar sampler: of all tokens, the likeliest that a GBNF grammar allows next."""

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.errors import LanguageModelError
from tvau_edge.runtime.language.llama import LanguageModel, listening, quoted

_FIRST = 64  # of the likeliest tokens are tried before all are


class Grammar:
    """A grammar, and how far a text has come in it.

    Args:
        model: whose tokens are chosen.
        text: the grammar in GBNF; its start is `root`.

    Raises:
        LanguageModelError: llama.cpp cannot read the grammar.
    """

    def __init__(self, model: LanguageModel, text: str) -> None:
        self._api = api = model.api
        self._model = model
        with listening(api) as errors:
            self._sampler = api.llama_sampler_init_grammar(model.vocabulary, text.encode(), b"root")
        if not self._sampler:
            raise LanguageModelError(f"llama.cpp cannot read a grammar{quoted(errors)}")
        self._candidate = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        # A grammar goes by the texts of tokens, and the control tokens have one too.
        self._control = np.array(
            [token for token in range(model.tokens) if model.is_control(token) and not model.ends(token)], int
        )

    def choose(self, logits: NDArray[np.float32]) -> int:
        """The likeliest token that may follow, or one that ends the text; `accept` it to go on.

        Args:
            logits: [tokens of the vocabulary], left as they are.
        """
        likely = np.array(logits)
        likely[self._control] = -np.inf
        few = min(_FIRST, likely.size)
        first = np.argpartition(-likely, few - 1)[:few]
        for tokens in (first, np.arange(likely.size)):
            left = self._apply(tokens, likely[tokens])
            best = int(left.argmax())
            if np.isfinite(left[best]):
                return int(tokens[best])
        raise LanguageModelError("a grammar allows no token of this vocabulary")

    def _apply(self, tokens: NDArray[np.generic], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n] of some tokens [n], those that may not follow at minus infinity."""
        api = self._api
        rows = np.zeros(tokens.size, self._candidate)
        rows["id"], rows["logit"] = tokens, logits
        array = api.llama_token_data_array(
            data=rows.ctypes.data_as(api.llama_token_data_p), size=tokens.size, selected=-1, sorted=False
        )
        api.llama_sampler_apply(self._sampler, array)
        return np.asarray(rows["logit"])

    def accept(self, token: int) -> None:
        """Go on past a token that `choose` returned."""
        self._api.llama_sampler_accept(self._sampler, token)

    def restart(self) -> None:
        """Go back to the grammar's start."""
        self._api.llama_sampler_reset(self._sampler)

    def close(self) -> None:
        """Free the sampler."""
        if self._sampler:
            self._api.llama_sampler_free(self._sampler)
        self._sampler = None

    def __enter__(self) -> "Grammar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
