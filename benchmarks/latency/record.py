"""What a benchmark writes down: schema `tvau.bench/1`, one JSON file per run, readable again years later.

Raw times are kept, per process, so that every figure can be computed anew; a figure stands nowhere without them.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvau_edge.benchmarks.latency.errors import BenchError

SCHEMA: Literal["tvau.bench/1"] = "tvau.bench/1"

# MLPerf Inference's names: one sample after another; one query of several samples; all samples at hand.
Scenario = Literal["SingleStream", "MultiStream", "Offline"]


class Part(BaseModel):
    """Base of the tables: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Readings(Part):
    """What the machine did while a round was measured; what it does not tell is None, never zero.

    Attributes:
        seconds: wall time.
        ours: share of all cores' time that the measured process used, 0..1.
        others: share that other processes used.
        stolen: share that the hypervisor gave to others.
        clock_mhz: lowest and highest mean clock of the cores that was seen.
        temperature: highest of the machine's sensors, degrees Celsius.
        throttled: how often a core was throttled meanwhile.
        joules: by sensor; of the whole package or board, not of the process.
        gpu_bytes: most memory in use on the GPU, by anyone.
    """

    seconds: float
    ours: float | None = None
    others: float | None = None
    stolen: float | None = None
    clock_mhz: tuple[float, float] | None = None
    temperature: float | None = None
    throttled: int | None = None
    joules: dict[str, float] = {}
    gpu_bytes: int | None = None


class Round(Part):
    """One fresh process: what it measured of one case.

    Attributes:
        milliseconds: of each query, in order.
        warm_up: queries that were left out before.
        steady: whether the times had settled by then; None for a case that is measured once per process.
        machine: meanwhile.
        memory_peak, memory_steady: resident bytes of the process, at most and at the end.
        facts: what else the case found, such as `bit_equal`.
    """

    milliseconds: Annotated[list[float], Field(min_length=1)]
    warm_up: int = 0
    steady: bool | None = None
    machine: Readings
    memory_peak: int | None = None
    memory_steady: int | None = None
    facts: dict[str, bool | int | float | str] = {}


class Row(Part):
    """One thing that was measured, or the reason why it was not.

    Attributes:
        stage: such as "vision".
        variant: how, such as "onnxruntime int8".
        scenario: MLPerf's name, where it has one.
        unit: what a sample is: "temporal patch", "frame", "token", "message".
        samples: of one query.
        group: rows of one group do the same work; `ours` marks what the runtime does by itself.
        file: of the bundle, whose operations are counted.
        synthetic: random weights: times mean something, answers do not.
        rounds: one per process.
        missing: why there are no rounds.
    """

    stage: str
    variant: str
    scenario: Scenario | None = None
    unit: str = "temporal patch"
    samples: int = 1
    group: str = ""
    ours: bool = False
    file: str = ""
    synthetic: bool = False
    rounds: list[Round] = []
    missing: str = ""

    @property
    def key(self) -> str:
        """Names the row, within its run and across runs."""
        return " · ".join(part for part in (self.stage, self.variant, self.scenario) if part)

    @property
    def times(self) -> list[list[float]]:
        """Milliseconds of each query, by process."""
        return [list(round_.milliseconds) for round_ in self.rounds]


class Work(Part):
    """What one sample of a file of the bundle takes, counted from the file; see `counts`.

    Attributes:
        operations: multiplications and additions of matrix products and convolutions, by precision.
        weights: bytes of constants.
        least: bytes that must move at least: constants, inputs and outputs once.
        most: bytes if every tensor between two nodes went to memory and back.
    """

    operations: dict[str, float]
    weights: int
    least: int
    most: int


class BundleFacts(Part):
    """Which bundle."""

    name: str
    sha256: str
    licence: str
    synthetic: bool
    width: int
    height: int
    temporal_patches: int
    frames_per_second: float


class Cameras(Part):
    """How many cameras were carried.

    Attributes:
        seconds: that each number was tried for.
        rate: temporal patches per second of each camera.
        dropped: by number of cameras, patches dropped; the search's steps in order of the number.
        most: largest number without drops; None when one camera was too much.
    """

    variant: str
    seconds: float
    rate: float
    dropped: dict[int, int]
    most: int | None


class Run(Part):
    """A whole run."""

    schema_: Annotated[Literal["tvau.bench/1"], Field(alias="schema")] = SCHEMA
    created: Annotated[str, Field(description="RFC 3339, UTC")]
    suite: str
    source: Annotated[str, Field(description="what was decoded: size, rate, codec; not its name")]
    bundle: BundleFacts
    fingerprint: dict[str, bool | str | int | float | list[str] | dict[str, str]]
    rows: list[Row] = []
    work: dict[str, Work] = {}
    memory: Annotated[dict[str, int], Field(description="resident bytes of bare and of idle processes")] = {}
    cameras: Cameras | None = None
    interrupted: bool = False

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    def row(self, key: str) -> Row | None:
        """The row of that key, or None."""
        return next((row for row in self.rows if row.key == key), None)

    def measured(self) -> list[Row]:
        """The rows that have times."""
        return [row for row in self.rows if row.rounds]


def write_run(run: Run, path: Path) -> None:
    """Write a run as JSON, whole or not at all: an older file stays until the new one is there."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(run.model_dump_json(indent=1, exclude_defaults=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BenchError(f"--out {path}: cannot be written: {error.strerror}") from error


def read_run(path: Path) -> Run:
    """Read a run.

    Raises:
        BenchError: it cannot be read, is of another schema, or is no run at all.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is not JSON ({error}); it is no run of `tvau bench`") from error
    schema = table.get("schema") if isinstance(table, dict) else None
    if schema != SCHEMA:
        raise BenchError(
            f"{path} has schema {schema!r}; this version of tvau-edge reads {SCHEMA!r}: run `tvau bench` again "
            "with this version, or compare with the version that made it"
        )
    try:
        return Run.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BenchError(
            f"{path}: {place}: {first['msg']}; it was altered, or written by another version"
        ) from error
