"""Which graph of the bundle runs on this machine, on which back end, in which precision, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from tvau_edge.devices.detection import computes_bf16, detect
from tvau_edge.devices.profile import DeviceError
from tvau_edge.runtime.backends.graphs import BACKENDS
from tvau_edge.runtime.errors import BackendError, MissingExtraError
from tvau_edge.runtime.extras import installed
from tvau_edge.runtime.manifest import GraphFile

PRECISIONS = ("int8", "fp16", "fp32")  # the preferred one first; export holds each to the checkpoint
Part = Literal["vision", "rae"]


@dataclass(frozen=True, slots=True)
class Preference:
    """What suits this machine.

    Attributes:
        backend: of one part, by the machine's profile; empty when no profile fits.
        precisions: the best first.
        bf16: the CPU computes bfloat16 itself.
        device: name of the profile.
    """

    backend: str = ""
    precisions: tuple[str, ...] = ()
    bf16: bool = False
    device: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A graph, and how it is run.

    Attributes:
        backend: that runs it; not always the one that the manifest names, see `runs_on`.
        precision: that it is computed in; "bf16" is an fp32 graph with its products in bfloat16.
        file: of the bundle.
        reason: why this one, for the log.
    """

    backend: str
    precision: str
    file: str
    reason: str = ""


@cache
def preference(part: Part) -> Preference:
    """What the profile of this machine prefers for a part; nothing where no profile fits."""
    try:
        found = detect()
    except DeviceError:
        return Preference()
    prefer, bf16 = found.profile.prefer, computes_bf16(found.machine)
    # The RAE runs once per dialogue: there is no time to be won in it, and it stays in fp32.
    precisions = tuple(prefer.precisions) if part == "vision" else ("fp32",)
    return Preference(prefer.vision if part == "vision" else prefer.rae, precisions, bf16, found.profile.name)


def runs_on(backend: str, graph: GraphFile) -> bool:
    """Whether a back end runs a graph: its own, and TensorRT the plain fp32 ONNX of ONNX Runtime as well.

    ONNX Runtime's INT8 graph is not for TensorRT, which takes no unsigned activations.
    """
    if graph.backend == backend:
        return True
    return backend == "tensorrt" and graph.backend == "onnxruntime" and graph.precision == "fp32"


def choose_graph(graphs: Sequence[GraphFile], backend: str, precision: str, part: Part = "vision") -> Choice:
    """Pick a graph of the bundle for this machine.

    What is "auto" follows the machine's profile (`devices/profiles`) where the bundle has the graph and the back end
    is installed. Else it is the first back end of `BACKENDS` that is installed and has a graph, and of its graphs the
    first of `PRECISIONS`. TensorRT is never taken for a preference: its engine has to be built before.

    Args:
        graphs: of the bundle, of one part.
        backend: a name in `BACKENDS`, or "auto".
        precision: fp32, fp16, int8, bf16, or "auto".
        part: that the graphs are of.

    Raises:
        MissingExtraError: there are graphs, but only for back ends that are not installed.
        BackendError: there is no such graph, or no such back end; says which there are. Or bf16 is asked of a CPU
            that does not compute it.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise BackendError(f"unknown back end {backend!r}; known: auto, {', '.join(BACKENDS)}")
    wanted = preference(part)
    possible = [
        choice
        for name in (BACKENDS if backend == "auto" else [backend])
        for choice in _ways(graphs, name)
        if precision in ("auto", choice.precision)
    ]
    if not possible:
        there = ", ".join(sorted(f"{g.backend} {g.precision}" for g in graphs))
        raise BackendError(
            f"the bundle has no graph for back end {backend} at precision {precision}; it has: {there}"
        )
    if precision == "bf16" and not wanted.bf16:
        raise BackendError(
            "precision bf16: this CPU does not compute in bfloat16 (it has neither amx_bf16 nor avx512_bf16); "
            "choose auto or fp32"
        )
    able = [choice for choice in possible if _installed(choice.backend)]
    if not able:
        name = possible[0].backend
        raise MissingExtraError(f"back end {name}", BACKENDS[name][1] or name)
    return _best(able, wanted, precision)


def _ways(graphs: Sequence[GraphFile], backend: str) -> list[Choice]:
    """The ways in which a back end runs the graphs, its preferred precision first."""
    own = sorted(
        (graph for graph in graphs if runs_on(backend, graph)),
        key=lambda graph: PRECISIONS.index(graph.precision),
    )
    ways = [Choice(backend, graph.precision, graph.file) for graph in own]
    if backend == "openvino":
        ways += [Choice(backend, "bf16", graph.file) for graph in own if graph.precision == "fp32"]
    return ways


def _installed(backend: str) -> bool:
    _, extra = BACKENDS[backend]
    return extra is None or installed(extra)


def _best(able: Sequence[Choice], wanted: Preference, precision: str) -> Choice:
    """What the profile prefers, if it is there and needs no engine; else the first that nobody has to ask for."""
    if wanted.backend != "tensorrt":
        for kind in wanted.precisions:
            if kind == "bf16" and not wanted.bf16:
                continue
            for choice in able:
                if (choice.backend, choice.precision) == (wanted.backend, kind):
                    return _because(choice, f"profile {wanted.device} prefers it")
    first = next((c for c in able if c.precision != "bf16" or precision == "bf16"), able[0])
    if not wanted.device:
        return _because(first, "no device profile fits this machine")
    prefers = f"{wanted.backend} {' or '.join(wanted.precisions)}"
    return _because(
        first, f"profile {wanted.device} prefers {prefers}, which was not asked for or is not there"
    )


def _because(choice: Choice, reason: str) -> Choice:
    return Choice(choice.backend, choice.precision, choice.file, reason)
