"""The sequence of an event's temporal patches that is sent to the language model, and how it grows."""

from collections.abc import Sequence

import numpy as np

from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.messages import HeldPatches, Tensors, halved


def encode(rae: Rae, evidence: Sequence[Evidence]) -> Tensors:
    """P_V [T', N, D] and P_An [K, D] of a window, oldest first, as they are sent."""
    h_c = np.stack([item.h_c for item in evidence])  # [T', 2, H', W']
    p_v = np.stack([item.p_v for item in evidence])  # [T', N, D]
    return {"p_v": halved(p_v), "p_an": halved(rae.run(h_c))}  # P_An [(T'-1) (N_base + 10), D]


def grow(rae: Rae, tensors: Tensors, since: Sequence[Evidence], window: int) -> tuple[Tensors, Tensors, str]:
    """Append temporal patches to a sequence; nothing of what it holds is computed again.

    Args:
        rae: of the bundle.
        tensors: of the sequence, P_V [n, N, D] and P_An [K, D].
        since: its newest patch, and k that came after it, oldest first.
        window: T', the patches that RAE takes at once.

    Returns:
        The longer sequence; what of it must be sent to who has the shorter one: P_V [k, N, D] of the new patches, and
        the whole P_An, which follows P_V; and by what that one recognizes the shorter one.
    """
    p_an = halved(rae.run_longer(np.stack([item.h_c for item in since]), window))
    whole = np.concatenate([tensors["p_an"], p_an])
    new = halved(np.stack([item.p_v for item in since[1:]]))
    longer = {"p_v": np.concatenate([tensors["p_v"], new]), "p_an": whole}
    return longer, {"p_v": new, "p_an": whole}, HeldPatches(tensors["p_v"]).digest
