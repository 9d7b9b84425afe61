"""`tvau quantize`: a bundle becomes a smaller and faster one, compared with itself before it may stand."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tvau_edge.quantize import footage as watching
from tvau_edge.quantize import gate, report
from tvau_edge.quantize.errors import GateError, QuantizeError
from tvau_edge.quantize.footage import Footage
from tvau_edge.quantize.gate import Comparison, Limits, Seen
from tvau_edge.quantize.gguf_types import make_types
from tvau_edge.quantize.language import TYPES
from tvau_edge.quantize.steps import Silent, Steps
from tvau_edge.quantize.targets import TARGETS, Made, Task
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle, BundleWriter, sha256_of
from tvau_edge.runtime.extras import installed, require
from tvau_edge.runtime.manifest import Check, FileEntry, GraphFile, Language, LanguageFile, Manifest

_LIBRARIES = ("onnx", "onnxruntime", "openvino", "nncf", "llama-cpp-python", "tvau-edge")
KEY = "tvau quantize"  # of our report in the manifest
_METHOD = 3  # counted up when a step comes to do something else, so that no older half is gone on with


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        calibration: videos, folders or live sources.
        targets: of `TARGETS`.
        language: GGUF types, of `TYPES`; the first is the one that a runtime takes by itself.
        count: temporal patches to calibrate on.
        seconds: for which a live source is watched.
        agreement: least cosine of an INT8 graph's outputs; layers stay in float until it is reached.
        arithmetic: of what stays in float in OpenVINO, f32 or bf16.
        limits: of the gate.
        data: labelled data in UBnormal's or ShanghaiTech's layout, or None.
        accept: write the bundle although the gate refuses it.
    """

    calibration: Sequence[str]
    targets: Sequence[str] = ("onnx",)
    language: Sequence[str] = ()
    count: int = 32
    seconds: float = 120.0
    agreement: float = 0.995
    arithmetic: Literal["f32", "bf16"] = "f32"
    limits: Limits = field(default_factory=Limits)
    data: Path | None = None
    accept: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        bundle: the new one.
        report: as in its manifest.
        failures: what the gate had to say; only ever something when a person accepted it.
    """

    bundle: Bundle
    report: dict[str, Any]
    failures: tuple[str, ...]


def quantize_bundle(source: Path, out: Path, options: Options, steps: Steps | None = None) -> Outcome:
    """Quantize a bundle into a new one.

    Killed, it goes on where it was when it is called again with the same arguments; the old bundle is only read.

    Args:
        source: folder of the bundle, with its float graphs.
        out: folder of the new bundle; may be `source`, which is then replaced in one step.
        options: how.
        steps: shows progress.

    Raises:
        QuantizeError: the bundle lacks what it takes, or this machine cannot check a target.
        CalibrationError, SourceError: the footage cannot be used.
        GateError: the new graphs are worse than allowed; nothing was written to `out`.
        BundleError, DiskFullError: a bundle cannot be read or written.
        MissingExtraError: an optional part is not installed.
    """
    steps = steps or Silent()
    steps.begin("reading bundle")
    bundle = Bundle.open(source)
    check_options(bundle, options)
    work = Work(out, _facts(bundle, options))
    done = False
    try:
        outcome = _quantize(bundle, out, options, work, steps)
        done = True
    finally:
        work.close(remove=done)
    return outcome


def check_options(bundle: Bundle, options: Options) -> None:
    """Raise `QuantizeError` for what cannot be done with this bundle, before anything is."""
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown or not (options.targets or options.language):
        raise QuantizeError(
            f"--target {', '.join(unknown) or '(none)'}: unknown; known: {', '.join(TARGETS)}"
        )
    wrong = [kind for kind in options.language if kind not in TYPES]
    if wrong:
        raise QuantizeError(f"--llm {', '.join(wrong)}: unknown GGUF type; known: {', '.join(TYPES)}")
    if not options.calibration:
        raise QuantizeError(
            "--calibration is missing: name a video, a folder or an rtsp:// address of the scene"
        )
    if options.arithmetic == "bf16" and "openvino" in options.targets:
        from tvau_edge.quantize.openvino_int8 import cpu_has_bf16

        if not cpu_has_bf16():
            raise QuantizeError(
                "--float bf16: this machine's CPU does not compute bf16, so its accuracy cannot be checked here; use "
                "a CPU with avx512_bf16 or amx_bf16, or --float f32"
            )
    for kind in ("vision", "rae"):
        if options.targets and float_graph(bundle, kind) is None:
            there = ", ".join(f"{g.backend} {g.precision}" for g in getattr(bundle.manifest, kind))
            made = bundle.manifest.quantization.get(KEY)
            origin = (
                f"; it was made from {made['source']}" if isinstance(made, dict) and "source" in made else ""
            )
            raise QuantizeError(
                f"{bundle.path} has no {kind} graph in fp32 for ONNX Runtime, only {there}: it is quantized already"
                f"{origin}. Quantize the bundle that `tvau export` made of the checkpoint"
            )
    if options.data is not None:
        require("--data", ["bench"])
        from tvau_edge.benchmarks.dataset import find_layout

        find_layout(options.data)
    if options.language and bundle.language() is None:
        raise QuantizeError(
            f"{bundle.path} has no language model; export it with --llm f16, or leave out --llm"
        )


def float_graph(bundle: Bundle, kind: str) -> GraphFile | None:
    """The fp32 ONNX graph of kind vision or rae, or None."""
    graphs = getattr(bundle.manifest, kind)
    return next((g for g in graphs if g.backend == "onnxruntime" and g.precision == "fp32"), None)


def _facts(bundle: Bundle, options: Options) -> dict[str, Any]:
    """Everything that the steps follow from; the limits are the gate's alone."""
    facts = asdict(options)
    for key in ("limits", "accept", "data"):
        del facts[key]
    digests = {
        name: sha256_of(Path(name))
        for address in options.calibration
        for name in watching.expand(address)
        if "://" not in name and Path(name).is_file()
    }
    versions = {name: version(name) for name in _LIBRARIES if name != "llama-cpp-python" or installed("llm")}
    return {
        "method": _METHOD,
        "bundle": bundle.sha256,
        "options": facts,
        "footage": digests,
        "versions": versions,
    }


