import errno
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tvau_edge.devices.errors import TvauError
from tvau_edge.runtime import bundle as module
from tvau_edge.runtime.bundle import Bundle, BundleWriter, same_inputs
from tvau_edge.runtime.errors import BundleError, DiskFullError
from tvau_edge.runtime.manifest import (
    ClassPrompts,
    Geometry,
    GraphFile,
    Language,
    LanguageFile,
    Manifest,
    Normalization,
    Provenance,
    Question,
    Thresholds,
)

FEATURES = np.arange(8, dtype=np.float32).reshape(2, 4)
GRAPHS = {"vision.onnx": b"pixels in", "vision.int8.onnx": b"smaller", "rae.onnx": b"motion in"}


def describe(files, name="street"):
    """A manifest of whatever of GRAPHS and lvlm-q8_0.gguf was written."""
    language = Language(
        files=[LanguageFile(type="q8_0", file="lvlm-q8_0.gguf")],
        hidden_size=4,
        tokens_per_second=2,
        system_prompt="You watch.",
        questions=[Question(key="anomaly", text="Is there any?")],
    )
    return Manifest(
        name=name,
        created="2026-01-01T00:00:00Z",
        licence="Apache-2.0",
        provenance=Provenance(checkpoint="c", checkpoint_sha256="0" * 64, options_sha256="1" * 64),
        geometry=Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3),
        normalization=Normalization(),
        thresholds=Thresholds(open=0.6, close=0.4),
        class_prompts=ClassPrompts(normal=["walking"], abnormal=["jumping"]),
        vision=[
            GraphFile(backend="onnxruntime", precision="fp32", file="vision.onnx"),
            GraphFile(backend="onnxruntime", precision="int8", file="vision.int8.onnx"),
        ],
        rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
        language=language if "lvlm-q8_0.gguf" in files else None,
        files=files,
    )


def fill(writer):
    for name, content in GRAPHS.items():
        writer.path(name).write_bytes(content)
    writer.add_class_features("class_prompts.safetensors", FEATURES)


def make(out, name="street", language=False):
    with BundleWriter(out) as writer:
        fill(writer)
        if language:
            writer.path("lvlm-q8_0.gguf").write_bytes(b"words")
        return writer.finish(lambda files: describe(files, name))


@pytest.fixture
def folder(tmp_path):
    """A whole bundle that a test may break."""
    return make(tmp_path / "bundle").path


def edit(folder, change):
    """Change the manifest's table in place."""
    file = folder / "manifest.json"
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))


def refused(path, match):
    with pytest.raises(BundleError, match=match) as caught:
        Bundle.open(path)
    assert str(path) in str(caught.value)


def test_what_is_written_is_read_back(tmp_path):
    made = make(tmp_path / "bundle", language=True)
    read = Bundle.open(tmp_path / "bundle")
    assert read.manifest == made.manifest
    assert read.sha256 == made.sha256 == module.sha256_of(read.path / "manifest.json")
    assert {*read.manifest.files} == {*GRAPHS, "class_prompts.safetensors", "lvlm-q8_0.gguf"}
    assert read.file("vision.onnx").read_bytes() == b"pixels in"
    assert read.vision("onnxruntime").file == "vision.onnx"
    assert read.vision("onnxruntime", "int8").file == "vision.int8.onnx"
    assert read.vision("onnxruntime", "fp16") is None
    assert read.vision("openvino") is None
    assert read.rae("onnxruntime").file == "rae.onnx"
    assert read.rae("openvino") is None
    np.testing.assert_array_equal(read.class_features(), FEATURES)
    assert read.language().file == read.language("Q8_0").file == "lvlm-q8_0.gguf"
    with pytest.raises(BundleError, match="no language model of type q4_k_m; it has: q8_0"):
        read.language("q4_k_m")


def test_a_bundle_without_a_language_model_has_none(folder):
    assert Bundle.open(folder).language() is None


def test_no_folder(tmp_path):
    refused(tmp_path / "nowhere", "no such bundle; `tvau export CHECKPOINT --out .*nowhere` makes one")


def test_a_file_is_no_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no such bundle")


def test_no_manifest(folder):
    (folder / "manifest.json").unlink()
    refused(folder, r"has no manifest\.json: it is no bundle, or its export was interrupted")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000])
def test_a_manifest_that_is_not_json(folder, text):
    (folder / "manifest.json").write_bytes(text)
    refused(folder, "is not JSON")


@pytest.mark.parametrize("text", ["[]", "{}", "7", '{"schema": 1}', '{"schema": "tvau.bundle/2"}'])
def test_another_schema_says_which_is_read(folder, text):
    (folder / "manifest.json").write_text(text)
    refused(folder, r"this version of tvau-edge reads 'tvau\.bundle/1'")


def test_another_schema_says_which_it_is(folder):
    edit(folder, lambda table: table.update(schema="tvau.bundle/9"))
    refused(folder, r"has schema 'tvau\.bundle/9'")


