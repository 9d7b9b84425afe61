"""`tvau export`: a checkpoint becomes a bundle, each artifact compared with torch before it is kept."""

import ctypes
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from tvau_edge.export import graphs, verify
from tvau_edge.export.adapter import write_adapter
from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import ExportError
from tvau_edge.export.language import GgufType, write_gguf
from tvau_edge.quantize.calibration import temporal_patches
from tvau_edge.quantize.language import TYPES, quantize_gguf
from tvau_edge.quantize.onnx_int8 import quantize_vision
from tvau_edge.quantize.steps import Silent, Steps
from tvau_edge.runtime.bundle import Bundle, BundleWriter, same_inputs, sha256_of
from tvau_edge.runtime.detection.choice import Choice, preference
from tvau_edge.runtime.language.positions import moments_differ
from tvau_edge.runtime.manifest import (
    Check,
    ClassPrompts,
    DecoderWidths,
    FileEntry,
    Geometry,
    GraphFile,
    Language,
    LanguageFile,
    Manifest,
    Normalization,
    Provenance,
    TowerWidths,
)

BACKENDS = ("onnxruntime", "openvino")
_LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "gguf", "llama-cpp-python", "tvau-edge")
_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_ADAPTER = "lora.gguf"
_CHECKED = 4  # temporal patches that graphs are compared on
_CALIBRATED = 32


@dataclass(frozen=True)
class Options:
    """What to export.

    Attributes:
        size: width and height in pixels, multiples of 28; None for the checkpoint's.
        backends: of the vision graph and RAE.
        int8: add an INT8 vision graph for ONNX Runtime.
        language: GGUF type, or None for a bundle without a language model.
        frames: video whose frames graphs are compared, and INT8 is calibrated, on.
    """

    frames: Path
    size: tuple[int, int] | None = None
    backends: Sequence[str] = BACKENDS
    int8: bool = True
    language: str | None = "q8_0"


@dataclass
class _Parts:
    """What has been made so far."""

    vision: list[GraphFile] = field(default_factory=list)
    rae: list[GraphFile] = field(default_factory=list)
    language: list[LanguageFile] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    quantization: dict[str, object] = field(default_factory=dict)


def export_bundle(
    checkpoint_path: Path, out: Path, options: Options, steps: Steps | None = None
) -> tuple[Bundle, bool]:
    """Export a checkpoint.

    Args:
        checkpoint_path: folder of the checkpoint.
        out: folder of the bundle; replaced when it holds one, left alone when nothing changed.
        options: what to export.
        steps: shows progress.

    Returns:
        The bundle, and whether it was made now (False: it was there, from the same inputs).

    Raises:
        CheckpointError: the checkpoint is not whole or not ours.
        ExportError: an artifact does not agree with torch, or an option is not possible.
        SourceError: the frames cannot be read.
        BundleError: `out` cannot be written.
        DiskFullError: no room.
    """
    steps = steps or Silent()
    _check_options(options)
    _return_freed_memory()
    steps.begin("reading checkpoint")
    checkpoint = Checkpoint.open(checkpoint_path)
    geometry = _geometry(checkpoint, options)
    tokens_per_second = checkpoint.vision.tokens_per_second
    if options.language and not moments_differ(geometry, tokens_per_second):
        raise ExportError(
            f"{checkpoint_path}: at {geometry.frames_per_second:g} frames per second and {tokens_per_second:g} "
            "positions per second (tokens_per_second), temporal patches share a position, which llama.cpp cannot "
            "evaluate; --llm none exports the rest"
        )
    provenance = Provenance(
        checkpoint=checkpoint.config.name,
        checkpoint_sha256=checkpoint.sha256(),
        description=checkpoint.config.description,
        options_sha256=_digest(options, geometry),
        versions={name: version(name) for name in _LIBRARIES},
    )
    wanted = provenance.model_dump(include={"checkpoint_sha256", "options_sha256", "versions"})
    if (there := same_inputs(out, wanted)) is not None:
        return there, False
    patches = temporal_patches(options.frames, geometry, _CALIBRATED)
    parts = _Parts()
    with BundleWriter(out, _room(checkpoint, options)) as writer:
        steps.begin("class prompts")
        features = checkpoint.class_features().numpy()
        prompts = ClassPrompts(**checkpoint.config.class_prompts.model_dump())
        writer.add_class_features(prompts.file, features)
        _export_graphs(checkpoint, geometry, options, patches, features, writer, parts, steps)
        if options.language:
            _export_language(checkpoint, options.language, writer, parts, steps)
        steps.begin("checksums")

        def manifest(files: dict[str, FileEntry]) -> Manifest:
            return Manifest(
                name=checkpoint.config.name,
                created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                licence=checkpoint.config.licence,
                provenance=provenance,
                geometry=geometry,
                normalization=Normalization(),
                thresholds=checkpoint.config.thresholds,
                class_prompts=prompts,
                vision=parts.vision,
                rae=parts.rae,
                base_tokens=checkpoint.config.base_tokens,
                language=_language(checkpoint, parts) if parts.language else None,
                tower=_tower(checkpoint),
                checks=parts.checks,
                quantization=parts.quantization,
                files=files,
            )

        return writer.finish(manifest), True


