import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from tvau_edge.runtime.errors import ConfigError, MissingExtraError
from tvau_edge.runtime.service import watching
from tvau_edge.runtime.service.watching import configure
from tvau_edge.runtime.verdict import verdict_schema

ZEROES = ("dropped", "repeated", "still", "frames_dropped", "reconnects")
VALID = Draft202012Validator(verdict_schema())


def tvau(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, draw_clip):
    """Eight seconds with something red from 2 to 5 in the upper left."""
    return draw_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 8, (2, 5))


def write_site(folder: Path, bundle: Path, port: int, *cameras: tuple[str, object], **tables: str) -> Path:
    lines = ['device = "box"', f'bundle = "{bundle}"']
    lines += ["[broker]", 'host = "127.0.0.1"', f"port = {port}", tables.get("broker", "")]
    lines += [f"[{name}]\n{keys}" for name, keys in tables.items() if name not in ("broker", "camera")]
    for name, source in cameras:
        lines += ["[[camera]]", f'name = "{name}"', f'source = "{source}"', tables.get("camera", "")]
    path = folder / "site.toml"
    path.write_text("\n".join(lines))
    return path


def verdicts(subscriber, camera, device="box"):
    found = [json.loads(payload) for payload in subscriber.payloads(f"tvau/{device}/{camera}/verdict")]
    for verdict in found:
        VALID.validate(verdict)
    return found


