"""What each target of `tvau quantize` is made of: graphs, and what is known of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tvau_edge.quantize.activations import Feed
from tvau_edge.quantize.footage import Footage
from tvau_edge.quantize.gate import Seen
from tvau_edge.quantize.prepared import Prepared, agreement, prepare, quantize_onnx, run_graph
from tvau_edge.quantize.steps import Steps
from tvau_edge.quantize.work import Work
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.manifest import GraphFile

Kind = Literal["vision", "rae"]
FP16_GOAL = 0.999  # least cosine of an FP16 graph's outputs
_CHECKED = 4  # inputs that outputs are compared on while layers are chosen
_OUTPUTS: dict[Kind, tuple[str, ...]] = {"vision": ("h_c", "p_v"), "rae": ("p_an",)}


@dataclass(frozen=True)
class Made:
    """One graph that was made.

    Attributes:
        kind: vision or rae.
        file: as in the manifest.
        files: all that belong to it, in the work folder.
        record: for the report.
        runs_here: whether this machine can run it.
        failures: what is wrong with it, found without running it on the footage.
    """

    kind: Kind
    file: GraphFile
    files: tuple[str, ...]
    record: dict[str, Any]
    runs_here: bool = True
    failures: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """Of the graph's file."""
        return self.file.file


@dataclass(eq=False)
class Task:
    """Everything that a target is made from; what targets share is made once, when it is first asked for."""

    bundle: Bundle
    work: Work
    footage: Footage
    seen: Seen
    goal: float
    arithmetic: str
    steps: Steps

    def source(self, kind: Kind) -> Path:
        """The float graph."""
        graphs = self.bundle.manifest.vision if kind == "vision" else self.bundle.manifest.rae
        name = next(g.file for g in graphs if g.backend == "onnxruntime" and g.precision == "fp32")
        return self.bundle.file(name)

    def feeds(self, kind: Kind) -> list[Feed]:
        """Calibration inputs."""
        if kind == "vision":
            return [self._patch(frames) for frames in self.footage.frames]
        return self._windows()[::2]

    def checked(self, kind: Kind) -> list[Feed]:
        """Inputs that were not calibrated on, as far as there are such."""
        if kind == "rae":
            return self._windows()[1::2][:_CHECKED] or self._windows()[:_CHECKED]
        whole = np.concatenate(self.footage.stretches)
        places = np.concatenate(
            [
                np.arange(start, start + len(stretch))
                for start, stretch in zip(self.footage.starts, self.footage.stretches, strict=True)
            ]
        )
        new = np.flatnonzero(~np.isin(places, self.footage.indices))
        new = new if len(new) else np.arange(len(whole))
        some = new[np.linspace(0, len(new) - 1, min(_CHECKED, len(new))).round().astype(int)]
        return [self._patch(whole[index]) for index in some]

    def _patch(self, frames: np.ndarray) -> Feed:
        return {"frames": frames[None], "class_features": self._features}

    @cached_property
    def _features(self) -> np.ndarray:
        return self.bundle.class_features()

    def _windows(self) -> list[Feed]:
        """Windows of the float graph's similarity maps, evenly over the footage, each as long as the RAE wants."""
        length, h_c = self.bundle.manifest.geometry.temporal_patches, self.seen.h_c
        if len(h_c) < length:
            h_c = np.concatenate([h_c[:1].repeat(length - len(h_c), axis=0), h_c])
        starts = np.linspace(0, len(h_c) - length, min(32, len(h_c) - length + 1)).round().astype(int)
        return [{"h_c": h_c[start : start + length]} for start in starts]

    def prepared(self, kind: Kind) -> Prepared:
        """The float graph, observed and smoothed."""
        return self._prepared_vision if kind == "vision" else self._prepared_rae

    @cached_property
    def _prepared_vision(self) -> Prepared:
        return self._prepare("vision")

    @cached_property
    def _prepared_rae(self) -> Prepared:
        return self._prepare("rae")

    def _prepare(self, kind: Kind) -> Prepared:
        self.steps.begin(f"{kind}: activations and outliers")
        graph, arrays = self.work.path(f"{kind}.smooth.onnx"), self.work.path(f"{kind}.activations.npz")
        checked, fresh = self.checked(kind), []

        def make() -> dict[str, Any]:
            outputs = _OUTPUTS[kind]
            fresh.append(
                prepare(self.source(kind), graph, self.feeds(kind), checked, outputs, self.steps.advance)
            )
            return fresh[0].save(arrays)

        record = self.work.step(f"{kind} prepared", [graph.name, arrays.name], make)
        if fresh:
            return fresh[0]
        expected = run_graph(self.source(kind), checked, _OUTPUTS[kind])
        return Prepared.restore(graph, arrays, record, expected, checked)

    def layered(
        self, kind: Kind, name: str, method: str, make: Callable[[Prepared], dict[str, Any]]
    ) -> dict[str, Any]:
        """Do the step that writes `name`; its record gets what is common to all."""
        prepared = self.prepared(kind)
        self.steps.begin(name)
        files = [name, f"{name.removesuffix('.xml')}.bin"] if name.endswith(".xml") else [name]
        record = self.work.step(name, files, lambda: make(prepared))
        return {
            "method": method,
            "moved_outliers": {weight: alpha for weight, alpha in prepared.alphas.items() if alpha},
            **record,
        }


