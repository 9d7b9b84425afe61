import json

import pytest
from typer.testing import CliRunner

from tvau_edge.devices.errors import TvauError
from tvau_edge.devices.profile import profiles
from tvau_edge.runtime.verbs.devices import app


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_list_names_every_device(tmp_path):
    said = invoke("list", "--json", tmp_path / "list.json")
    assert "jetson" in said
    assert [device["name"] for device in json.loads((tmp_path / "list.json").read_text())] == list(profiles())


def test_show_gives_each_fact_with_its_source(tmp_path):
    said = invoke("show", "jetson-orin-nano-8gb", "--json", tmp_path / "show.json")
    assert "memory.bandwidth" in said
    assert "68,000,000,000" in said
    assert "excerpt" in said
    assert json.loads((tmp_path / "show.json").read_text())["gpu"]["sm"] == "8.7"


def test_an_unknown_device():
    with pytest.raises(TvauError, match="did you mean"):
        CliRunner().invoke(app, ["show", "orin-nano"], catch_exceptions=False)


def test_detect_says_what_it_saw(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    said = invoke("detect", "--root", tmp_path, "--json", tmp_path / "found.json")
    assert "raspberry-pi-5" in said
    assert "the device tree says raspberrypi,5-model-b" in said
    assert "it watches best on onnxruntime: int8" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["profile"]["name"] == "raspberry-pi-5"
    assert found["seen"][0]["where"] == "/proc/device-tree/compatible"


def test_fit_gives_a_table_over_all_devices(tmp_path):
    said = invoke("fit", "7b", "--device", "all", "--json", tmp_path / "fit.json")
    assert "estimates, not measured" in said
    answers = json.loads((tmp_path / "fit.json").read_text())
    assert [answer["device"] for answer in answers] == list(profiles())
    small = next(answer for answer in answers if answer["device"] == "jetson-orin-nano-4gb")
    assert small["fits"] is False
    assert small["instead"]["gguf"] is None


def test_fit_explains_one_device():
    said = invoke("fit", "3b", "--device", "raspberry-pi-5", "--cameras", "2")
    assert "while it runs" in said
    assert "vision reaches" in said


def test_fit_without_a_language_model(tmp_path):
    invoke("fit", "3b", "--device", "raspberry-pi-5", "--gguf", "none", "--json", tmp_path / "fit.json")
    assert json.loads((tmp_path / "fit.json").read_text())[0]["setup"]["gguf"] is None


def test_detect_says_which_graph_of_a_bundle_runs_here(red_bundle, tmp_path):
    said = invoke("detect", "--bundle", red_bundle, "--json", tmp_path / "found.json")
    assert "on onnxruntime in fp32: " in said
    found = json.loads((tmp_path / "found.json").read_text())["vision"]
    assert (found["backend"], found["precision"]) == ("onnxruntime", "fp32")
    assert found["reason"]