def test_an_unknown_key(folder):
    edit(folder, lambda table: table.update(licens="MIT"))
    refused(folder, "licens: unknown key; did you mean 'licence'?")


def test_a_missing_key(folder):
    edit(folder, lambda table: table.pop("licence"))
    refused(folder, "licence: is missing")


def test_a_value_that_is_not_allowed(folder):
    edit(folder, lambda table: table["geometry"].update(width=250))
    refused(folder, "geometry: width 250 is not a multiple of 28; the nearest: 224 or 252")


def test_a_graph_that_does_not_stand_in_files(folder):
    edit(folder, lambda table: table["files"].pop("rae.onnx"))
    refused(folder, r"rae\.onnx is used but does not stand in files")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", "..", "", "a\n"])
def test_a_file_name_that_leaves_the_folder(folder, name):
    (folder.parent / "secret").write_bytes(b"x")
    edit(folder, lambda table: table["files"].update({name: {"sha256": "0" * 64, "size": 1}}))
    refused(folder, "is not a valid manifest: files")


def test_a_file_that_is_missing(folder):
    (folder / "rae.onnx").unlink()
    refused(folder, r"rae\.onnx is missing; copy the bundle again, or export it again")


def test_a_file_of_another_size(folder):
    (folder / "vision.onnx").write_bytes(b"pixels")
    refused(folder, r"vision\.onnx has 6 bytes, its manifest says 9: it is torn")


def test_a_file_that_was_altered(folder):
    (folder / "vision.onnx").write_bytes(b"pixels on")
    refused(folder, r"vision\.onnx is corrupt or was altered: its sha256 is not the manifest's")
    assert Bundle.open(folder, verify=False).manifest.name == "street"


def test_a_folder_in_the_place_of_a_file(folder):
    (folder / "vision.onnx").unlink()
    (folder / "vision.onnx").mkdir()
    size = (folder / "vision.onnx").stat().st_size
    edit(folder, lambda table: table["files"]["vision.onnx"].update(size=size))
    refused(folder, r"vision\.onnx cannot be read: Is a directory")


def test_class_features_of_another_form(folder):
    def replace(tensors):
        save_file(tensors, folder / "class_prompts.safetensors")
        return Bundle.open(folder, verify=False)

    entry = Bundle.open(folder).manifest.files["class_prompts.safetensors"]
    other = {"class_featurez": FEATURES}
    save_file(other, folder / "class_prompts.safetensors")
    assert (folder / "class_prompts.safetensors").stat().st_size == entry.size
    with pytest.raises(BundleError, match="holds no tensor class_features"):
        Bundle.open(folder, verify=False).class_features()
    with pytest.raises(BundleError, match=r"class_features has shape \[4, 2\], expected \[2, D\]"):
        replace({"class_features": FEATURES.reshape(4, 2)}).class_features()
    (folder / "class_prompts.safetensors").write_bytes(b"\xff" * entry.size)
    with pytest.raises(BundleError, match="holds no tensor class_features"):
        Bundle.open(folder, verify=False).class_features()


AS_NOBODY = """
import os, sys
from pathlib import Path
from tvau_edge.devices.errors import TvauError
from tvau_edge.runtime.bundle import Bundle, BundleWriter
os.setuid(65534)
try:
    Bundle.open(Path(sys.argv[2])) if sys.argv[1] == "read" else BundleWriter(Path(sys.argv[2]))
except TvauError as error:
    print(error)
"""


