from dataclasses import replace

import pytest

from tvau_edge.devices.detection import detect
from tvau_edge.devices.profile import DeviceError
from tvau_edge.runtime.detection import choice as module
from tvau_edge.runtime.detection.choice import Preference, choose_graph, preference
from tvau_edge.runtime.errors import BackendError, MissingExtraError
from tvau_edge.runtime.manifest import GraphFile

EXPORTED = [  # what `tvau export` makes
    GraphFile(backend="onnxruntime", precision="fp32", file="vision.onnx"),
    GraphFile(backend="onnxruntime", precision="int8", file="vision.int8.onnx"),
    GraphFile(backend="openvino", precision="fp32", file="vision.xml"),
]
QUANTIZED = [*EXPORTED, GraphFile(backend="openvino", precision="int8", file="vision.int8.xml")]
AMX = Preference("openvino", ("int8", "bf16"), True, "x86-amx")
JETSON = Preference("tensorrt", ("int8",), False, "jetson-orin-nano-8gb")
VNNI = Preference("openvino", ("int8",), False, "x86-vnni")


@pytest.fixture
def on(monkeypatch):
    """Let this be a machine of some preference."""

    def is_machine(wanted):
        monkeypatch.setattr(module, "preference", lambda part: wanted)

    return is_machine


@pytest.mark.parametrize(
    ("machine", "graphs", "backend", "precision", "chosen"),
    [
        (AMX, EXPORTED, "auto", "auto", ("openvino", "bf16", "vision.xml")),
        (AMX, QUANTIZED, "auto", "auto", ("openvino", "int8", "vision.int8.xml")),
        (AMX, QUANTIZED, "auto", "bf16", ("openvino", "bf16", "vision.xml")),
        (AMX, EXPORTED, "openvino", "auto", ("openvino", "bf16", "vision.xml")),
        (AMX, EXPORTED, "openvino", "fp32", ("openvino", "fp32", "vision.xml")),
        (AMX, EXPORTED, "onnxruntime", "auto", ("onnxruntime", "int8", "vision.int8.onnx")),
        (AMX, EXPORTED, "auto", "fp32", ("onnxruntime", "fp32", "vision.onnx")),
        (AMX, EXPORTED[:2], "auto", "auto", ("onnxruntime", "int8", "vision.int8.onnx")),
        (VNNI, EXPORTED, "auto", "auto", ("onnxruntime", "int8", "vision.int8.onnx")),
        (VNNI, QUANTIZED, "auto", "auto", ("openvino", "int8", "vision.int8.xml")),
        (VNNI, EXPORTED, "openvino", "auto", ("openvino", "fp32", "vision.xml")),
        (Preference(), QUANTIZED, "auto", "auto", ("onnxruntime", "int8", "vision.int8.onnx")),
        (Preference(), EXPORTED, "openvino", "auto", ("openvino", "fp32", "vision.xml")),
        # A CPU that has bf16 without AMX: not asked for by its profile, but there when the user asks.
        (
            Preference("openvino", ("int8",), True, "x86-vnni"),
            EXPORTED,
            "auto",
            "bf16",
            ("openvino", "bf16", "vision.xml"),
        ),
        (
            Preference("tensorrt", ("int8",), False, "jetson"),
            EXPORTED,
            "auto",
            "auto",
            ("onnxruntime", "int8", "vision.int8.onnx"),
        ),
    ],
)
def test_which_graph_is_chosen(on, machine, graphs, backend, precision, chosen):
    on(machine)
    found = choose_graph(graphs, backend, precision)
    assert (found.backend, found.precision, found.file) == chosen
    assert found.reason


def test_the_reason_names_the_profile(on):
    on(AMX)
    assert choose_graph(EXPORTED, "auto", "auto").reason == "profile x86-amx prefers it"
    assert "x86-amx prefers openvino int8 or bf16" in choose_graph(EXPORTED[:2], "auto", "auto").reason
    on(Preference())
    assert choose_graph(EXPORTED, "auto", "auto").reason == "no device profile fits this machine"


def test_openvino_that_is_not_installed_is_not_chosen(on, monkeypatch):
    on(AMX)
    monkeypatch.setattr(module, "installed", lambda extra: False)
    assert choose_graph(EXPORTED, "auto", "auto").file == "vision.int8.onnx"
    assert choose_graph(EXPORTED, "auto", "fp32").file == "vision.onnx"
    for backend, precision in (("openvino", "auto"), ("auto", "bf16")):
        with pytest.raises(MissingExtraError, match="back end openvino needs the extra 'openvino'"):
            choose_graph(EXPORTED, backend, precision)
    with pytest.raises(MissingExtraError, match="back end openvino needs the extra 'openvino'"):
        choose_graph(EXPORTED[2:], "auto", "auto")


def test_what_cannot_be_chosen(on):
    on(VNNI)
    with pytest.raises(
        BackendError, match=r"back end openvino at precision int8; it has: onnxruntime fp32, onn"
    ):
        choose_graph(EXPORTED, "openvino", "int8")
    with pytest.raises(BackendError, match=r"back end auto at precision fp16; it has: .*, openvino fp32"):
        choose_graph(EXPORTED, "auto", "fp16")
    with pytest.raises(BackendError, match=r"back end onnxruntime at precision bf16; it has: "):
        choose_graph(EXPORTED, "onnxruntime", "bf16")
    with pytest.raises(BackendError, match=r"this CPU does not compute in bfloat16.*choose auto or fp32"):
        choose_graph(EXPORTED, "auto", "bf16")
    with pytest.raises(BackendError, match="unknown back end 'npu'; known: auto, onnxruntime, openvino"):
        choose_graph(EXPORTED, "npu", "auto")
    for_tensorrt = [GraphFile(backend="tensorrt", precision="int8", file="vision.trt.onnx")]
    with pytest.raises(BackendError, match="it has: tensorrt int8"):
        choose_graph(for_tensorrt, "onnxruntime", "auto")
    assert choose_graph(for_tensorrt, "auto", "auto").backend == "tensorrt"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2 avx512f avx512_vnni amx_bf16 amx_tile amx_int8", AMX),
        ("avx2 avx512f avx512_vnni avx512_bf16", replace(VNNI, bf16=True)),
        ("avx2 avx_vnni", VNNI),
    ],
)
def test_the_preference_is_the_profile_s(tmp_path, monkeypatch, flags, expected):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nmodel name : A CPU\nflags : {flags}\n")
    monkeypatch.setattr(module, "detect", lambda: detect(tmp_path))
    assert preference.__wrapped__("vision") == expected
    assert preference.__wrapped__("rae") == replace(expected, precisions=("fp32",))


def test_a_machine_that_no_profile_fits(monkeypatch):
    def nothing():
        raise DeviceError("no profile fits")

    monkeypatch.setattr(module, "detect", nothing)
    assert preference.__wrapped__("vision") == Preference()
