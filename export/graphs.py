"""Vision with AHD, and RAE, as ONNX and OpenVINO graphs."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import onnx
import openvino
import torch
from torch import Tensor, nn

from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.rae import RegionAwareEncoder

OPSET = 20
_LARGEST = 1 << 30  # bytes of weights up to which they stay inside the .onnx file (protobuf ends at 2 GiB)


def export_vision(module: AnomalyVision, path: Path) -> None:
    """Write the vision graph as ONNX.

    Inputs `frames` [B, 2, H, W, 3] uint8 and `class_features` [2, D] float32; outputs `h_c` [B, 2, H', W'] and `p_v`
    [B, N, D]. B is free, H and W are the module's.
    """
    tower = module.vision
    frames = torch.zeros(2, 2, tower.height, tower.width, 3, dtype=torch.uint8)
    features = torch.randn(2, tower.config.out_hidden_size)
    batch = torch.export.Dim("batch", min=1, max=64)
    _export(
        module, (frames, features), path, ["frames", "class_features"], ["h_c", "p_v"], ({0: batch}, None)
    )


def export_rae(module: RegionAwareEncoder, patches: int, path: Path) -> None:
    """Write the RAE graph as ONNX: `h_c` [T', 2, H', W'] -> `p_an` [T' - 1, N_base + 10, D], T' being `patches`."""
    _export(module, (torch.zeros(patches, 2, *module.grid),), path, ["h_c"], ["p_an"], None)


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    names: Sequence[str],
    outputs: Sequence[str],
    dynamic: tuple[object, ...] | None,
) -> None:
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        torch.onnx.export(
            module,
            inputs,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            external_data=size > _LARGEST,
            verbose=False,
        )
    onnx.checker.check_model(str(path))


def convert_to_openvino(source: Path, target: Path) -> None:
    """Convert an ONNX graph to OpenVINO IR, `target` (.xml) and a .bin beside it, weights in fp32."""
    core = openvino.Core()
    openvino.save_model(core.read_model(source), target, compress_to_fp16=False)
