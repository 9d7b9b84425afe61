"""A drawn video, and a bundle with random weights exported on it: small, with the real form."""

from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT, RATE = 320, 160, 8


def draw(
    path: Path, seconds: float = 20, *, size: tuple[int, int] = (WIDTH, HEIGHT), black: bool = False
) -> Path:
    """A video with a textured ground; a bright block crosses it in the first third, then night falls."""
    width, height = size
    generator = np.random.default_rng(3)
    ground = generator.integers(60, 160, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
    ground = ground.repeat(20, axis=0).repeat(20, axis=1)[:height, :width]
    count = round(seconds * RATE)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(count):
            image = ground.copy()
            if index < count // 3:
                left = index * 3 * width // count % (width - 40)
                image[height // 3 : height // 3 + 40, left : left + 40] = (230, 40, 40)
            if index > 2 * count // 3:
                image = image // 5
            if black:
                image[:] = 0
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def drawn_video(tmp_path_factory) -> Path:
    """20 s: a third with motion, a third still by day, a third still by night."""
    return draw(tmp_path_factory.mktemp("drawn") / "street.mp4")


@pytest.fixture(scope="session")
def make_video():
    """Draws other videos; see `draw`."""
    return draw


@pytest.fixture(scope="session")
def float_bundle(tmp_path_factory, drawn_video) -> Path:
    """A bundle with random weights: fp32 for ONNX Runtime and OpenVINO, an INT8 graph of export's, GGUF f16."""
    import torch

    from tvau_edge.export.bundle import Options, export_bundle
    from tvau_edge.export.model.ahd import AHDConfig
    from tvau_edge.export.model.prompts import TextConfig
    from tvau_edge.export.model.rae import RAEConfig
    from tvau_edge.export.model.vision import VisionConfig
    from tvau_edge.export.synthetic import Widths, write_synthetic
    from tvau_edge.runtime.manifest import Geometry

    widths = Widths(
        VisionConfig(3, 64, 4, 96, 256, (2,)),
        TextConfig(512, 256, 512, 2, 4, 2, 2048, mrope_section=(8, 12, 12)),
        False,
        AHDConfig(2, 64, 48, 256),
        RAEConfig((8, 8, 16), (32, 24), (24, 32), 4, 256),
    )
    folder = tmp_path_factory.mktemp("bundle")
    clip = Geometry(width=112, height=56, frames_per_second=4, temporal_patches=4)
    write_synthetic(folder / "checkpoint", widths, clip=clip, dtype=torch.float32)
    export_bundle(folder / "checkpoint", folder / "bundle", Options(drawn_video, language="f16"))
    return folder / "bundle"


@pytest.fixture(scope="session")
def outlying(tmp_path_factory):
    """A tower whose last block has outliers as trained ones have them, and feeds."""
    import torch

    from tvau_edge.export.graphs import export_vision
    from tvau_edge.export.model.ahd import AHDConfig
    from tvau_edge.export.model.anomaly import AnomalyVision
    from tvau_edge.export.model.vision import VisionConfig

    torch.manual_seed(0)
    module = AnomalyVision(
        VisionConfig(3, 64, 4, 96, 128, (2,)), AHDConfig(2, 64, 48, 128), 56, 84, (1, 3)
    ).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.ndim == 1:
                parameter.normal_(1, 0.1)
        for part in (module.vision.blocks[2].mlp.gate_proj, module.vision.blocks[2].mlp.up_proj):
            part.weight[7] *= 60
    path = tmp_path_factory.mktemp("smooth") / "vision.onnx"
    export_vision(module, path)
    generator = np.random.default_rng(1)
    coarse = (
        generator.integers(0, 256, (10, 2, 4, 6, 3), dtype=np.uint8).repeat(14, axis=2).repeat(14, axis=3)
    )
    features = generator.normal(size=(2, 128)).astype(np.float32)
    return path, [{"frames": frames[None], "class_features": features} for frames in coarse]


@pytest.fixture(scope="session")
def prepared(outlying):
    """`outlying` observed and smoothed."""
    from tvau_edge.quantize.prepared import prepare

    path, feeds = outlying
    return prepare(path, path.with_name("smooth.onnx"), feeds[:8], feeds[8:], ("h_c", "p_v"))
