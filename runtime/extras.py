"""Which optional parts are installed."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from tvau_edge.runtime.errors import MissingExtraError

# A few modules that each extra brings: enough to tell whether it is there, without importing it.
EXTRAS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "llm": ("llama_cpp",),
    "record": ("PIL",),
    "broker": ("amqtt",),
    "metrics": ("prometheus_client",),
    "export": ("torch", "transformers", "onnx", "onnxscript", "gguf"),
    "quantize": ("onnx", "nncf", "jinja2"),
    "bench": ("sklearn", "matplotlib", "sacrebleu", "PIL", "jinja2", "onnx", "gguf"),
    "reference": ("cv2", "peft", "torch"),
}


def installed(extra: str) -> bool:
    """Tell whether every module that `extra` brings can be found."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def require(what: str, extras: Iterable[str]) -> None:
    """Raise `MissingExtraError` for the first of `extras` that is not installed.

    Args:
        what: the thing that needs them, as the user named it ("tvau export", "back end openvino").
        extras: names of extras of tvau-edge.
    """
    for extra in extras:
        if not installed(extra):
            raise MissingExtraError(what, extra)


def load(module: str, what: str, extra: str) -> ModuleType:
    """Import `module`, or raise `MissingExtraError` naming the extra that brings it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] == error.name.split(".")[0]:
            raise MissingExtraError(what, extra) from error
        raise
