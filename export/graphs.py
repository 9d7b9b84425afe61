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
import torch.nn.functional as F
from torch import Tensor, nn

from tvau_edge.export.errors import ExportError
from tvau_edge.export.model.anomaly import AnomalyVision
from tvau_edge.export.model.rae import RegionAwareEncoder
from tvau_edge.export.model.vision import MLP
from tvau_edge.runtime.backends.openvino import core

OPSET = 20
# Bytes of weights up to which they stay inside the .onnx file. Larger ones go to a file beside it, tensor by tensor:
# inside, the whole file would be built in memory once more, and protobuf ends at 2 GiB.
_LARGEST = 256 << 20
# Multiplications per step of the widest unit that computes INT8 products, AMX's tiles: what is left over of a row costs
# a copy of it. With 3420 instead of 3456, OpenVINO's INT8 tower takes 1.1 times as long (docs/quantization.md).
_TILE, _LARGEST_FILLING = 64, 0.02


class Product(nn.Module):
    """A linear layer whose weight [in, out] stands as the matrix product reads it.

    With `nn.Linear`, the exporter would fold the transposition of each weight into a copy of it, and a checkpoint
    would be in memory twice. `rows` and `columns` add zeros up to that many inputs and outputs.
    """

    def __init__(self, linear: nn.Linear, rows: int = 0, columns: int = 0) -> None:
        super().__init__()
        weight, bias = linear.weight.detach(), linear.bias
        wide, high = max(0, rows - linear.in_features), max(0, columns - linear.out_features)
        if wide or high:
            weight = F.pad(weight, (0, wide, 0, high))  # [out, in]
            bias = nn.Parameter(F.pad(bias.detach(), (0, high)), requires_grad=False)  # [out]
        self.weight = nn.Parameter(weight.t().contiguous(), requires_grad=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        y = x @ self.weight  # [..., out]
        return y if self.bias is None else y + self.bias


def turn_products(module: nn.Module) -> None:
    """Replace each linear layer by its `Product`, in place, one at a time.

    The inner width of a tower's MLPs is filled up to whole tiles with zeros, which SwiGLU keeps zero, where that is a
    small part: 3420 to 3456 at real widths.
    """
    for name, child in module.named_children():
        if isinstance(child, MLP):
            inner = child.gate_proj.out_features
            filled = -(-inner // _TILE) * _TILE
            filled = filled if filled - inner <= inner * _LARGEST_FILLING else inner
            child.gate_proj = Product(child.gate_proj, columns=filled)
            child.up_proj = Product(child.up_proj, columns=filled)
            child.down_proj = Product(child.down_proj, rows=filled)
        elif isinstance(child, nn.Linear):
            setattr(module, name, Product(child))
        else:
            turn_products(child)


def export_vision(module: AnomalyVision, path: Path) -> None:
    """Write the vision graph as ONNX; the module's linear layers are turned on the way.

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
    """Write the RAE graph as ONNX, T' being `patches`; the module's linear layers are turned on the way.

    Input `h_c` [T', 2, H', W']; output `p_an` [T' - 1, N_base + 10, D].
    """
    _export(module, (torch.zeros(patches, 2, *module.grid),), path, ["h_c"], ["p_an"], None)


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    names: Sequence[str],
    outputs: Sequence[str],
    dynamic: tuple[object, ...] | None,
) -> None:
    turn_products(module)
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"{path.name}: torch exported nothing")
    graph = program.model.graph
    graph.name = path.stem
    for node in graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    program.save(str(path), external_data=size > _LARGEST)
    # onnxscript's rewriter remembers the last graph it saw for as long as the process lives; the weights would stay.
    for value in graph.initializers.values():
        value.const_value = None
    onnx.checker.check_model(str(path))


def convert_to_openvino(source: Path, target: Path) -> None:
    """Convert an ONNX graph to OpenVINO IR, `target` (.xml) and a .bin beside it, weights in fp32."""
    openvino.save_model(core().read_model(source), target, compress_to_fp16=False)
