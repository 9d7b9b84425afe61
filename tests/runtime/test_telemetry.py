"""The libraries that we stand on tell nobody that they run."""

import os
import subprocess
import sys

import pytest

IMPORTS = {
    "onnxruntime": "import tvau_edge.runtime.backends.onnxruntime",
    "openvino": "from tvau_edge.runtime.backends.openvino import core; core()",
}


@pytest.mark.parametrize("library", IMPORTS)
def test_a_library_leaves_nothing_at_home(library, tmp_path):
    """Where it keeps the id that it reports under."""
    pytest.importorskip(library)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")
    }
    environment["HOME"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", IMPORTS[library]], env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []
