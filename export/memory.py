"""How much memory the export of a checkpoint needs for weights, computed from widths alone.

Export works through three parts, one after the other, and drops each before the next. Libraries and
activations come on top; they do not grow with the checkpoint's depth.
"""

from dataclasses import dataclass

import torch

from tvau_edge.export.checkpoint import Shape, model_shapes
from tvau_edge.export.model.ahd import AHDConfig, AnomalyHeatmapDecoder
from tvau_edge.export.model.prompts import Layer, TextConfig
from tvau_edge.export.model.vision import VisionConfig

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class StreamingMemory:
    """Bytes of weights in memory at the worst moment of each part.

    For the published widths, stored in bfloat16, with AHD and RAE at their default widths (decimal gigabytes):

    | | vision graph | class prompts | language model | peak | language model as a whole |
    |---|---|---|---|---|---|
    | 7B | 2.92 | 1.07 | 3.27 | 3.27 | 30.46 |
    | 3B | 2.84 | 0.35 | 1.87 | 2.84 | 12.34 |

    Measured on synthetic checkpoints of these widths (32 vision blocks, 2 language layers), the resident set rose
    by 0.05 to 0.10 GB more than these figures while weights were read.
    """

    vision: int  # tower and AHD in float32, and the tensor being read
    prompts: int  # one layer of the language model in float32, and the tensor being read
    language: int  # the largest tensor, as it is stored and in float32
    whole: int  # for comparison: the whole language model in float32

    @property
    def peak(self) -> int:
        """Bytes of the part that needs the most."""
        return max(self.vision, self.prompts, self.language)


def streaming_memory(
    vision: VisionConfig, ahd: AHDConfig, text: TextConfig, tied: bool, stored: int = 2
) -> StreamingMemory:
    """Compute the memory that a streaming export needs for weights.

    Args:
        vision: widths of the vision tower.
        ahd: widths of the heatmap decoder.
        text: widths of the language model.
        tied: whether the output head is the token embedding.
        stored: bytes of one number in the checkpoint's files.
    """
    shapes = model_shapes(vision, text, tied)
    tower = [elements(shape) for name, shape in shapes.items() if name.startswith("visual.")]
    language = [elements(shape) for name, shape in shapes.items() if not name.startswith("visual.")]
    with torch.device("meta"):
        decoder, layer = AnomalyHeatmapDecoder(ahd).state_dict(), Layer(text).state_dict()
    decoders = [tensor.numel() for tensor in decoder.values()]
    one_layer = [tensor.numel() for tensor in layer.values()]
    return StreamingMemory(
        vision=(sum(tower) + sum(decoders)) * FLOAT32 + max(tower + decoders) * stored,
        prompts=sum(one_layer) * FLOAT32 + max(one_layer) * stored,
        language=max(language) * (FLOAT32 + stored),
        whole=sum(language) * FLOAT32,
    )


def elements(shape: Shape) -> int:
    """Numbers in a tensor of this shape."""
    return torch.Size(shape).numel()