def refused(done, *parts):
    """The verb said what is wrong, in sentences."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in " ".join(done.stderr.split())


# ---------------------------------------------------------------- end to end


def test_from_a_clip_to_verdicts_at_a_subscriber(red_bundle, clip, mosquitto, subscriber, tmp_path):
    summary = tmp_path / "summary.json"
    done = tvau(
        "--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}", "--json", summary
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subscriber.wait_payload("tvau/edge/available", b"stopped")
    assert subscriber.payloads("tvau/edge/available") == [b"online", b"stopped"]
    told = verdicts(subscriber, "camera", "edge")
    assert [verdict["phase"] for verdict in told] == ["start", "end"]
    assert told[0]["regions"][0]["name"] == "upper left"
    assert told[0]["model"]["name"] == "red"
    states = [json.loads(payload) for payload in subscriber.payloads("tvau/edge/camera/state")]
    assert {state["anomaly"] for state in states} == {"ON", "OFF"}
    numbers = json.loads(summary.read_text())
    assert numbers["verdicts"] == 2
    assert numbers["cameras"] == [{"camera": "camera", "patches": 16, "events": 1} | dict.fromkeys(ZEROES, 0)]
    assert "camera: 16 temporal patches, 0 dropped, 1 events" in done.stderr
    assert "2 verdicts, 0 events explained" in done.stderr


def test_with_a_file_two_cameras_and_explanations(talking_bundle, clip, mosquitto, subscriber, tmp_path):
    site = write_site(tmp_path, talking_bundle, mosquitto.port, ("door", clip), ("yard", clip))
    done = tvau("--config", site)
    assert done.returncode == 0, done.stderr
    subscriber.wait_payload("tvau/box/available", b"stopped")
    for camera in ("door", "yard"):
        told = verdicts(subscriber, camera)
        assert [verdict["sequence"] for verdict in told] == list(range(len(told)))
        assert (told[0]["phase"], told[0]["explanation"]) == ("start", None)
        assert {verdict["phase"] for verdict in told} == {"start", "update", "end"}
        explained = [verdict for verdict in told if verdict["p_yes"] is not None]
        assert explained
        assert {"wait", "rae", "prefill", "answers"} <= explained[0]["latency_ms"].keys()
        assert explained[0]["model"]["quantization"] == "fp32, f32"
    assert "2 events explained" in done.stderr


def test_without_language_when_it_is_off(talking_bundle, clip, mosquitto, subscriber):
    done = tvau(
        "--bundle", talking_bundle, "--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}", "--llm", "off",
        "--mqtt", "3.1.1", "--backend", "onnxruntime", "--precision", "fp32", "--camera", "gate",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subscriber.wait_payload("tvau/edge/available", b"stopped")
    assert [verdict["p_yes"] for verdict in verdicts(subscriber, "gate", "edge")] == [None, None]


def test_record_and_sheet(red_bundle, clip, mosquitto, tmp_path):
    video, sheet = tmp_path / "seen.mp4", tmp_path / "sheet.png"
    done = tvau(
        "--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}", "--record", video,
        "--sheet", sheet,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 64
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_recording_is_masked_as_well(red_bundle, clip, mosquitto, tmp_path):
    """It reads the clip a second time: what nobody may see must not come back by that door."""
    mask = "mask = [[[0.5, 0], [1, 0], [1, 1], [0.5, 1]]]"
    site = write_site(tmp_path, red_bundle, mosquitto.port, ("door", clip), camera=mask)
    video, sheet = tmp_path / "seen.mp4", tmp_path / "sheet.png"
    done = tvau("--config", site, "--record", video, "--sheet", sheet)
    assert done.returncode == 0, done.stderr
    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            assert np.median(image[8:40, 46:]) < 30  # but for the heat and the strip of the score
            assert np.median(image[8:40, :36]) > 60
    tile = np.asarray(Image.open(sheet))[6:62, 6:90]
    assert np.median(tile[8:40, 46:]) < 30


def test_a_real_clip_end_to_end(red_bundle, real_videos, mosquitto, subscriber):
    path = real_videos["car-detection"]
    done = tvau("--bundle", red_bundle, "--source", path, "--broker", f"127.0.0.1:{mosquitto.port}")
    assert done.returncode == 0, done.stderr
    subscriber.wait_payload("tvau/edge/available", b"stopped")
    verdicts(subscriber, "camera", "edge")  # valid, whatever it takes for red
    assert subscriber.payloads("tvau/edge/camera/state")


def test_what_is_not_delivered_is_kept_and_told(red_bundle, clip, free_port, tmp_path):
    broker = "wait = true\nconnect_seconds = 0.1"
    site = write_site(tmp_path, red_bundle, free_port, ("door", clip), broker=broker)
    done = tvau("--config", site)
    assert done.returncode == 0, done.stderr
    assert "2 messages were not delivered" in done.stderr
    assert (tmp_path / "tvau-outbox.db").exists()


def test_what_was_kept_is_delivered_by_the_next_run(red_bundle, clip, mosquitto, subscriber, tmp_path):
    mosquitto.kill()
    site = write_site(tmp_path, red_bundle, mosquitto.port, ("door", clip), broker="wait = true")
    assert tvau("--config", site).returncode == 0
    mosquitto.start()
    subscriber.await_subscription(2)
    assert tvau("--config", site).returncode == 0
    subscriber.wait_payload("tvau/box/available", b"stopped")
    events = [verdict["event"] for verdict in verdicts(subscriber, "door")]
    assert len(events) == 4
    assert (events[0], events[2]) == (events[1], events[3])
    assert events[0] != events[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(red_bundle, draw_clip, mosquitto, subscriber, tmp_path, number):
    # Long enough that only the signal can end it: an hour of a clip, at the speed of the pipeline.
    clip = draw_clip(tmp_path / "hour.mp4", 3600, (2, 3600), rate=4)
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", "run", "--bundle", str(red_bundle), "--source"]
    command += [str(clip), "--broker", f"127.0.0.1:{mosquitto.port}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        subscriber.wait("tvau/edge/camera/verdict")
        os.kill(process.pid, number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    subscriber.wait_payload("tvau/edge/available", b"stopped")
    told = verdicts(subscriber, "camera", "edge")
    assert (told[0]["phase"], told[-1]["phase"]) == ("start", "end")


# ---------------------------------------------------------------- what is wrong with the command line


def test_nothing_is_given():
    refused(tvau(), "give --config FILE, or --bundle DIR and --source VIDEO")


def test_no_source(red_bundle):
    refused(tvau("--bundle", red_bundle), "--source VIDEO")


def test_no_bundle(clip, tmp_path, mosquitto):
    arguments = ("--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}")
    refused(tvau("--bundle", tmp_path / "absent", *arguments), "absent")


def test_no_broker(red_bundle, clip, free_port):
    done = tvau("--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{free_port}")
    refused(done, f"127.0.0.1:{free_port}", "nothing listens there", "broker.wait = true")


def test_no_such_video(red_bundle, tmp_path, mosquitto):
    arguments = ("--bundle", red_bundle, "--broker", f"127.0.0.1:{mosquitto.port}")
    refused(tvau(*arguments, "--source", tmp_path / "absent.mp4"), "absent.mp4", "no such file")


def test_a_video_that_is_too_small_says_what_to_do(red_bundle, draw_clip, tmp_path, mosquitto):
    clip = draw_clip(tmp_path / "small.mp4", 2, size=(56, 28))
    arguments = ("--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}")
    refused(tvau(*arguments), "56x28", "upscale = true")
    assert tvau(*arguments, "--upscale").returncode == 0


OPTIONS = {
    "bundle": None, "source": None, "broker": None, "mqtt": None, "camera": "camera", "upscale": False
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "vision", "language", "expected"),
    [
        ({"camera": "a/b"}, {}, None, r"camera\[0\].name = 'a/b'"),
        ({"camera": ""}, {}, None, r"camera\[0\].name"),
        ({"mqtt": "4"}, {}, None, "broker.protocol = '4'"),
        ({"broker": "http://host"}, {}, None, "expected host:port"),
        ({"broker": "mqtt://me:hunter2@host"}, {}, None, "can be seen by every process"),
        ({}, {"backend": "tpu"}, None, "vision.backend = 'tpu'"),
        ({}, {"precision": "int3"}, None, "vision.precision = 'int3'"),
        ({}, {}, "maybe", "language.enabled = 'maybe'"),
    ],
)
def test_wrong_options_name_the_key(options, vision, language, expected):
    given = OPTIONS | {"bundle": Path("bundle"), "source": "clip.mp4"} | options
    with pytest.raises(ConfigError, match=expected) as caught:
        configure(None, given, {"backend": None, "precision": None} | vision, language)
    assert "hunter2" not in str(caught.value)


def test_the_command_line_wins_over_the_file(tmp_path):
    site = write_site(tmp_path, tmp_path / "bundle", 1883, ("door", "a.mp4"), vision='precision = "int8"')
    options = OPTIONS | {"source": "b.mp4", "broker": "other:1884", "camera": "gate"}
    config = configure(site, options, {"backend": "openvino", "precision": None}, "off")
    assert (config.broker.host, config.broker.port, config.device) == ("other", 1884, "box")
    assert [(camera.name, camera.source) for camera in config.camera] == [
        ("gate", str(Path("b.mp4").absolute()))
    ]
    assert (config.vision.backend, config.vision.precision, config.language.enabled) == (
        "openvino",
        "int8",
        "off",
    )


@pytest.mark.parametrize(
    ("source", "kept"),
    [("rtsp://cam/1", True), ("/dev/video0", True), ("clip.mp4", False)],
)
def test_a_source_of_the_command_line_is_beside_us(source, kept):
    config = configure(None, OPTIONS | {"bundle": Path("b"), "source": source}, {}, None)
    assert config.camera[0].source == (source if kept else str(Path(source).absolute()))
    assert config.bundle == Path("b").absolute()


def test_on_without_a_language_model(red_bundle, clip, mosquitto):
    done = tvau(
        "--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{mosquitto.port}", "--llm", "on"
    )  # fmt: skip
    refused(done, "has no language model; export with --llm")


def test_record_wants_one_file(red_bundle, clip, tmp_path, mosquitto):
    site = write_site(tmp_path, red_bundle, mosquitto.port, ("a", clip), ("b", clip))
    refused(tvau("--config", site, "--record", tmp_path / "seen.mp4"), "one file or folder, not with several")
    arguments = ("--bundle", red_bundle, "--source", "rtsp://cam/1", "--sheet", tmp_path / "sheet.png")
    refused(tvau(*arguments), "not with several cameras or a live one")


@pytest.mark.parametrize("option", ["--json", "--record", "--sheet"])
def test_a_result_that_cannot_be_written_is_told_before_the_work(
    red_bundle, clip, tmp_path, free_port, option
):
    (tmp_path / "file").write_text("not a folder")
    done = tvau(
        "--bundle", red_bundle, "--source", clip, "--broker", f"127.0.0.1:{free_port}",
        option, tmp_path / "file" / "result.png",
    )  # fmt: skip
    refused(done, option, "cannot be written")


def test_the_extra_of_a_recording_is_asked_for_first(red_bundle, clip, monkeypatch, tmp_path):
    monkeypatch.setattr("tvau_edge.runtime.extras.installed", lambda extra: extra != "record")
    monkeypatch.setattr(watching, "watch", lambda site: pytest.fail("it watched first"))
    with pytest.raises(MissingExtraError, match=r"--record needs the extra 'record'"):
        watching.run_verb(bundle=red_bundle, source=str(clip), camera="camera", recording=tmp_path / "a.mp4")