def as_nobody(what, path):
    """What a user without rights is told; root reads everything, so it takes another process."""
    command = [sys.executable, "-c", AS_NOBODY, what, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_bundle_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users
        os.chmod(root, 0o755)
        folder = make(Path(root) / "bundle").path
        assert as_nobody("read", folder) == ""
        (folder / "vision.onnx").chmod(0o600)
        assert "vision.onnx cannot be read: Permission denied; allow this user" in as_nobody("read", folder)
        (folder / "manifest.json").chmod(0o600)
        assert "manifest.json cannot be read: Permission denied" in as_nobody("read", folder)
        folder.chmod(0o700)
        assert "manifest.json cannot be read: Permission denied" in as_nobody("read", folder)
        told = as_nobody("write", Path(root) / "other")
        assert "cannot write" in told
        assert "Permission denied" in told


class Stop(KeyboardInterrupt):
    """What Ctrl-C raises, told from a real one."""


FAILURES = [
    (ValueError("a converter's own"), ValueError, "own"),
    (Stop(), Stop, None),
    (
        OSError(errno.ENOSPC, "No space left on device"),
        DiskFullError,
        "a bundle that was there before is whole",
    ),
    (OSError(errno.EDQUOT, "Quota exceeded"), DiskFullError, "make room or choose another --out"),
    (OSError(errno.EIO, "Input/output error", "/dev/x"), BundleError, r"Input/output error \(/dev/x\)"),
]


@pytest.mark.parametrize(("error", "kind", "text"), FAILURES, ids=lambda value: repr(value)[:40])
def test_a_failure_while_writing(folder, error, kind, text):
    def fail(out):
        with BundleWriter(out) as writer:
            fill(writer)
            raise error

    before = Bundle.open(folder).manifest
    for out in (folder, folder.parent / "new"):
        with pytest.raises(kind, match=text):
            fail(out)
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert Bundle.open(folder).manifest == before


@pytest.mark.parametrize("step", ["sha256_of", "_sync", "_exchange"])
def test_a_failure_while_finishing(folder, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = Bundle.open(folder).manifest
    monkeypatch.setattr(module, step, fail)
    with pytest.raises(DiskFullError):
        make(folder, "newer")
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert Bundle.open(folder).manifest == before


def test_a_library_that_hides_a_full_disk(tmp_path, monkeypatch):
    def fail():
        with BundleWriter(tmp_path / "bundle") as writer:
            fill(writer)
            monkeypatch.setattr(module, "disk_free", lambda path: 4096)
            raise RuntimeError("iostream error")

    with pytest.raises(DiskFullError, match="the disk is full"):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up(tmp_path):
    """On a real file system of 256 KiB."""

    def overfill(out):
        with BundleWriter(out) as writer:
            fill(writer)
            writer.path("lvlm-q8_0.gguf").write_bytes(bytes(1 << 20))

    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        make(mount / "bundle")
        with pytest.raises(DiskFullError):
            overfill(mount / "bundle")
        assert [path.name for path in mount.iterdir()] == ["bundle"]
        assert Bundle.open(mount / "bundle").manifest.name == "street"
        with pytest.raises(DiskFullError, match="needs about 1 MiB, the disk has 0 MiB free"):
            BundleWriter(mount / "other", needed=1 << 20)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_too_little_room_is_known_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "disk_free", lambda path: 3 << 20)
    with pytest.raises(DiskFullError, match="needs about 5 MiB, the disk has 3 MiB free"):
        BundleWriter(tmp_path / "deep" / "bundle", needed=5 << 20)
    assert not list(tmp_path.iterdir())


def test_leaving_without_finishing_leaves_nothing(tmp_path):
    with BundleWriter(tmp_path / "bundle") as writer:
        fill(writer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exchange", [module._exchange, lambda one, other: False], ids=["swap", "renames"])
def test_an_older_bundle_is_replaced(folder, monkeypatch, exchange):
    monkeypatch.setattr(module, "_exchange", exchange)
    make(folder, "newer", language=True)
    assert Bundle.open(folder).manifest.name == "newer"
    make(folder, "newest")
    assert Bundle.open(folder).manifest.name == "newest"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert not (folder / "lvlm-q8_0.gguf").exists()


def test_a_bundle_that_cannot_be_moved_leaves_the_older_one(folder, monkeypatch):
    rename = type(folder).rename

    def refuse(path, target):
        if ".part-" in path.name and not path.name.endswith(".old"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    monkeypatch.setattr(type(folder), "rename", refuse)
    with pytest.raises(BundleError, match="Invalid cross-device link"):
        make(folder, "newer")
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]
    assert Bundle.open(folder).manifest.name == "street"


def test_what_is_not_a_bundle_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    (tmp_path / "file").write_text("two")
    for name in ("thesis", "file"):
        with pytest.raises(
            BundleError, match=r"is there and is no bundle; choose another --out, or remove it"
        ):
            BundleWriter(tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert make(tmp_path / "empty").manifest.name == "street"
    assert (tmp_path / "thesis" / "chapter").read_text() == "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "thesis"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / ".bundle.part-killed").mkdir()
    (tmp_path / ".bundle.part-killed" / "vision.onnx").write_bytes(b"half")
    (tmp_path / ".other.part-notours").mkdir()
    with BundleWriter(tmp_path / "bundle") as alive:
        make(tmp_path / "bundle")  # a second writer at the same time
        assert alive.folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.part-notours", "bundle"]


def test_a_bundle_that_a_killed_writer_put_aside_comes_back(folder):
    folder.rename(folder.with_name(".bundle.part-killed.old"))
    with pytest.raises(Stop), BundleWriter(folder):
        raise Stop
    assert Bundle.open(folder).manifest.name == "street"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".bundle.part-whose").mkdir()
    make(tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.part-whose", "bundle"]


def test_other_users_may_read_a_bundle(folder):
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make(Path("bundle")).path == tmp_path / "bundle"


def test_the_same_inputs_are_recognized(folder):
    wanted = {"checkpoint_sha256": "0" * 64, "options_sha256": "1" * 64}
    assert same_inputs(folder, wanted).manifest.name == "street"
    assert same_inputs(folder, wanted | {"options_sha256": "2" * 64}) is None
    assert same_inputs(folder.parent / "none", wanted) is None
    (folder / "rae.onnx").write_bytes(b"motion on")
    assert same_inputs(folder, wanted) is None


def test_every_error_is_for_a_person():
    assert issubclass(BundleError, TvauError)
    assert issubclass(DiskFullError, TvauError)
