"""The language model at the GGUF types that were asked for, each beside what it was made from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvau_edge.quantize import dialogues
from tvau_edge.quantize.dialogues import Told, Windows, best_source
from tvau_edge.quantize.footage import Footage
from tvau_edge.quantize.importance import Importance, collecting
from tvau_edge.quantize.language import quantize_gguf
from tvau_edge.quantize.steps import Steps
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle

_USES_IMPORTANCE = ("q6_k", "q5_k_m", "q4_k_m")


def make_types(
    bundle: Bundle, kinds: Sequence[str], footage: Footage, work: Work, steps: Steps
) -> list[dict[str, Any]]:
    """Write and measure the language model at each type.

    Returns:
        One record per type: `type`, `file`, `bytes`, `source`, `importance`, and what `dialogues.measure` found.

    Raises:
        LanguageModelError: the bundle's language model has lost too much already, or llama.cpp fails.
    """
    if not kinds:
        return []
    source_kind, source = best_source(bundle)
    steps.begin("dialogues about the footage")
    windows, told, expected, importance = _reference(bundle, source, footage, work, steps)
    records = []
    for kind in kinds:
        steps.begin(f"language model to {kind}")
        name = f"lvlm-{kind}.gguf"
        uses = kind in _USES_IMPORTANCE and bool(importance)

        def make(kind: str = kind, name: str = name, uses: bool = uses) -> dict[str, Any]:
            path = source
            if kind != source_kind:
                path = work.path(name)
                quantize_gguf(source, path, kind, 0, steps.advance, importance if uses else None)
            steps.begin(f"measuring {kind}")
            found, said, read = dialogues.follow(bundle, path, windows, told, steps.advance)
            return {
                **dialogues.measure(expected, found, said, read).record(),
                "type": kind,
                "file": source.name if kind == source_kind else name,
                "bytes": path.stat().st_size,
                "source": source_kind,
                "importance": uses,
            }

        records.append(work.step(name, [name], make))
    return records


def _reference(
    bundle: Bundle, source: Path, footage: Footage, work: Work, steps: Steps
) -> tuple[Windows, Told, NDArray[np.float32], Importance]:
    """Windows of the footage, what the source says of them, its logits, and what flows into its weights."""
    arrays = work.path("dialogues.npz")

    def make() -> dict[str, Any]:
        windows = dialogues.see(bundle, footage, steps.advance)
        steps.begin("the source's own answers")
        told = dialogues.tell(bundle, source, windows, steps.advance)
        steps.begin("importance matrix")
        with collecting() as collector:
            expected, _, _ = dialogues.follow(bundle, source, windows, told, steps.advance)
        matrix = {f"importance|{name}": value for name, value in collector.importance.items()}
        np.savez(arrays, p_v=windows.p_v, p_an=windows.p_an, expected=expected, **matrix)  # type: ignore[arg-type]
        return {"tokens": told.tokens, "answers": told.answers}

    record = work.step("dialogues", [arrays.name], make)
    with np.load(arrays, allow_pickle=False) as file:
        windows, expected = Windows(file["p_v"], file["p_an"]), file["expected"]
        names = [name for name in file.files if name.startswith("importance|")]
        importance = {name.removeprefix("importance|"): file[name] for name in names}
    told = Told(*(tuple(tuple(one) for one in record[key]) for key in ("tokens", "answers")))
    return windows, told, expected, importance
