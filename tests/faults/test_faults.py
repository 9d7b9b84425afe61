"""The short form of the fault suite: each fault at least once, everything counted. `make faults` is the long one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def test_nothing_is_lost_whatever_happens(tmp_path):
    if shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, RUN, "--faults", "10", "--seed", "1", "--json", report],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(report.read_text())
    assert result["total"] >= 11
    assert result["promised"] > 100
    assert result["came"] - result["copies"] >= result["promised"] - result["excused"]
    assert (result["missing"], result["out_of_order"], result["copies_with_another_id"]) == (0, 0, 0)
