"""The reader of NVML against a library of our own with NVML's signatures, since few machines have the card."""

import shutil
import subprocess

import pytest

from tvau_edge.benchmarks.latency.nvml import Nvml
from tvau_edge.benchmarks.latency.sensors import Meter

SOURCE = r"""
#include <string.h>
static unsigned long long energy = 5000;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &energy; return index; }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    energy += 2500; *mj = energy; return device == &energy ? 0 : 1;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *degrees) { *degrees = 55; return sensor; }
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *m) { m->total = 9; m->free = 2; m->used = 7; return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "A drawn card", length); return 0; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (apt-get install build-essential)")
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libnvml.so", folder / "nvml.c"], check=True)
    return folder / "libnvml.so"


def test_units_are_joules_degrees_and_bytes(library):
    card = Nvml.open(str(library))
    assert card is not None
    assert (card.name(), card.temperature(), card.memory()) == ("A drawn card", 55.0, 7)
    before = card.joules()
    assert card.joules() - before == pytest.approx(2.5)


def test_the_meter_adds_the_card(library, tmp_path):
    with Meter(tmp_path, Nvml.open(str(library))) as meter:
        pass
    assert meter.readings.joules == {"nvml": pytest.approx(2.5)}
    assert meter.readings.temperature == 55.0
    assert meter.readings.gpu_bytes == 7
