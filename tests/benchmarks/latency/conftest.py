"""Runs with drawn times, for what is computed from runs."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tvau_edge.benchmarks.latency.record import BundleFacts, Readings, Round, Row, Run

QUIET = Readings(seconds=1.0, ours=0.9, others=0.0, stolen=0.0, clock_mhz=(2600.0, 2600.0), throttled=0)


def draw_row(
    milliseconds: float,
    *,
    rounds: int = 5,
    noise: float = 0.01,
    seed: int = 0,
    machine: Readings = QUIET,
    facts: dict[str, float] | None = None,
    **fields: object,
) -> Row:
    """A row of drawn times: each process has its own level, each query varies about it."""
    random = np.random.default_rng(seed)
    drawn = [
        milliseconds * random.lognormal(0, noise) * random.lognormal(0, noise, 20) for _ in range(rounds)
    ]
    made = [
        Round(milliseconds=times.tolist(), steady=True, machine=machine, facts=facts or {}) for times in drawn
    ]
    names = {"stage": "vision", "variant": "onnxruntime fp32", "scenario": "SingleStream"}
    return Row(**(names | fields), rounds=made)  # type: ignore[arg-type]


def draw_run(rows: Sequence[Row], **fields: object) -> Run:
    """A run of these rows."""
    facts = BundleFacts(
        name="tvau-drawn",
        sha256="0" * 64,
        licence="Apache-2.0",
        synthetic=False,
        width=252,
        height=140,
        temporal_patches=8,
        frames_per_second=4,
    )
    default = {
        "created": "2026-01-01T00:00:00Z",
        "suite": "quick",
        "source": "drawn, h264 640x360, 25 frames/s",
        "bundle": facts,
        "fingerprint": {"cpu": "Some CPU", "cores": 2, "virtual": False},
    }
    return Run(**(default | fields), rows=list(rows))  # type: ignore[arg-type]


@pytest.fixture(name="draw_row", scope="session")
def _draw_row() -> Callable[..., Row]:
    return draw_row


@pytest.fixture(name="draw_run", scope="session")
def _draw_run() -> Callable[..., Run]:
    return draw_run
