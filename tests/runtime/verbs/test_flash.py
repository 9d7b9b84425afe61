import json

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from tvau_edge.devices.flashing import FlashError
from tvau_edge.devices.profile import profile
from tvau_edge.runtime.bundle import BundleWriter
from tvau_edge.runtime.config import load_config
from tvau_edge.runtime.errors import BundleError, ConfigError
from tvau_edge.runtime.manifest import (
    ClassPrompts,
    Geometry,
    GraphFile,
    Manifest,
    Normalization,
    Provenance,
    Thresholds,
)
from tvau_edge.runtime.verbs import flash as flash_cli
from tvau_edge.runtime.verbs.flash import extras_of, flash_verb, site_for

SITE = """device = "box"

[[camera]]
name = "door"
source = "rtsp://camera/stream"
"""


@pytest.fixture
def site(tmp_path):
    file = tmp_path / "site.toml"
    file.write_text(SITE)
    return file


@pytest.fixture
def bundle(tmp_path):
    with BundleWriter(tmp_path / "bundle") as writer:
        for name in ("vision.onnx", "rae.onnx"):
            writer.path(name).write_bytes(b"graph")
        writer.add_class_features("class_prompts.safetensors", np.ones((2, 4), np.float32))
        return writer.finish(
            lambda files: Manifest(
                name="tiny",
                created="2026-11-25T00:00:00Z",
                licence="none",
                provenance=Provenance(checkpoint="tiny", checkpoint_sha256="0" * 64),
                geometry=Geometry(width=28, height=28, frames_per_second=4, temporal_patches=2),
                normalization=Normalization(),
                thresholds=Thresholds(open=0.6, close=0.4),
                class_prompts=ClassPrompts(normal=["a"], abnormal=["b"]),
                vision=[GraphFile(backend="onnxruntime", precision="fp32", file="vision.onnx")],
                rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
                files=files,
            )
        ).path


@pytest.fixture
def collected(monkeypatch):
    """Stands for pip: what it was asked for."""
    asked = []

    def collect(out, own, *rest):
        asked.append(rest)
        out.mkdir()
        (out / own.name).write_bytes(b"wheel")

    def own_wheel(out, given):
        (out / "tvau_edge-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
        return out / "tvau_edge-0.1.0-py3-none-any.whl", "0.1.0"

    monkeypatch.setattr(flash_cli, "collect", collect)
    monkeypatch.setattr(flash_cli, "own_wheel", own_wheel)
    return asked


def invoke(*arguments):
    app = Typer()
    app.command()(flash_verb)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_folder_for_a_jetson(bundle, site, collected, tmp_path):
    out = tmp_path / "out"
    invoke(
        bundle,
        "--device",
        "jetson-orin-nano-super",
        "--config",
        site,
        "--out",
        out,
        "--json",
        tmp_path / "made.json",
    )
    made = json.loads((tmp_path / "made.json").read_text())
    assert (made["python"], made["l4t"], made["backend"]) == ("3.10", "36.4", "tensorrt")
    assert collected == [("aarch64", "3.10", 35, (), None, None)]
    assert (out / "units/tvau-engines.service").exists()
    assert "--backend tensorrt" in (out / "units/tvau.service").read_text()
    assert "char-nv*" in (out / "units/tvau.service").read_text()
    assert "@" not in (out / "units/tvau.service").read_text().replace("@system-service", "")


def test_a_device_without_a_gpu_has_no_engines_and_no_gpu_devices(bundle, site, collected, tmp_path):
    out = tmp_path / "out"
    invoke(bundle, "--device", "raspberry-pi-5", "--config", site, "--out", out)
    assert not (out / "units/tvau-engines.service").exists()
    assert "char-nv" not in (out / "units/tvau.service").read_text()


def test_a_dry_run_names_each_file_and_writes_none(bundle, site, collected, tmp_path):
    out = tmp_path / "out"
    said = invoke(bundle, "--device", "raspberry-pi-5", "--config", site, "--out", out, "--dry-run")
    for name in ("install.sh", "bundle/vision.onnx", "units/tvau.service", "wheelhouse/tvau_edge-0.1.0"):
        assert name in said
    assert not out.exists()


def test_one_way_at_a_time(bundle, site, collected, tmp_path):
    with pytest.raises(ConfigError, match="one of --out DIR, --rootfs DIR and --target"):
        invoke(bundle, "--device", "raspberry-pi-5", "--config", site)
    with pytest.raises(ConfigError, match="one of"):
        invoke(
            bundle, "--device", "raspberry-pi-5", "--config", site, "--out", tmp_path, "--target", "user@box"
        )


def test_what_is_wrong_is_said_before_anything_is_collected(bundle, site, collected, tmp_path):
    with pytest.raises(FlashError, match="not 5"):
        invoke(
            bundle,
            "--device",
            "jetson-orin-nx-8gb",
            "--jetpack",
            "5.1",
            "--config",
            site,
            "--out",
            tmp_path / "o",
        )
    with pytest.raises(BundleError):
        invoke(tmp_path / "none", "--device", "raspberry-pi-5", "--config", site, "--out", tmp_path / "o")
    assert collected == []


def test_a_root_file_system_that_is_none(bundle, site, collected, tmp_path):
    with pytest.raises(FlashError, match="is no root file system"):
        invoke(bundle, "--device", "raspberry-pi-5", "--config", site, "--rootfs", tmp_path / "none")


def test_the_configuration_gets_what_it_leaves_open(site, tmp_path):
    text = site_for(site, profile("jetson-orin-nano-super"))
    (tmp_path / "on-device.toml").write_text(text)
    made = load_config(tmp_path / "on-device.toml")
    assert str(made.outbox.path) == "/var/lib/tvau/outbox.db"
    assert str(made.bundle) == "/opt/tvau/current/bundle"
    assert (made.language.gpu_layers, made.language.threads) == (-1, 6)
    assert made.camera[0].source == "rtsp://camera/stream"


def test_the_configuration_keeps_what_it_says(site):
    site.write_text(SITE + '[language]\nenabled = "off"\n[outbox]\npath = "/var/lib/tvau/mine.db"\n')
    text = site_for(site, profile("raspberry-pi-5"))
    assert text.count("[language]") == text.count("[outbox]") == 1
    assert "gpu_layers" not in text


def test_an_outbox_where_the_service_may_not_write(site):
    site.write_text(SITE + '[outbox]\npath = "verdicts.db"\n')
    with pytest.raises(ConfigError, match=r"outbox\.path = .*verdicts\.db'.*only below /var/lib/tvau"):
        site_for(site, profile("raspberry-pi-5"))


def test_extras():
    assert extras_of(profile("raspberry-pi-5"), language=True) == ("llm",)
    assert extras_of(profile("intel-n100"), language=False) == ("openvino",)
