"""Which cases a bundle has on this machine, and how long each is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from tvau_edge.benchmarks.latency.errors import BenchError
from tvau_edge.benchmarks.latency.job import Case
from tvau_edge.benchmarks.latency.worker import PEERS
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.detection.choice import Choice, choose_graph, runs_on
from tvau_edge.runtime.manifest import GraphFile

MULTI_STREAM = 8  # samples per query, as MLPerf Inference has it
OFFLINE = 16
_MESSAGES = 4000  # of one query: enough that connecting and the first commit do not count


@dataclass(frozen=True, slots=True)
class Suite:
    """How long to measure.

    Attributes:
        name: for the record.
        rounds: processes per case.
        queries: of all rounds together, after which a case is done.
        seconds: of a round, after which it is done as well.
        warm_up: seconds of a round, at most.
        matrix: width of the matrices of the peak.
        cameras: seconds that each number of cameras is tried; 0 leaves that out.
        thorough: measure MultiStream and Offline on every graph, not on ours alone.
    """

    name: str
    rounds: int
    queries: int
    seconds: float
    warm_up: float
    matrix: int
    cameras: float
    thorough: bool = False


SUITES = {
    "quick": Suite("quick", 5, 160, 0.6, 0.6, 1024, 2.0),
    # MLPerf asks 1,024 queries of SingleStream; a round that takes longer than its time ends before.
    "full": Suite("full", 5, 1024, 4.0, 2.0, 2048, 8.0, thorough=True),
}


def cases(
    bundle: Bundle, suite: Suite, *, checkpoint: Path | None = None, backend: str = "auto"
) -> list[Case]:
    """The cases of a bundle, in the order in which each round takes them; like stands beside like."""
    ours = choose_graph(bundle.manifest.vision, backend, "auto")
    found = _vision(bundle, ours, suite, checkpoint)
    found += [
        Case(measure="decode", stage="decode", variant="PyAV", unit="frame"),
        Case(measure="sample", stage="sample", variant="by time stamp"),
        Case(
            measure="beside",
            stage="beside the models",
            variant="decode, sample, heatmap, trigger",
            group="vision SingleStream",
            backend=backend,
        ),
        *_rae(bundle, backend),
    ]
    found += _language(bundle)
    found += [
        Case(measure="publish", stage="publish", variant="outbox to subscriber", unit="message"),
        Case(measure="glass_to_mqtt", stage="glass to MQTT", variant=_name(ours), backend=backend),
        Case(
            measure="outbox",
            stage="deliver",
            variant="outbox",
            unit="message",
            samples=_MESSAGES,
            group="deliver",
            ours=True,
        ),
        Case(
            measure="paho",
            stage="deliver",
            variant="paho alone",
            unit="message",
            samples=_MESSAGES,
            group="deliver",
        ),
        Case(
            measure="start", stage="start", variant="first heatmap", unit="start", once=True, backend=backend
        ),
    ]
    if bundle.manifest.language:
        found.append(
            Case(
                measure="start",
                stage="start",
                variant="first answers",
                unit="start",
                once=True,
                size=1,
                backend=backend,
            )
        )
    return found + _limits(suite)


def _name(graph: Choice | GraphFile) -> str:
    return f"{graph.backend} {graph.precision}"


def _vision(bundle: Bundle, ours: Choice, suite: Suite, checkpoint: Path | None) -> list[Case]:
    found = []
    graphs = [Choice(graph.backend, graph.precision, graph.file) for graph in bundle.manifest.vision]
    # What OpenVINO computes in bf16 is its fp32 graph; a CPU that has no bf16 says so in the row.
    graphs += [
        Choice("openvino", "bf16", graph.file)
        for graph in graphs
        if (graph.backend, graph.precision) == ("openvino", "fp32")
    ]
    ours = Choice(ours.backend, ours.precision, ours.file)
    if ours not in graphs:  # another back end that runs the same file
        graphs.insert(0, ours)
    for scenario, samples in (("SingleStream", 1), ("MultiStream", MULTI_STREAM), ("Offline", OFFLINE)):
        for graph in graphs if scenario == "SingleStream" or suite.thorough else [ours]:
            found.append(
                Case(
                    measure="vision",
                    stage="vision",
                    variant=_name(graph),
                    scenario=scenario,  # type: ignore[arg-type]
                    samples=samples,
                    group=f"vision {scenario}",
                    ours=graph == ours,
                    file=graph.file,
                    backend=graph.backend,
                    precision=graph.precision,
                )
            )
        if scenario == "SingleStream":
            found += _vision_peers(checkpoint)
    found.append(
        Case(
            measure="window",
            stage="window of T' patches",
            variant=f"encoded anew, {_name(ours)}",
            unit="step",
            group="vision SingleStream",
            backend=ours.backend,
            precision=ours.precision,
        )
    )
    found += [
        Case(
            measure="load",
            stage="load",
            variant=_name(graph),
            unit="load",
            once=True,
            backend=graph.backend,
            precision=graph.precision,
        )
        for graph in graphs
    ]
    return found


def _vision_peers(checkpoint: Path | None) -> list[Case]:
    single = {"stage": "vision", "scenario": "SingleStream", "group": "vision SingleStream"}
    peers = []
    if checkpoint is not None:
        for peer in sorted(entry_points(group=PEERS), key=lambda entry: entry.name):
            for precision in ("fp32", "bf16"):
                peers.append(
                    Case(
                        measure=peer.name,
                        variant=f"{peer.name} {precision} eager",
                        precision=precision,
                        **single,
                    )  # type: ignore[arg-type]
                )
    return peers


def _rae(bundle: Bundle, backend: str) -> list[Case]:
    files = bundle.manifest.rae
    graphs = [Choice(graph.backend, graph.precision, graph.file) for graph in files]
    if all(graph.backend != backend for graph in files) and any(runs_on(backend, graph) for graph in files):
        graphs.insert(
            0, choose_graph(files, backend, "auto", "rae")
        )  # another back end that runs the same file
    return [
        Case(
            measure="rae",
            stage="RAE",
            variant=_name(graph),
            unit="window",
            file=graph.file,
            backend=graph.backend,
        )
        for graph in graphs
    ]


def _language(bundle: Bundle) -> list[Case]:
    if bundle.manifest.language is None:
        return []
    file = bundle.manifest.language.files[0]
    return [
        Case(measure="prefill", stage="prefill", variant=file.type, unit="window"),
        Case(measure="tokens", stage="answer", variant=file.type, unit="token", file=file.file),
        Case(
            measure="dialogue",
            stage="dialogue",
            variant=f"ours, {file.type}",
            unit="window",
            group="dialogue",
            ours=True,
        ),
        Case(
            measure="naive_dialogue",
            stage="dialogue",
            variant=f"a call per question, {file.type}",
            unit="window",
            group="dialogue",
        ),
    ]


def _limits(suite: Suite) -> list[Case]:
    kinds = [("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    kinds += [("openvino", precision) for precision in ("fp32", "bf16", "int8")]
    products = [
        Case(
            measure="matmul",
            stage="limit: matrix product",
            variant=f"{backend} {precision}",
            unit="product",
            backend=backend,
            precision=precision,
            size=suite.matrix,
        )
        for backend, precision in kinds
    ]
    return [*products, Case(measure="bandwidth", stage="limit: memory", variant="read", unit="pass")]


def choose_stages(found: list[Case], only: Sequence[str]) -> list[Case]:
    """The cases of some stages; all when none is named.

    Raises:
        BenchError: there is no such stage.
    """
    known = list(dict.fromkeys(case.stage for case in found))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise BenchError(f"--only {','.join(unknown)}: there is no such stage; known: {', '.join(known)}")
    return [case for case in found if not only or case.stage in only]


def choose_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        BenchError: there is none.
    """
    if name not in SUITES:
        raise BenchError(f"--suite {name}: there is no such suite; known: {', '.join(SUITES)}")
    return SUITES[name]
