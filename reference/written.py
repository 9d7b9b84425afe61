"""The trained miniature as a checkpoint folder of exactly the form that export reads."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tvau_edge.reference.miniature import BASE_TOKENS, TAPS, Networks
from tvau_edge.reference.narration import QUESTIONS, SYSTEM_PROMPT
from tvau_edge.reference.prompts import CLASS_PROMPTS
from tvau_edge.reference.samples import GEOMETRY

DESCRIPTION = (
    "Miniature Qwen2.5-VL with AHD, RAE and LoRA, trained from nothing on drawn street scenes by "
    "`python -m tvau_edge.reference.train`. It has seen no real video."
)


def write_checkpoint(out: Path, networks: Networks, work: Path) -> None:
    """Write the checkpoint, with thresholds that are still to be chosen.

    Args:
        out: its folder; made when it is not there.
        networks: trained, with the LoRA still apart.
        work: folder with the tokenizer's files.
    """
    out.mkdir(parents=True, exist_ok=True)
    base = networks.language.get_base_model()
    base.config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    base.config.dtype = "bfloat16"
    base.config.save_pretrained(out)
    base.generation_config.save_pretrained(out)
    weights = {f"model.visual.{name}": value for name, value in networks.tower.state_dict().items()}
    for name, value in base.model.language_model.state_dict().items():
        if ".lora_" not in name:
            weights[f"model.language_model.{name.replace('.base_layer', '')}"] = value
    _save({name: value.bfloat16() for name, value in weights.items()}, out / "model.safetensors")
    own = {f"ahd.{name}": value for name, value in networks.ahd.state_dict().items()}
    own |= {f"rae.{name}": value for name, value in networks.rae.state_dict().items()}
    _save({name: value.float() for name, value in own.items()}, out / "tvau.safetensors")
    networks.language.save_pretrained(out / "lora")
    (out / "lora" / "README.md").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(work / name, out / name)
    write_settings(out, (0.5, 0.3))


def write_settings(out: Path, thresholds: tuple[float, float]) -> None:
    """Write tvau.json; `thresholds` are the scores (0..1) at which an event opens and closes."""
    (out / "tvau.json").write_text(json.dumps(settings(thresholds), indent=2) + "\n")


def settings(thresholds: tuple[float, float]) -> dict[str, object]:
    """The contents of tvau.json."""
    return {
        "schema": "tvau.checkpoint/1",
        "name": "tvau-reference",
        "licence": "Apache-2.0",
        "description": DESCRIPTION,
        "clip": {
            "width": GEOMETRY.width,
            "height": GEOMETRY.height,
            "frames_per_second": GEOMETRY.frames_per_second,
            "temporal_patches": GEOMETRY.temporal_patches,
        },
        "taps": list(TAPS),
        "base_tokens": BASE_TOKENS,
        "class_prompts": CLASS_PROMPTS,
        "thresholds": {"open": thresholds[0], "close": thresholds[1]},
        "system_prompt": SYSTEM_PROMPT,
        "questions": [question.model_dump() for question in QUESTIONS],
        "max_answer_tokens": 48,
    }


def _save(weights: dict[str, Tensor], path: Path) -> None:
    with torch.no_grad():
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in weights.items()},
            path,
            {"format": "pt"},
        )
