"""Fixtures that every room's tests may use."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

import av
import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper

from tvau_edge.runtime.bundle import BundleWriter
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

# No test asserts wall time: on a busy machine any example may take long.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

SYSTEM_PYTHON = "/usr/bin/python3"
RTSP_BINDINGS = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
)
VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"


@pytest.fixture(scope="session")
def real_videos() -> dict[str, Path]:
    """Real H.264 clips by name; a test that wants them is skipped where they are not at hand."""
    if not VIDEOS.is_dir():
        pytest.skip("the folder of real clips, shared/videos beside the checkout, is absent")
    return {path.stem: path for path in sorted(VIDEOS.glob("*.mp4"))}


CLIP = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)
WIDTH = 64  # D of the bundle that finds red, that of the tiny language model
RED, GREY = (225, 20, 20), (110, 110, 110)
QUESTIONS = {"anomaly": "Is there any anomaly in the video?", "target": "Which target?", "to": "Where to?"}


def _red_vision() -> onnx.ModelProto:
    """Frames [B, 2, H, W, 3] -> h_c [B, 2, H', W'], high for abnormal where a cell is red, and p_v [B, N, D]."""
    rows, columns = CLIP.grid
    tokens = rows * columns // 4
    redness = np.array([[[[0.0]], [[0.0]], [[0.0]]], [[[12 / 255]], [[-6 / 255]], [[-6 / 255]]]], np.float32)
    constants = {
        "redness": redness,  # [2, 3, 1, 1]: a full red gives 0.999, grey 0.01
        "bias": np.array([0, -4.8], np.float32),
        "spread": np.random.default_rng(0).normal(0, 0.002, (3, WIDTH)).astype(np.float32),
        "shape": np.array([0, 3, tokens]),
        "zero": np.zeros(1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=[1], keepdims=0),  # [B, H, W, 3]
        helper.make_node("Transpose", ["mean"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["cells"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Conv", ["cells", "redness", "bias"], ["seen"]),  # [B, 2, H', W']
        helper.make_node("ReduceSum", ["class_features"], ["sum"], keepdims=0),  # an input that is not used
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["seen", "nothing"], ["h_c"]),
        helper.make_node("AveragePool", ["planes"], ["merged"], kernel_shape=[28, 28], strides=[28, 28]),
        helper.make_node("Reshape", ["merged", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["tokens", "spread"], ["p_v"]),  # [B, N, D]
    ]
    inputs = [
        helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 2, CLIP.height, CLIP.width, 3]),
        helper.make_tensor_value_info("class_features", TensorProto.FLOAT, [2, WIDTH]),
    ]
    outputs = [
        helper.make_tensor_value_info("h_c", TensorProto.FLOAT, ["batch", 2, rows, columns]),
        helper.make_tensor_value_info("p_v", TensorProto.FLOAT, ["batch", tokens, WIDTH]),
    ]
    return _model(nodes, inputs, outputs, constants)


def _random_rae(base_tokens: int) -> onnx.ModelProto:
    """H_c [T', 2, H', W'] -> p_an [T' - 1, N_base + 10, D], random."""
    (rows, columns), steps, tokens = CLIP.grid, CLIP.temporal_patches - 1, base_tokens + 10
    cells = 2 * rows * columns
    random = np.random.default_rng(1)
    mix = random.normal(0, 0.05, (cells, tokens * WIDTH)).astype(np.float32)
    base = random.normal(0, 0.3, (1, tokens, WIDTH)).astype(np.float32)  # what stillness gives
    constants = {
        "begin": np.array([1]), "end": np.array([steps + 1]), "zero": np.array([0]), "last": np.array([steps]),
        "flat": np.array([steps, cells]), "shape": np.array([steps, tokens, WIDTH]), "mix": mix, "base": base,
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["h_c", "begin", "end"], ["later"]),
        helper.make_node("Slice", ["h_c", "zero", "last"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["motion"]),
        helper.make_node("Reshape", ["motion", "flat"], ["cells"]),
        helper.make_node("MatMul", ["cells", "mix"], ["mixed"]),
        helper.make_node("Reshape", ["mixed", "shape"], ["encoded"]),
        helper.make_node("Add", ["encoded", "base"], ["p_an"]),
    ]
    h_c = helper.make_tensor_value_info("h_c", TensorProto.FLOAT, [steps + 1, 2, rows, columns])
    p_an = helper.make_tensor_value_info("p_an", TensorProto.FLOAT, [steps, tokens, WIDTH])
    return _model(nodes, [h_c], [p_an], constants)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    initial = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "drawn", inputs, outputs, initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_red_bundle(
    folder: Path, gguf: Path | None = None, features: np.ndarray | None = None, adapter: Path | None = None
) -> Path:
    """A bundle whose vision graph marks what is red, so that a test knows what there is to see in a drawn clip.

    With `gguf`, a language model of width 64, it has a dialogue as well.
    """
    language = None
    if gguf is not None:
        language = Language(
            files=[LanguageFile(type="f32", file=gguf.name)],
            hidden_size=WIDTH,
            tokens_per_second=2,
            system_prompt="You watch a surveillance camera.",
            questions=[Question(key=key, text=text) for key, text in QUESTIONS.items()],
            max_answer_tokens=6,
            adapter=adapter.name if adapter is not None else None,
        )
    with BundleWriter(folder) as writer:
        onnx.save(_red_vision(), writer.path("vision.onnx"))
        onnx.save(_random_rae(2), writer.path("rae.onnx"))
        if gguf is not None:
            shutil.copyfile(gguf, writer.path(gguf.name))
        if adapter is not None:
            shutil.copyfile(adapter, writer.path(adapter.name))
        features = np.eye(2, WIDTH, dtype=np.float32) if features is None else features
        writer.add_class_features("class_prompts.safetensors", features)
        writer.finish(
            lambda files: Manifest(
                name="red",
                created="2026-01-01T00:00:00Z",
                licence="Apache-2.0",
                provenance=Provenance(checkpoint="drawn", checkpoint_sha256="0" * 64),
                geometry=CLIP,
                normalization=Normalization(),
                thresholds=Thresholds(open=0.6, close=0.4),
                class_prompts=ClassPrompts(normal=["grey"], abnormal=["red"]),
                vision=[GraphFile(backend="onnxruntime", precision="fp32", file="vision.onnx")],
                rae=[GraphFile(backend="onnxruntime", precision="fp32", file="rae.onnx")],
                base_tokens=2,
                language=language,
                files=files,
            )
        )
    return folder


@pytest.fixture(scope="session")
def make_red_bundle() -> Callable[..., Path]:
    """Writes a bundle that marks what is red into a folder, given a GGUF with a dialogue as well."""
    return write_red_bundle


@pytest.fixture(scope="session")
def red_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a language model, whose vision graph marks what is red."""
    return write_red_bundle(tmp_path_factory.mktemp("red") / "bundle")


