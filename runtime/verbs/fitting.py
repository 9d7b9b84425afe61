"""What a bundle needs of a device, in plain numbers for the planner."""

from dataclasses import replace
from pathlib import Path

from tvau_edge.devices.workload import MODELS, Clip, Decoder, Tower, Workload
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import BundleError
from tvau_edge.runtime.language.dialogue import context_needed
from tvau_edge.runtime.manifest import GraphFile, Manifest


def workload(name: str) -> Workload:
    """The model to plan for: "7b" and "3b" are the published sizes, anything else a bundle's folder.

    Raises:
        BundleError: it is no bundle, or one that does not tell its widths.
    """
    if name.lower() in MODELS:
        return MODELS[name.lower()]
    # Sizes are enough: nothing of it is run.
    return workload_of(Bundle.open(Path(name), verify=False))


def workload_of(bundle: Bundle) -> Workload:
    """What a bundle needs.

    Raises:
        BundleError: the bundle is of a version that did not write its widths.
    """
    manifest = bundle.manifest
    if manifest.tower is None:
        raise BundleError(
            f"{bundle.path} does not tell the widths of its tower; export it again with this version"
        )
    tower = Tower(**manifest.tower.model_dump())
    geometry, language = manifest.geometry, manifest.language
    clip = Clip(
        width=geometry.width,
        height=geometry.height,
        frames_per_second=geometry.frames_per_second,
        temporal_patches=geometry.temporal_patches,
        base_tokens=manifest.base_tokens,
        text_tokens=0,
        answer_tokens=len(language.questions) * language.max_answer_tokens if language else 0,
    )
    decoder = None
    if language is not None:
        if language.widths is None:
            raise BundleError(
                f"{bundle.path} does not tell the widths of its language model; export it again"
            )
        decoder = Decoder(**language.widths.model_dump())
        text = context_needed(language, geometry, manifest.base_tokens) - clip.context
        clip = replace(clip, text_tokens=text)
    return Workload(
        name=manifest.name,
        tower=tower,
        decoder=decoder,
        clip=clip,
        vision_bytes={graph.precision: graph_bytes(manifest, graph) for graph in reversed(manifest.vision)},
        language_bytes={file.type: manifest.files[file.file].size for file in language.files}
        if language
        else {},
        rae_bytes=graph_bytes(manifest, manifest.rae[0]),
    )


def graph_bytes(manifest: Manifest, graph: GraphFile) -> int:
    """Bytes of a graph with its weights, which ONNX may have in .data beside it and OpenVINO in .bin."""
    beside = f"{Path(graph.file).stem}.bin" if graph.backend == "openvino" else f"{graph.file}.data"
    names = (graph.file, beside)
    return sum(manifest.files[name].size for name in names if name in manifest.files)
