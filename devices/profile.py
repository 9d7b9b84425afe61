"""Device profiles: what a target has, what its software brings, and what suits it; one TOML file for each.

Each fact names its source in the profile's table `sources`, by a key of `sources.toml`; a key of `sources` stands for
a table or for one value of it ("memory", "memory.system").
"""

import difflib
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from tvau_edge.devices.errors import TvauError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOLDER = Path(__file__).parent
_FACTS = ("jetpack", "memory", "cpu", "gpu", "dla", "compute", "power", "match", "prefer")


class DeviceError(TvauError):
    """A device is unknown, or a profile is wrong."""


class Table(BaseModel):
    """Base of the profiles' tables: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Table):
    """Where a fact comes from."""

    title: str
    url: str | None = None
    read: Annotated[
        Literal["excerpt", "known", "derived", "ours"],
        Field(description="looked up, cited from knowledge, our arithmetic, or our choice"),
    ]


class Memory(Table):
    """The memory that the model's parts share."""

    bytes: Annotated[PositiveInt, Field(description="of the module or machine")]
    bandwidth: Annotated[PositiveInt, Field(description="bytes per second")]
    unified: Annotated[bool, Field(description="CPU and accelerator share it")]
    system: Annotated[NonNegativeInt, Field(description="bytes that kernel and services take")]


class Cpu(Table):
    """The processor; `hz` is its largest clock."""

    name: str
    cores: PositiveInt
    hz: PositiveInt
    features: Annotated[list[str], Field(description="as /proc/cpuinfo names them")]


class Gpu(Table):
    """The graphics processor; `sm` is its compute capability."""

    name: str
    sm: Annotated[str, Field(pattern=r"^\d+\.\d$")]
    cuda_cores: PositiveInt
    tensor_cores: NonNegativeInt
    hz: PositiveInt


class Dla(Table):
    """Deep learning accelerators. Noted, not used: they have neither attention nor LayerNorm."""

    cores: PositiveInt
    int8: Annotated[PositiveInt, Field(description="dense operations per second, all cores")]


class Compute(Table):
    """Dense peaks of what runs the networks, operations per second; a multiplication and an addition are two."""

    on: Literal["cpu", "gpu"]
    int8: PositiveInt
    fp16: PositiveInt
    fp32: PositiveInt
    int8_per_cycle: Annotated[
        PositiveInt | None, Field(description="of one core, for machines of other sizes")
    ] = None
    fp16_per_cycle: PositiveInt | None = None
    fp32_per_cycle: PositiveInt | None = None
    int8_share: Annotated[
        float | None, Field(gt=0, le=1, description="of the int8 peak that is reached, where it was measured")
    ] = None


class PowerMode(Table):
    """A power mode, as nvpmodel names it; 0 watts where the mode sets no limit."""

    name: str
    watts: NonNegativeInt


class Prefer(Table):
    """What suits the device, per stage."""

    vision: Literal["onnxruntime", "openvino", "tensorrt"]
    precisions: Annotated[
        list[Literal["fp32", "bf16", "int8"]],
        Field(min_length=1, description="of the vision graph on its back end, the best first"),
    ]
    rae: Literal["onnxruntime", "openvino", "tensorrt"]
    gguf: str
    gpu_layers: Annotated[int, Field(ge=-1, description="n_gpu_layers of llama.cpp; -1: all")]
    threads: PositiveInt


class Match(Table):
    """How the device is known: by device tree, by the CPU's name, or by the CPU's features."""

    compatible: list[str] = []
    super: Annotated[bool, Field(description="flashed with NVIDIA's Super configuration")] = False
    cpu: Annotated[str | None, Field(description="regular expression on the CPU's name")] = None
    features: Annotated[list[str], Field(description="all of these")] = []
    any: Annotated[list[str], Field(description="and one of these, if there are some")] = []


class JetPack(Table):
    """What a release of JetPack brings; versions are beginnings of the full ones."""

    jetpack: str
    l4t: str
    ubuntu: str
    cuda: str
    tensorrt: str
    python: str
    source: str


class Profile(Table):
    """One device."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    family: Literal["jetson", "raspberry-pi", "x86", "arm"]
    machine: Annotated[Literal["aarch64", "x86_64"], Field(description="as `uname -m` says")]
    note: str = ""
    jetpack: Annotated[list[str], Field(description="releases that run on it")] = []
    memory: Memory
    cpu: Cpu
    gpu: Gpu | None = None
    dla: Dla | None = None
    compute: Compute
    power: list[PowerMode] = []
    prefer: Prefer
    match: Match
    sources: dict[str, str]

    def source_key(self, fact: str) -> str:
        """Key of the source of a fact, such as "memory.bandwidth"."""
        return self.sources[fact if fact in self.sources else fact.split(".")[0]]

    def facts(self) -> list[str]:
        """Names of all facts that need a source, such as "memory.bandwidth"."""
        names = []
        for part, value in self.model_dump(exclude_defaults=True, include=set(_FACTS)).items():
            names += [f"{part}.{key}" for key in value] if isinstance(value, dict) else [part]
        return names


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / name).read_text(encoding="utf-8"))


@cache
def sources() -> dict[str, Source]:
    """Where the facts come from, by the key that profiles use."""
    table = _read("sources.toml")
    return {key: Source.model_validate(value) for key, value in table.items()}


@cache
def jetpacks() -> dict[str, JetPack]:
    """The releases of JetPack, by their version."""
    table = _read("jetpack.toml")
    releases = [JetPack.model_validate(value) for value in table["release"]]
    return {release.jetpack: release for release in releases}


def parse_profile(name: str, text: str) -> Profile:
    """Read a profile.

    Raises:
        DeviceError: it is no TOML, has a wrong key or value, or a fact without a source.
    """
    try:
        profile = Profile.model_validate({"name": name, **tomllib.loads(text)})
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"profile {name}: not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DeviceError(f"profile {name}: {key}: {first['msg']}") from error
    for fact in profile.facts():
        if not {fact, fact.split(".")[0]} & profile.sources.keys():
            raise DeviceError(f"profile {name}: {fact} has no source")
    for key, source in profile.sources.items():
        if source not in sources():
            raise DeviceError(f"profile {name}: source {source!r} of {key} is not in sources.toml")
    for release in profile.jetpack:
        if release not in jetpacks():
            raise DeviceError(f"profile {name}: JetPack {release} is not in jetpack.toml")
    return profile


@cache
def profiles() -> dict[str, Profile]:
    """All profiles by name, in the order of their names."""
    found = sorted((_FOLDER / "profiles").glob("*.toml"))
    return {file.stem: parse_profile(file.stem, file.read_text(encoding="utf-8")) for file in found}


def profile(name: str) -> Profile:
    """The profile of a device.

    Raises:
        DeviceError: there is none of that name; says which are near.
    """
    known = profiles()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`tvau devices list` names all"
    raise DeviceError(f"unknown device {name!r}; {hint}")
