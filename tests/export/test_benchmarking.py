from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from tvau_edge.benchmarks.latency.job import Case, Job
from tvau_edge.benchmarks.latency.worker import PEERS, find_measure
from tvau_edge.export import benchmarking
from tvau_edge.export.errors import CheckpointError, ExportError
from tvau_edge.export.synthetic import Widths
from tvau_edge.runtime.bundle import Bundle
from tvau_edge.runtime.errors import DiskFullError
from tvau_edge.runtime.manifest import Geometry

CLIP = Geometry(width=252, height=140, frames_per_second=4, temporal_patches=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_widths: Widths) -> tuple[Path, Path]:
    """A bundle and a checkpoint of tiny widths, made as those of the true widths are."""
    return benchmarking.make_bundle(tiny_widths, CLIP, tmp_path_factory.mktemp("synthetic"))


def test_a_bundle_of_random_weights_is_made_once_and_says_what_it_is(
    made: tuple[Path, Path], tiny_widths: Widths
) -> None:
    bundle, checkpoint = made
    opened = Bundle.open(bundle)
    assert "random weights" in opened.manifest.provenance.description
    assert {(graph.backend, graph.precision) for graph in opened.manifest.vision} == {
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
    }
    assert opened.manifest.language is not None
    before = (bundle / "manifest.json").stat().st_mtime_ns
    assert benchmarking.make_bundle(tiny_widths, CLIP, bundle.parent) == (bundle, checkpoint)
    assert (bundle / "manifest.json").stat().st_mtime_ns == before


def test_the_language_model_has_the_type_asked_for(made: tuple[Path, Path], tiny_widths: Widths) -> None:
    bundle, checkpoint = made
    other, same = benchmarking.make_bundle(tiny_widths, CLIP, bundle.parent, "bf16")
    assert same == checkpoint
    assert other != bundle
    opened = Bundle.open(other)
    assert opened.manifest.language is not None
    assert [file.type for file in opened.manifest.language.files] == ["bf16"]
    assert any(check.artifact == "lvlm-bf16.gguf" for check in opened.manifest.checks)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_is_measured_beside_the_back_ends(made: tuple[Path, Path], precision: str) -> None:
    bundle, checkpoint = made
    case = Case(measure="torch", stage="vision", variant="torch", precision=precision)
    job = Job(
        case=case, bundle=bundle, source=bundle.parent / "drawn.mp4", checkpoint=checkpoint,
        threads=1, queries=2, seconds=1, warm_up=0,
    )  # fmt: skip
    assert PEERS == "tvau.bench.peers"
    times = list(islice(find_measure("torch")(job, {}), 2))
    assert all(time > 0 for time in times)
    with pytest.raises(CheckpointError, match="--checkpoint"):
        next(benchmarking.torch_vision(job.model_copy(update={"checkpoint": None}), {}))


def test_shapes_keep_the_true_widths_and_the_proportion_of_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Widths, Path]] = []
    kinds: list[str] = []

    def make(widths: Widths, clip: Geometry, folder: Path, language: str) -> tuple[Path, Path]:
        asked.append((widths, folder))
        kinds.append(language)
        return folder, folder

    monkeypatch.setattr(benchmarking, "make_bundle", make)
    benchmarking.make_synthetic_bundle("7b", 8, Path("x"), "bf16")
    benchmarking.make_synthetic_bundle("3B", None, Path("x"))
    assert kinds == ["bf16", "q8_0"]
    (seven, _), (three, folder) = asked
    assert (seven.vision.depth, seven.text.num_hidden_layers, seven.text.hidden_size) == (8, 7, 3584)
    assert (three.vision.depth, three.text.num_hidden_layers, three.text.hidden_size) == (32, 36, 2048)
    assert folder == Path("x/3b-32")


def test_what_is_no_shape_is_told() -> None:
    with pytest.raises(ExportError, match="--synthetic 70b: there is no such shape; known: 7b, 3b"):
        benchmarking.make_synthetic_bundle("70b", None, Path("x"))
    with pytest.raises(ExportError, match="--blocks 33: 7b has 32 vision blocks"):
        benchmarking.make_synthetic_bundle("7b", 33, Path("x"))
    with pytest.raises(ExportError, match="unknown GGUF type 'q3'; known: f32, f16, bf16, q8_0"):
        benchmarking.make_synthetic_bundle("7b", 1, Path("x"), "q3")


def test_a_disk_without_room_is_told_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmarking, "disk_free", lambda _: 5 << 30)
    room: Callable[[Widths, Path], None] = benchmarking.check_room
    with pytest.raises(DiskFullError, match=r"needs about \d+ GiB, the disk has 5 GiB free; --blocks"):
        room(benchmarking.SEVEN_B, tmp_path)
