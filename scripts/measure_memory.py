"""Measure the memory of the main job on this CPU, part by part, to stand beside what the planner computes.

    python scripts/measure_memory.py BUNDLE [--backend onnxruntime] [--precision fp32] [--no-language] [--json FILE]

Each part is entered once, in the order in which `tvau run` does, and the resident and the peak memory of the process
are read after it; the last peak stands beside what `tvau devices fit` computes. Frames are drawn at random: what the
networks answer does not matter for what they need.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import tvau_edge.runtime.service.watching  # noqa: F401 (all that `tvau run` imports)
from tvau_edge.devices.host import peak_memory, resident_memory
from tvau_edge.devices.planner import Setup, memory
from tvau_edge.devices.profile import profile
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.detection.rae import Rae
from tvau_edge.runtime.detection.vision import Vision
from tvau_edge.runtime.language.dialogue import Dialogue, context_needed
from tvau_edge.runtime.language.llama import LanguageModel
from tvau_edge.runtime.verbs.fitting import workload_of


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--no-language", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps: list[tuple[str, int, int]] = [("imports", resident_memory() or 0, peak_memory() or 0)]

    def note(step: str) -> None:
        steps.append((step, resident_memory() or 0, peak_memory() or 0))

    bundle = Bundle.open(options.bundle, verify=False)
    geometry = bundle.manifest.geometry
    vision = Vision.open(bundle, options.backend, options.precision)
    note("vision loaded")
    rng = np.random.default_rng(0)
    evidence = []
    for index in range(geometry.temporal_patches):
        frames = rng.integers(0, 256, (2, geometry.height, geometry.width, 3), dtype=np.uint8)
        evidence += vision.run([TemporalPatch("camera", index, frames=frames, pts=(0.0, 0.25), time=0.0)])
    note("vision run")
    language = bundle.manifest.language
    if language and not options.no_language:
        rae = Rae.open(bundle, options.backend)
        context = context_needed(language, geometry, bundle.manifest.base_tokens)
        model = LanguageModel(bundle.file(language.files[0].file), context=context)
        note("language loaded")
        dialogue = Dialogue(model, language, geometry)
        p_an = rae.run(np.stack([item.h_c for item in evidence]))
        dialogue.run(np.stack([item.p_v for item in evidence]), p_an)
        note("dialogue run")
    for step, now, most in steps:
        print(f"{step:16} resident {now / 1e6:8.1f} MB   peak {most / 1e6:8.1f} MB")
    computed = compute(bundle, options.backend, options.precision, language=not options.no_language)
    measured = steps[-1][2]
    print(
        f"computed {computed / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB: {computed / measured - 1:+.1%}"
    )
    if options.json:
        facts = [{"step": step, "resident": now, "peak": most} for step, now, most in steps]
        report = {"bundle": str(options.bundle), "steps": facts, "computed": computed, "measured": measured}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def compute(bundle: Bundle, backend: str, precision: str, *, language: bool) -> int:
    """Bytes of our process as the planner computes them, without a camera's decoder."""
    load = workload_of(bundle)
    files = bundle.manifest.language.files if bundle.manifest.language and language else []
    kind = files[0].type if files else None
    patches = load.clip.temporal_patches
    setup = Setup(backend, precision, kind, cameras=1, temporal_patches=patches, picture=0)
    return memory(profile("x86-avx2"), load, setup).own


if __name__ == "__main__":
    sys.exit(main())