def _return_freed_memory() -> None:
    """Have the C library give freed blocks back to the system at once.

    By itself, glibc comes to keep blocks of up to 32 MiB, which is what weights are: each part of the export would
    then add to the ones before (measured: 0.7 GB kept of a 0.6 GB graph that was closed, against 0.03 GB).
    """
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _check_options(options: Options) -> None:
    unknown = [name for name in options.backends if name not in BACKENDS]
    if unknown or not options.backends:
        raise ExportError(f"unknown back end {', '.join(unknown) or '(none)'}; known: {', '.join(BACKENDS)}")
    if options.language is not None:
        check_type(options.language)


def check_type(language: str) -> None:
    """Make sure that this is a GGUF type that can be made.

    Raises:
        ExportError: it is none; names those that are.
    """
    known = dict.fromkeys((*get_args(GgufType), *TYPES))
    if language not in known:
        raise ExportError(f"unknown GGUF type {language!r}; known: {', '.join(known)}, none")


def _geometry(checkpoint: Checkpoint, options: Options) -> Geometry:
    values = checkpoint.config.clip.model_dump()
    if options.size:
        values |= {"width": options.size[0], "height": options.size[1]}
    try:
        return Geometry(**values)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ExportError(f"--size {values['width']}x{values['height']}: {reason}") from error


def _digest(options: Options, geometry: Geometry) -> str:
    facts = asdict(options) | {"geometry": geometry.model_dump(), "frames": None}
    if options.frames.is_file():
        facts["frames"] = sha256_of(options.frames)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _room(checkpoint: Checkpoint, options: Options) -> int:
    """Bytes that the export needs at its fullest, from the checkpoint's shapes."""
    vision = sum(np.prod(checkpoint.shape(name)) for name in checkpoint.names() if name.startswith("visual."))
    language = sum(
        np.prod(checkpoint.shape(name)) for name in checkpoint.names() if not name.startswith("visual.")
    )
    graphs_bytes = vision * 4 * (len(options.backends) + (2 if options.int8 else 0))
    return int(graphs_bytes + (language * 4 if options.language else 0))


