"""Runs the cases of a suite in turns, each in a fresh process, and keeps what was measured whatever happens."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from tvau_edge.benchmarks.latency.cameras import most_cameras
from tvau_edge.benchmarks.latency.counts import count_gguf, count_onnx
from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.fingerprint import fingerprint
from tvau_edge.benchmarks.latency.footage import describe, draw_footage
from tvau_edge.benchmarks.latency.job import Case, Job
from tvau_edge.benchmarks.latency.memory import idle_processes
from tvau_edge.benchmarks.latency.record import BundleFacts, Cameras, Round, Row, Run, Work, write_run
from tvau_edge.benchmarks.latency.suite import Suite, cases, choose_stages
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import TvauError

_LIMIT = 900.0  # seconds after which a worker is given up
Advance = Callable[[str, int, int], None]


class Interrupted(Exception):
    """The user, or the system, asked to stop."""


def run_suite(
    bundle: Bundle,
    suite: Suite,
    out: Path | None,
    *,
    source: Path | None = None,
    checkpoint: Path | None = None,
    synthetic: bool = False,
    threads: int | None = None,
    backend: str = "auto",
    only: Sequence[str] = (),
    advance: Advance | None = None,
) -> Run:
    """Measure a bundle.

    Args:
        bundle: verified.
        suite: how long.
        out: the run is written here after each round; None keeps it in memory.
        source: video that frames come from; None draws one.
        checkpoint: that the bundle was made from, for torch beside it.
        synthetic: the bundle has random weights.
        threads: CPU threads of each stage; None leaves it to the runtime.
        backend: of the vision graph that is ours.
        only: stages to measure; empty for all.
        advance: told of progress as (what comes, done, in all).

    Returns:
        What was measured; `interrupted` if Ctrl-C or SIGTERM came before the end.

    Raises:
        BenchError: there is no such stage.
        BackendError: nothing of the bundle runs here.
    """
    with TemporaryDirectory(prefix="tvau-bench-") as name:
        folder = Path(name)
        video = source or folder / "drawn.mp4"
        if source is None:
            geometry = bundle.manifest.geometry
            draw_footage(video, max(640, geometry.width // 2 * 2), max(360, geometry.height // 2 * 2))
        chosen = choose_stages(cases(bundle, suite, checkpoint=checkpoint, backend=backend), only)
        state = _State(bundle, suite, chosen, synthetic, describe(video, source is None), out)
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            _measure(state, chosen, video, checkpoint, threads, folder, advance)
            if suite.cameras and not only:
                if advance:
                    advance("cameras", len(chosen) * suite.rounds, len(chosen) * suite.rounds)
                state.cameras = most_cameras(bundle, video, suite.cameras, threads, backend)
        except (KeyboardInterrupt, Interrupted):
            state.interrupted = True
        finally:
            signal.signal(signal.SIGTERM, before)
        return state.save()


def _interrupt(*_: object) -> None:
    raise Interrupted


class _State:
    """The run as far as it has come."""

    def __init__(
        self,
        bundle: Bundle,
        suite: Suite,
        chosen: Sequence[Case],
        synthetic: bool,
        source: str,
        out: Path | None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle, self.suite = bundle, suite
        self.rounds: dict[int, list[Round]] = {number: [] for number in range(len(chosen))}
        self.missing: dict[int, str] = {}
        self.cameras: Cameras | None = None
        self.interrupted = False
        self._chosen, self._synthetic, self._out = chosen, synthetic, out
        self._facts = Run(
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            suite=suite.name,
            source=source,
            bundle=BundleFacts(
                name=manifest.name,
                sha256=bundle.sha256,
                licence=manifest.licence,
                synthetic=synthetic,
                width=manifest.geometry.width,
                height=manifest.geometry.height,
                temporal_patches=manifest.geometry.temporal_patches,
                frames_per_second=manifest.geometry.frames_per_second,
            ),
            fingerprint=fingerprint(),
            work=_work(bundle, chosen),
            memory=idle_processes(),
        )

    def save(self) -> Run:
        """The run, written if there is a file for it."""
        rows: list[Row] = []
        for number, case in enumerate(self._chosen):
            rounds = self.rounds[number]
            missing = self.missing.get(number, "") or ("" if rounds else "the run was interrupted before")
            row = case.row(self._synthetic, "" if rounds else missing)
            rows.append(row.model_copy(update={"rounds": rounds}))
        update = {"rows": rows, "cameras": self.cameras, "interrupted": self.interrupted}
        run = self._facts.model_copy(update=update)
        if self._out is not None:
            write_run(run, self._out)
        return run


def _work(bundle: Bundle, chosen: Sequence[Case]) -> dict[str, Work]:
    found = {}
    for file in sorted({case.file for case in chosen if case.file}):
        try:
            if file.endswith(".onnx"):
                found[file] = count_onnx(bundle.file(file))
            elif file.endswith(".gguf"):
                found[file] = count_gguf(bundle.file(file))
        except TvauError:
            continue  # onnx or gguf is not installed: blank
    for file in [case.file for case in chosen if case.file.endswith(".xml")]:
        # An OpenVINO graph in fp32 is made from the ONNX graph of its name: the same products.
        twin = file.removesuffix(".xml") + ".onnx"
        if twin in bundle.manifest.files and "int8" not in file:
            found[file] = found.get(twin) or count_onnx(bundle.file(twin))
    return found


def _measure(
    state: _State,
    chosen: Sequence[Case],
    video: Path,
    checkpoint: Path | None,
    threads: int | None,
    folder: Path,
    advance: Advance | None,
) -> None:
    suite, bundle = state.suite, state.bundle
    total = len(chosen) * suite.rounds
    for turn in range(suite.rounds):
        # Every other turn goes backwards, so that what comes first in one comes last in the next.
        order = range(len(chosen)) if turn % 2 == 0 else reversed(range(len(chosen)))
        for done, number in enumerate(order):
            case = chosen[number]
            if advance:
                advance(case.row(False).key, turn * len(chosen) + done, total)
            if number in state.missing:
                continue
            job = Job(
                case=case,
                bundle=bundle.path.absolute(),
                source=video.absolute(),
                checkpoint=checkpoint.absolute() if checkpoint else None,
                threads=threads,
                queries=max(2, -(-suite.queries // suite.rounds)),
                seconds=suite.seconds,
                warm_up=suite.warm_up,
                spawned=time.monotonic(),
            )
            found = run_worker(job, folder)
            if isinstance(found, str):
                state.missing[number] = found
            else:
                state.rounds[number].append(found)
            state.save()


def run_worker(job: Job, folder: Path, limit: float = _LIMIT) -> Round | str:
    """Measure one round in a fresh process; returns the round, or why there is none."""
    out = folder / "round.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tvau_edge.benchmarks.latency.worker", str(out)]
    # Nobody else's thread settings: what a stage takes is the runtime's choice or --threads.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    try:
        _, errors = process.communicate(job.model_dump_json().encode(), timeout=limit)
    except subprocess.TimeoutExpired:
        return f"gave no result within {limit:g} s"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    try:
        text = out.read_text(encoding="utf-8")
        table = json.loads(text)
        return str(table["missing"]) if "missing" in table else Round.model_validate_json(text)
    except (OSError, ValueError, ValidationError):
        return f"its process ended with status {process.returncode}: {_last_line(errors)}"


def _last_line(errors: bytes) -> str:
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def check_backend(bundle: Bundle, backend: str) -> None:
    """Make sure, in a fresh process, that the runtime's own choice can be loaded on this machine.

    Raises:
        BenchError: it cannot; says why, as for a bundle that was made for another device.
    """
    case = Case(measure="load", stage="load", variant=backend, backend=backend, once=True)
    job = Job(case=case, bundle=bundle.path.absolute(), source=bundle.path, queries=1, seconds=0, warm_up=0)
    with TemporaryDirectory(prefix="tvau-bench-") as name:
        found = run_worker(job, Path(name))
    if isinstance(found, str):
        raise BenchError(f"{bundle.path}: the runtime cannot load it on this machine: {found}")