def _quantize(bundle: Bundle, out: Path, options: Options, work: Work, steps: Steps) -> Outcome:
    manifest = bundle.manifest
    steps.begin("watching the footage")
    footage = _footage(manifest, options, work, steps)
    steps.begin("float graph on the footage")
    seen = _seen(bundle, footage, work, steps)
    task = Task(bundle, work, footage, seen, options.agreement, options.arithmetic, steps)
    made: list[Made] = []
    for name in options.targets:
        made += TARGETS[name](task)
    languages = make_types(bundle, options.language, footage, work, steps)
    steps.begin("comparing float and INT8")
    candidate = _candidate(bundle, work, made, languages)
    comparisons = _compare(candidate, made, footage, seen, steps)
    failures = [text for comparison in comparisons for text in comparison.failures(options.limits)]
    failures += [text for graph in made for text in graph.failures]
    labelled: dict[str, Any] = {}
    if options.data:
        from tvau_edge.quantize.labelled import labelled_figures

        steps.begin("labelled data")
        labelled, worse = labelled_figures(
            candidate, made, languages, options.data, options.limits, work, steps
        )
        failures += worse
    result = {
        "source": f"{manifest.name}, sha256 {bundle.sha256[:12]}",
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "calibration": footage.record,
        "graphs": {graph.name: graph.record for graph in made},
        "language": {entry["type"]: entry for entry in languages},
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "labelled": labelled,
        "limits": asdict(options.limits),
        "failures": failures,
        "accepted": bool(failures and options.accept),
    }
    pages = report.write(work.folder, result, bundle, footage, seen, comparisons, candidate)
    if failures and not options.accept:
        kept = work.path(report.PAGE)
        raise GateError(
            "the gate refuses the quantized bundle, and nothing was written:\n  "
            + "\n  ".join(failures)
            + f"\nLook at {kept}; calibrate on more footage, raise --agreement, or run again with --accept to have "
            "the bundle all the same"
        )
    steps.begin("writing the bundle")
    return Outcome(_write(candidate, out, work, result, pages), result, tuple(failures))


def _footage(manifest: Manifest, options: Options, work: Work, steps: Steps) -> Footage:
    file = work.path("footage.npz")

    def make() -> dict[str, Any]:
        found = watching.collect(
            options.calibration, manifest.geometry, options.count, options.seconds, steps.advance
        )
        found.save(file)
        return found.record

    record = work.step("footage", [file.name], make)
    return Footage.load(file, record)


def _seen(bundle: Bundle, footage: Footage, work: Work, steps: Steps) -> Seen:
    file = work.path("float.npz")

    def make() -> dict[str, Any]:
        seen = gate.watch(bundle, "onnxruntime", "fp32", footage, steps.advance)
        seen.save(file)
        return {"events": seen.events}

    work.step("float", [file.name], make)
    return Seen.load(file)