def make_onnx(task: Task) -> list[Made]:
    """INT8 for ONNX Runtime: vision and RAE."""
    made = []
    for kind in ("vision", "rae"):
        name = f"{kind}.int8.onnx"

        def make(prepared: Prepared, name: str = name) -> dict[str, Any]:
            choice = quantize_onnx(prepared, task.work.path(name), task.goal, task.steps.advance)
            return choice.record(prepared.layers, task.goal)

        method = "QDQ: activations uint8 per tensor, weights int8 per channel"
        record = task.layered(kind, name, method, make)
        made.append(_made(task, kind, "onnxruntime", name, record))
    return made


def make_openvino(task: Task) -> list[Made]:
    """INT8 for OpenVINO: vision and RAE."""
    from tvau_edge.quantize.openvino_int8 import choose_openvino

    made = []
    for kind in ("vision", "rae"):
        name = f"{kind}.int8.xml"

        def make(prepared: Prepared, kind: Kind = kind, name: str = name) -> dict[str, Any]:
            choice = choose_openvino(
                prepared,
                task.work.path(name),
                task.feeds(kind),
                task.goal,
                task.arithmetic,
                task.steps.advance,
            )
            return choice.record(prepared.layers, task.goal) | {"float": task.arithmetic}

        record = task.layered(kind, name, "NNCF, transformer scheme, least and largest values", make)
        made.append(_made(task, kind, "openvino", name, record))
    return made


def _short_of_target(name: str, record: Any) -> list[str]:
    """Why the gate refuses a graph that no choice of layers brought to its target."""
    if record["reached"]:
        return []
    return [
        f"{name}: its outputs agree by a cosine of {record['agreement']:.4f} at best, {record['target']:g} was "
        "asked for"
    ]


def _made(
    task: Task, kind: Kind, backend: Literal["onnxruntime", "openvino"], name: str, record: Any
) -> Made:
    failures = _short_of_target(name, record)
    file = GraphFile(backend=backend, precision="int8", file=name)
    if kind == "vision":
        record = {**record, "graph": f"{backend} int8"}
    return Made(kind, file, tuple(task.work.files(name)), record, True, tuple(failures))


def make_tensorrt(task: Task) -> list[Made]:
    """FP16 and INT8 for TensorRT: vision alone. RAE runs once per dialogue, and TensorRT takes its fp32 graph.

    No engine can be built here. The graphs are computed in numpy, rounded as their types say, and read by the rules
    of `tensorrt_check`.
    """
    from tvau_edge.quantize.tensorrt_check import check
    from tvau_edge.quantize.tensorrt_graph import peaks_of, quantize_tensorrt, run_typed, write_typed

    outputs = list(_OUTPUTS["vision"])
    feeds = task.feeds("vision")
    made = []

    def half(prepared: Prepared) -> dict[str, Any]:
        # From the graph as it was: fp16's steps are relative, so that moving outliers gains it nothing.
        source, path = task.source("vision"), task.work.path("vision.trt.fp16.onnx")
        typed = write_typed(source, path, peaks_of(source, feeds), {}, ())
        found = agreement(prepared.expected, run_typed(path, prepared.checked, outputs, task.steps.advance))
        return {"agreement": found, "target": FP16_GOAL, "reached": found >= FP16_GOAL, **typed}

    def whole(prepared: Prepared) -> dict[str, Any]:
        path = task.work.path("vision.trt.int8.onnx")
        choice, typed = quantize_tensorrt(prepared, path, feeds, task.goal, task.steps.advance)
        return choice.record(prepared.layers, task.goal) | typed

    for name, method, make, precision in (
        (
            "vision.trt.fp16.onnx",
            "strongly typed: products in fp16, norms and residual stream in fp32",
            half,
            "fp16",
        ),
        (
            "vision.trt.int8.onnx",
            "strongly typed, explicit INT8: symmetric, per-channel weights",
            whole,
            "int8",
        ),
    ):
        record = task.layered("vision", name, method, make)
        findings = [finding for finding in check(task.work.path(name)) if finding.severity != "note"]
        counts = record["products"]
        record["notes"] = [
            f"outputs agree with the float graph's by a cosine of {record['agreement']:.6f}, {record['target']:g} "
            "was asked for",
            f"products: {counts['int8']} in INT8, {counts['half']} in FP16, {counts['float']} in FP32",
            f"tensors beyond FP16's range, kept in FP32: {', '.join(record['beyond_fp16']) or 'none'}",
            "computed in numpy, each result rounded to its type; not run by TensorRT, which this machine lacks",
            f"static check against TensorRT's rules: {len(findings)} findings",
        ]
        failures = [
            f"{name}: TensorRT would object: {f.node}: {f.message} ({f.source})" for f in findings[:5]
        ]
        failures += _short_of_target(name, record)
        file = GraphFile(backend="tensorrt", precision=precision, file=name)  # type: ignore[arg-type]
        made.append(Made("vision", file, tuple(task.work.files(name)), record, False, tuple(failures)))
    return made


TARGETS: dict[str, Callable[[Task], list[Made]]] = {
    "onnx": make_onnx,
    "openvino": make_openvino,
    "tensorrt": make_tensorrt,
}
