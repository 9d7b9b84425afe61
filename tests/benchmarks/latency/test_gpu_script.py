"""scripts/verify_on_gpu.sh from its first line to its last, with TensorRT and CUDA that stand in.

The stand-in computes with ONNX Runtime on the CPU: agreement is to be perfect, and its times say nothing of a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tvau_edge.benchmarks.latency.cli import bench_verb
from tvau_edge.benchmarks.latency.footage import draw_footage
from tvau_edge.benchmarks.latency.record import read_run
from tvau_edge.runtime.extras import installed

ROOT = Path(__file__).resolve().parents[3]
# Python runs this at its start, in every process that the script and the benchmark begin.
STAND_IN = """
import sys
from cuda_standin import FakeCuda, FakeDriver
from tensorrt_standin import make_tensorrt
from tvau_edge.runtime.backends import cuda
library = FakeCuda()
cuda._open = lambda names: library if "cudart" in names[0] else FakeDriver()
sys.modules["tensorrt"] = make_tensorrt("10.3.0", library)
"""


pytestmark = pytest.mark.timeout(1200)  # twenty processes, one after another; each loads all of Python anew


@pytest.fixture(scope="module")
def verified(red_bundle, tmp_path_factory):
    """Runs the script once; returns the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "sitecustomize.py").write_text(STAND_IN)
    draw_footage(folder / "drawn.mp4", 168, 112)
    paths = (folder, ROOT / "tests/doubles", os.environ.get("PYTHONPATH", ""))
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
        "ROUNDS": "1",
    }
    script = [ROOT / "scripts/verify_on_gpu.sh", red_bundle, folder / "drawn.mp4", folder / "gpu.json"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_script_writes_a_run_that_the_benchmark_reads(verified):
    run = read_run(verified / "gpu.json")
    rows = {row.key: row for row in run.rows}
    for key in ("vision · tensorrt fp32 · SingleStream", "RAE · tensorrt fp32", "RAE · onnxruntime fp32"):
        assert rows[key].rounds, rows[key].missing
    assert rows["vision · tensorrt fp32 · SingleStream"].ours
    # Engines are built for batches up to four; the rows of eight and sixteen say so.
    assert "batches of 1 to 4" in rows["vision · tensorrt fp32 · Offline"].missing


def test_agreement_and_engines_stand_beside_it(verified):
    table = json.loads((verified / "gpu.agreement.json").read_text())
    assert [engine["graph"] for engine in table["engines"]] == ["vision.onnx", "rae.onnx"]
    assert table["comparison"]["good"]
    assert min(one["cosine"] for one in table["comparison"]["agreement"].values()) > 0.9999


@pytest.mark.skipif(not installed("bench"), reason="needs the extra bench")
def test_report_and_compare_take_it(verified, tmp_path):
    page, said = tmp_path / "page.html", CliRunner()
    done = said.invoke(bench_verb, ["report", str(verified / "gpu.json"), "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "tensorrt fp32" in page.read_text()
    again = [str(verified / "gpu.json")] * 2
    done = said.invoke(bench_verb, ["compare", *again, "--json", str(tmp_path / "c.json")])
    assert done.exit_code == 0, done.output
    keys = {change["row"] for change in json.loads((tmp_path / "c.json").read_text())[0]["changes"]}
    assert "vision · tensorrt fp32 · SingleStream" in keys
