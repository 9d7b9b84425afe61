import subprocess
import sys

import pytest

from tvau_edge.runtime import cli, extras
from tvau_edge.runtime.errors import MissingExtraError


def tvau(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvau_edge.runtime.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def test_help_lists_the_verbs():
    done = tvau("--help")
    assert done.returncode == 0
    for verb in ("run", "export"):
        assert verb in done.stdout


def test_a_verb_whose_extra_is_missing_names_it(monkeypatch):
    monkeypatch.setattr(cli, "installed", lambda extra: extra != "export")
    app = cli.build_app()
    with pytest.raises(MissingExtraError, match=r"pip install 'tvau-edge\[export\]'"):
        app(["export", "checkpoint", "--out", "x"], standalone_mode=False)


def test_a_missing_module_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="openvino"):
        extras.load("openvino", "back end openvino", "openvino")


def test_errors_are_sentences_not_tracebacks(tmp_path):
    done = tvau("run", "--config", str(tmp_path / "none.toml"))
    assert done.returncode == 1
    assert "no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_the_workstation_is_loaded():
    code = (
        "import sys; import tvau_edge.runtime.cli as c, tvau_edge.runtime.service.pipeline; c.build_app();"
        "bad = {'torch', 'transformers', 'onnx', 'openvino', 'llama_cpp', 'PIL', 'matplotlib', 'cv2'};"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
