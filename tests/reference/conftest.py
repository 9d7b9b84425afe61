"""Two drawn clips, one abnormal and one normal, shared by the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tvau_edge.export.bundle import Options, export_bundle
from tvau_edge.reference.demo import CHECKPOINT
from tvau_edge.reference.samples import Sample, first_seed, samples


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which drawn clips are kept during the tests."""
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def drawn(cache: Path) -> list[Sample]:
    """The first clips of the training split: one abnormal, one normal."""
    start = first_seed("train")
    return list(samples(range(start, start + 2), cache, workers=1))


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory, draw_clip: Callable[..., Path]) -> Path:
    """The shipped checkpoint as a bundle of float graphs for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("shipped")
    options = Options(draw_clip(folder / "frames.mp4", 3.0), backends=("onnxruntime",), int8=False)
    return export_bundle(CHECKPOINT, folder / "bundle", options)[0].path
