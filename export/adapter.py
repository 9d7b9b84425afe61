"""The checkpoint's LoRA as a GGUF adapter: on the device, the class prompts are read without it.

The language model of a bundle has the LoRA merged, which makes its dialogue fast. The text encoder of the class
prompts is the model before the LoRA (paper: frozen). llama.cpp gets it back by applying this adapter with scale -1.
"""

from pathlib import Path

import gguf
import numpy as np

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.errors import CheckpointError


def write_adapter(checkpoint: Checkpoint, path: Path) -> None:
    """Write A and B of each layer that the LoRA changes, float32, in llama.cpp's form of an adapter.

    Args:
        checkpoint: with a LoRA.
        path: of the GGUF; appears only when it is whole.

    Raises:
        CheckpointError: there is no LoRA, or it changes a tensor that has no place in a GGUF.
    """
    if checkpoint.lora is None:
        raise CheckpointError(f"{checkpoint.path} has no LoRA to write")
    targets = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, checkpoint.text.num_hidden_layers)
    partial = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(partial, "qwen2vl")
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # llama.cpp scales by alpha / rank; ours is in B already, since ranks may differ from layer to layer.
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
        for name in sorted(checkpoint.lora.scales):
            target = targets.get_name(name, try_suffixes=(".weight",))
            if target is None:
                raise CheckpointError(
                    f"{checkpoint.path}: LoRA of '{name}' has no place in a GGUF of qwen2vl"
                )
            a, b = checkpoint.lora.pair(name)
            writer.add_tensor(f"{target}.lora_a", a.numpy().astype(np.float32))
            writer.add_tensor(f"{target}.lora_b", b.numpy().astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