def _export_graphs(
    checkpoint: Checkpoint,
    geometry: Geometry,
    options: Options,
    patches: NDArray[np.uint8],
    features: NDArray[np.float32],
    writer: BundleWriter,
    parts: _Parts,
    steps: Steps,
) -> None:
    data = f"{options.frames.name}, {min(_CHECKED, len(patches))} temporal patches"
    checked = patches[np.linspace(0, len(patches) - 1, min(_CHECKED, len(patches))).round().astype(int)]
    inputs = {"frames": checked, "class_features": features}

    steps.begin("vision and AHD to ONNX")
    module = checkpoint.vision_module(geometry.width, geometry.height)
    expected = verify.vision_in_torch(module, checked, torch.from_numpy(features))
    window = expected["h_c"][np.arange(geometry.temporal_patches) % len(checked)]
    graphs.export_vision(module, writer.path("vision.onnx"))
    del module  # before another copy of its weights is loaded to be compared

    def add(kind: str, backend: str, precision: Literal["fp32", "int8"], name: str) -> None:
        file = GraphFile(backend=backend, precision=precision, file=name)
        if kind == "vision":
            parts.checks.extend(verify.check_graph(writer.folder, file, inputs, expected, data))
            parts.vision.append(file)
        else:
            parts.checks.extend(verify.check_graph(writer.folder, file, {"h_c": window}, motion, data))
            parts.rae.append(file)

    add("vision", "onnxruntime", "fp32", "vision.onnx")
    if options.int8:
        steps.begin("vision to INT8")
        report = quantize_vision(
            writer.path("vision.onnx"), writer.path("vision.int8.onnx"), patches, features
        )
        parts.quantization["vision.int8.onnx"] = {**report, "calibration": options.frames.name}
        add("vision", "onnxruntime", "int8", "vision.int8.onnx")

    steps.begin("RAE to ONNX")
    rae = checkpoint.rae_module(geometry.width, geometry.height)
    motion = verify.rae_in_torch(rae, window)
    graphs.export_rae(rae, geometry.temporal_patches, writer.path("rae.onnx"))
    del rae
    add("rae", "onnxruntime", "fp32", "rae.onnx")
    if "openvino" in options.backends:
        steps.begin("OpenVINO")
        for name in ("vision", "rae"):
            graphs.convert_to_openvino(writer.path(f"{name}.onnx"), writer.path(f"{name}.xml"))
            add(name, "openvino", "fp32", f"{name}.xml")
        if preference(
            "vision"
        ).bf16:  # the runtime may compute it so, where the CPU does; checked where we can
            rounded = Choice("openvino", "bf16", "vision.xml")
            said = f"{data}, computed in bf16"
            parts.checks.extend(verify.check_graph(writer.folder, rounded, inputs, expected, said))


def _export_language(
    checkpoint: Checkpoint, kind: str, writer: BundleWriter, parts: _Parts, steps: Steps
) -> None:
    steps.begin("language model to GGUF")
    name = f"lvlm-{kind}.gguf"
    if kind in get_args(GgufType):
        write_gguf(checkpoint, writer.path(name), cast(GgufType, kind), steps.advance)
    else:
        whole = writer.path("lvlm-f16.gguf")
        write_gguf(checkpoint, whole, "f16", steps.advance)
        parts.checks.append(verify.check_language(checkpoint, whole, "f16"))
        steps.begin(f"language model to {kind}")
        quantize_gguf(whole, writer.path(name), kind)
        whole.unlink()
    parts.checks.append(verify.check_language(checkpoint, writer.path(name), kind))
    parts.language.append(LanguageFile(type=kind, file=name))
    if checkpoint.lora is not None:
        write_adapter(checkpoint, writer.path(_ADAPTER))


def _tower(checkpoint: Checkpoint) -> TowerWidths:
    vision, ahd = checkpoint.vision, checkpoint.ahd
    return TowerWidths(
        blocks=vision.depth,
        width=vision.hidden_size,
        heads=vision.num_heads,
        mlp=vision.intermediate_size,
        full_attention=len(vision.fullatt_block_indexes),
        window=(vision.window_size // vision.patch_size) ** 2,
        taps=ahd.taps,
        heatmap_hidden=ahd.hidden,
        out=vision.out_hidden_size,
    )


def _language(checkpoint: Checkpoint, parts: _Parts) -> Language:
    config, text = checkpoint.config, checkpoint.text
    return Language(
        files=parts.language,
        hidden_size=checkpoint.text.hidden_size,
        tokens_per_second=checkpoint.vision.tokens_per_second,
        system_prompt=config.system_prompt,
        questions=config.questions,
        max_answer_tokens=config.max_answer_tokens,
        widths=DecoderWidths(
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            mlp=text.intermediate_size,
            vocabulary=text.vocab_size,
            tied=checkpoint.tied,
        ),
        adapter=_ADAPTER if checkpoint.lora is not None else None,
    )
