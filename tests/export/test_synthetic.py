import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from tvau_edge.export.checkpoint import Checkpoint
from tvau_edge.export.memory import streaming_memory
from tvau_edge.export.model.ahd import AHDConfig
from tvau_edge.export.model.prompts import TextConfig
from tvau_edge.export.model.rae import RAEConfig
from tvau_edge.export.model.vision import VisionConfig
from tvau_edge.export.synthetic import SEVEN_B, THREE_B, Widths, outlier_blocks, write_synthetic
from tvau_edge.runtime.manifest import Geometry

CLIP = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=4)
SMALL = Widths(
    VisionConfig(8, 64, 4, 128, 256, (1, 3, 5, 7)),
    TextConfig(512, 256, 512, 2, 4, 2, 1024, 1e-6, 1e6, (8, 12, 12)),
    True,
    AHDConfig(4, 64, 64, 256),
    RAEConfig((8, 8, 16), (32, 32), (32, 32), 10, 256),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, SMALL, clip=CLIP, shard_bytes=400_000)
    return folder


def test_is_read_by_the_reader_and_by_transformers(folder):
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    checkpoint = Checkpoint.open(folder)
    assert (checkpoint.vision, checkpoint.text, checkpoint.tied) == (SMALL.vision, SMALL.text, True)
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    state = model.state_dict()
    for name, tensor in checkpoint.vision_tensors():
        assert torch.equal(tensor, state[f"model.visual.{name}"])
    text = "<|im_start|>user\nIs there any anomaly in 12 videos?<|im_end|>\n"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == checkpoint.tokenizer().encode(text).ids


def test_says_what_it_is(folder):
    config = Checkpoint.open(folder).config
    assert config.name.startswith("synthetic-")
    assert config.description.startswith("Synthetic: random weights")


def test_the_seed_alone_decides(folder, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        write_synthetic(tmp_path / name, SMALL, clip=CLIP, shard_bytes=400_000, seed=seed)
    digest = Checkpoint.open(folder).sha256()
    assert Checkpoint.open(tmp_path / "same").sha256() == digest
    assert Checkpoint.open(tmp_path / "other").sha256() != digest


def products(folder):
    """The largest SwiGLU product of each vision block, on noise."""
    module = Checkpoint.open(folder).vision_module().vision
    found = []
    for block in module.blocks:
        block.mlp.down_proj.register_forward_pre_hook(lambda _m, x: found.append(x[0].abs().max().item()))
    torch.manual_seed(0)
    with torch.no_grad():
        module(torch.randint(0, 256, (1, 2, 140, 252, 3), dtype=torch.uint8))
    return found


def test_outliers_leave_the_range_of_float16_in_late_blocks_only(folder, tmp_path):
    write_synthetic(tmp_path, SMALL, clip=CLIP, outliers=True)
    plain, with_outliers = products(folder), products(tmp_path)
    assert list(outlier_blocks(8)) == [7]
    assert with_outliers[:7] == plain[:7]
    assert plain[7] < 100
    assert with_outliers[7] > 65_504


def test_fewer_layers_of_real_widths():
    few = SEVEN_B.with_layers(4, 2)
    assert few.vision == replace(VisionConfig(), depth=4, fullatt_block_indexes=(3,))
    assert few.text == replace(TextConfig(), num_hidden_layers=2)


def test_computed_memory_of_the_published_widths():
    seven, three = (streaming_memory(w.vision, w.ahd, w.text, w.tied) for w in (SEVEN_B, THREE_B))
    assert round(seven.vision / 1e9, 2) == 2.92
    assert round(seven.peak / 1e9, 2) == round(152064 * 3584 * 6 / 1e9, 2) == 3.27
    assert round(three.peak / 1e9, 2) == round(three.vision / 1e9, 2) == 2.84
    assert round(seven.whole / 1e9, 2) == 30.46


STREAM = """
import sys
from tvau_edge.export.checkpoint import Checkpoint

def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))

checkpoint = Checkpoint.open(sys.argv[1])
sum(float(tensor[0].float().sum()) for _, tensor in checkpoint.language_tensors() if tensor.nbytes < 1e5)
before = kilobytes("VmRSS")
for name, tensor in checkpoint.language_tensors():
    tensor.float().sum()
checkpoint.class_features()
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_tensors_are_released_as_they_stream(tmp_path):
    text = TextConfig(512, 1024, 4096, 10, 8, 2, 1024, 1e-6, 1e6, (16, 24, 24))
    vision = replace(SMALL.vision, depth=1, out_hidden_size=1024, fullatt_block_indexes=(0,))
    widths = replace(SMALL, vision=vision, text=text, ahd=AHDConfig(1, 64, 8, 1024))
    widths = replace(widths, rae=replace(SMALL.rae, features=1024))
    write_synthetic(tmp_path, widths, clip=CLIP)
    memory = streaming_memory(widths.vision, widths.ahd, text, True)
    assert memory.whole > 600e6
    command = [sys.executable, "-c", STREAM, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    # A tenth of the whole is one layer; the rest of the allowance is the allocator's and the page cache's.
    assert int(run.stdout) * 1024 < 1.5 * memory.peak + 40e6