def _candidate(
    bundle: Bundle, work: Work, made: Sequence[Made], languages: Sequence[dict[str, Any]]
) -> Bundle:
    """The new bundle in the work folder, so that the gate sees what a device will see."""
    manifest = bundle.manifest
    replaced = {(graph.kind, graph.file.backend, graph.file.precision) for graph in made}
    fresh = {graph.name for graph in made} | {e["file"] for e in languages if e["type"] != e["source"]}
    with BundleWriter(work.path("candidate")) as writer:
        kept = {
            kind: [g for g in getattr(manifest, kind) if (kind, g.backend, g.precision) not in replaced]
            for kind in ("vision", "rae")
        }
        dropped = {g.file for kind in kept for g in getattr(manifest, kind) if g not in kept[kind]}
        for name in manifest.files.keys() - fresh:
            if not any(_belongs(name, file) for file in dropped) and not name.startswith(report.STEM):
                shutil.copyfile(bundle.file(name), writer.path(name))
        for graph in made:
            for name in graph.files:
                _link(work.path(name), writer.path(name))
        new = [LanguageFile(type=entry["type"], file=entry["file"]) for entry in languages]
        for name in {e["file"] for e in languages if e["type"] != e["source"]}:
            _link(work.path(name), writer.path(name))
        language = manifest.language
        if language is not None and new:
            others = [file for file in language.files if file.type not in {f.type for f in new}]
            language = Language(**{**language.model_dump(), "files": [*new, *others]})

        def describe(files: dict[str, FileEntry]) -> Manifest:
            values = manifest.model_dump(by_alias=True) | {
                "vision": [*(g.file for g in made if g.kind == "vision"), *kept["vision"]],
                "rae": [*(g.file for g in made if g.kind == "rae"), *kept["rae"]],
                "language": language,
                "checks": [c for c in manifest.checks if c.artifact in files and c.artifact not in fresh],
                "files": files,
            }
            return Manifest.model_validate(_plain(values))

        return writer.finish(describe)


def _compare(
    candidate: Bundle, made: Sequence[Made], footage: Footage, seen: Seen, steps: Steps
) -> list[Comparison]:
    comparisons = []
    for graph in made:
        if graph.kind == "vision" and graph.runs_here:
            file = graph.file
            found = gate.watch(candidate, file.backend, file.precision, footage, steps.advance)
            comparisons.append(gate.compare(f"{file.backend} {file.precision}", seen, found, footage))
    return comparisons


def _write(candidate: Bundle, out: Path, work: Work, result: dict[str, Any], pages: Sequence[str]) -> Bundle:
    manifest = candidate.manifest
    size = sum(entry.size for entry in manifest.files.values())
    with BundleWriter(out, 0 if out.exists() else size) as writer:
        for name in manifest.files:
            _link(candidate.file(name), writer.path(name))
        for name in pages:
            shutil.copyfile(work.path(name), writer.path(name))

        def describe(files: dict[str, FileEntry]) -> Manifest:
            values = manifest.model_dump(by_alias=True) | {
                "created": result["created"],
                "checks": [*manifest.checks, *_checks(result)],
                "quantization": {**_without_old(manifest, result), KEY: _brief(result)},
                "files": files,
            }
            return Manifest.model_validate(_plain(values))

        return writer.finish(describe)


def _without_old(manifest: Manifest, result: dict[str, Any]) -> dict[str, object]:
    """Reports of older quantizers on files that are still there and are not ours."""
    gone = {KEY, *result["graphs"]}
    return {k: v for k, v in manifest.quantization.items() if k in manifest.files and k not in gone}


def _checks(result: dict[str, Any]) -> list[Check]:
    """What was compared, as the manifest says it of every file."""
    rows = {entry["graph"]: entry for entry in result["comparisons"]}
    checks = []
    for name, record in result["graphs"].items():
        if (row := rows.get(record.get("graph"))) is None:
            continue
        for tensor in ("h_c", "p_v"):
            checks.append(
                Check(
                    artifact=name,
                    against="fp32 of ONNX Runtime",
                    tensor=tensor,
                    metric="cosine",
                    value=row[f"{tensor}_cosine"],
                    limit=record["target"],
                    data=f"the user's footage, least of {row['patches']} temporal patches",
                )
            )
    return checks


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """The report as the manifest holds it: without what only the page shows."""
    calibration = {key: value for key, value in result["calibration"].items() if key != "patches"}
    return {**result, "calibration": calibration}


def _belongs(name: str, file: str) -> bool:
    """Whether a file of a bundle is that of a graph, or the weights beside it."""
    weights = f"{file.removesuffix('.xml')}.bin" if file.endswith(".xml") else file
    return name in (file, weights) or name.startswith(f"{file}.")


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, default=lambda value: value.model_dump(by_alias=True)))


def _link(source: Path, target: Path) -> None:
    """Put a file into another folder without a second copy of its bytes where the disk can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