@pytest.fixture(scope="session")
def draw_clip() -> Callable[..., Path]:
    """Draws H.264 clips for `red_bundle`: grey, with a red square during the given spans of seconds."""

    def draw(
        path: Path,
        seconds: float,
        *spans: tuple[float, float],
        rate: int = 8,
        corner: tuple[int, int] = (0, 0),
        size: tuple[int, int] = (84, 56),
    ) -> Path:
        # A stream's reader waits for a program table, which FFmpeg repeats ten times a second, but not in frames.
        options = {"pat_period": "0.1"} if path.suffix == ".ts" else {}
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.options = {"preset": "ultrafast", "g": str(rate), "bf": "0"}
            stream.codec_context.time_base = Fraction(1, 1000)
            for number in range(round(seconds * rate)):
                time = number / rate
                image = np.full((size[1], size[0], 3), GREY, np.uint8)
                if any(start <= time < end for start, end in spans):
                    x, y = corner
                    image[y : y + size[1] // 2, x : x + size[0] // 3] = RED
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return draw


class FaultyCamera(ThreadingTCPServer):
    """A camera that speaks MPEG-TS over TCP; each connection meets the next of its acts, the last for ever after.

    An act is a function of the socket and of an event that is set when the camera is switched off.
    """

    daemon_threads = True
    allow_reuse_address = True
    Act = Callable[[socket.socket, threading.Event], None]

    def __init__(self, *acts: "FaultyCamera.Act", port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Feed)
        self.acts = list(acts)
        self.connections = 0
        self.off = threading.Event()
        self.url = f"tcp://user:hunter2@127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.off.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        pass  # the reader hung up


class _Feed(BaseRequestHandler):
    def handle(self) -> None:
        server: FaultyCamera = self.server  # type: ignore[assignment]
        act = server.acts[min(server.connections, len(server.acts) - 1)]
        server.connections += 1
        act(self.request, server.off)


def send(data: bytes, *, rate: float | None = None, then: str = "close") -> FaultyCamera.Act:
    """An act: send `data`, at `rate` bytes per second, then "close", be "silent", or send it "again" for ever."""

    def act(connection: socket.socket, off: threading.Event) -> None:
        step = len(data) if rate is None else max(188, int(rate / 20) // 188 * 188)
        while True:
            for start in range(0, len(data), step):
                connection.sendall(data[start : start + step])
                if rate is not None and off.wait(1 / 20):
                    return
            if then != "again":
                break
        if then == "silent":
            off.wait()

    return act


@pytest.fixture
def send_act() -> Callable[..., FaultyCamera.Act]:
    """Makes acts of `faulty_camera`: send data, at some rate, then close or be silent."""
    return send


@pytest.fixture
def faulty_camera() -> Iterator[Callable[..., FaultyCamera]]:
    """Starts cameras that go through the given acts, one per connection."""
    running: list[FaultyCamera] = []

    def start(*acts: FaultyCamera.Act, port: int = 0) -> FaultyCamera:
        running.append(FaultyCamera(*acts, port=port))
        return running[-1]

    yield start
    for camera in running:
        camera.stop()


@pytest.fixture(scope="session")
def serve_rtsp() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str, int]]]:
    """Starts RTSP servers, given a clip and a port; each serves it at the address that is returned with it."""
    if subprocess.run([SYSTEM_PYTHON, "-c", RTSP_BINDINGS], capture_output=True, check=False).returncode:
        pytest.skip(
            "GStreamer's RTSP server is absent (apt-get install python3-gi gir1.2-gst-rtsp-server-1.0)"
        )
    running = []

    def start(clip: Path, port: int | None = None) -> tuple[subprocess.Popen[str], str, int]:
        if port is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
        script = Path(__file__).parent / "runtime" / "cameras" / "rtsp_server.py"
        process = subprocess.Popen(
            [SYSTEM_PYTHON, script, str(port), str(clip)], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "serving\n"
        return process, f"rtsp://127.0.0.1:{port}/clip", port

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()
