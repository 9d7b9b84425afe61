"""Random evidence of the width of the talking bundle, and requests that carry it."""

from uuid import uuid4

import numpy as np

from tvau_edge.runtime.detection.trigger import Window
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.messages import Request, pack

CHECKPOINT = "0" * 64  # of the bundle that finds red


def request(seed=0, **more):
    generator = np.random.default_rng(seed)
    tensors = {
        "p_v": generator.normal(0, 0.3, (3, 6, 64)).astype(np.float16),
        "p_an": generator.normal(0, 0.3, (24, 64)).astype(np.float16),
    }
    values = {"kind": "explain", "checkpoint": CHECKPOINT, "event": uuid4(), **more}
    return pack(Request.model_validate(values), tensors)


def window(seed=0, patches=3):
    generator = np.random.default_rng(seed)
    return Window(
        tuple(
            Evidence(
                "door",
                k,
                k / 2,
                1000 + k / 2,
                generator.normal(0, 1, (2, 4, 6)).astype(np.float32),
                np.zeros((4, 6), np.float32),
                0.5,
                generator.normal(0, 0.3, (6, 64)).astype(np.float32),
            )
            for k in range(patches)
        )
    )
