import time
from pathlib import Path

import pytest

from tvau_edge.benchmarks.latency.nvml import Nvml
from tvau_edge.benchmarks.latency.sensors import (
    Meter,
    Rapl,
    clock_mhz,
    ina3221,
    rapl,
    temperature,
    throttle_count,
)


def write(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_a_machine_without_sensors_is_blank_not_zero(tmp_path):
    with Meter(tmp_path) as meter:
        time.sleep(0.01)
    found = meter.readings
    assert found.seconds > 0
    blank = found.model_dump(exclude={"seconds"})
    assert blank.pop("joules") == {}
    assert set(blank.values()) == {None}


def test_this_machine_tells_its_cpu_time():
    with Meter() as meter:
        end = time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
    assert meter.readings.ours is not None
    assert 0 < meter.readings.ours <= 1
    assert meter.readings.others is not None
    assert meter.readings.others >= 0


def test_packages_are_counted_once(tmp_path):
    power = "sys/class/powercap"
    root = write(
        tmp_path,
        {
            f"{power}/intel-rapl:0/name": "package-0",
            f"{power}/intel-rapl:0/energy_uj": 900,
            f"{power}/intel-rapl:0/max_energy_range_uj": 999,
            f"{power}/intel-rapl:0:0/name": "core",  # part of the package
            f"{power}/intel-rapl:0:0/energy_uj": 100,
            f"{power}/intel-rapl:1/name": "psys",  # holds the package
            f"{power}/intel-rapl:1/energy_uj": 5000,
        },
    )
    assert [counter.name for counter in rapl(root)] == ["rapl package-0"]


def test_a_counter_that_wraps_goes_on(tmp_path):
    (tmp_path / "energy_uj").write_text("100\n")
    counter = Rapl("rapl package-0", tmp_path / "energy_uj", 999)
    assert counter.joules_since(900) == pytest.approx(200e-6)


def test_energy_between_is_measured(tmp_path):
    power = "sys/class/powercap/intel-rapl:0"
    root = write(tmp_path, {f"{power}/name": "package-0", f"{power}/energy_uj": 1_000_000})
    with Meter(root) as meter:
        write(tmp_path, {f"{power}/energy_uj": 3_500_000})
    assert meter.readings.joules == {"rapl package-0": pytest.approx(2.5)}


def test_a_counter_that_only_root_reads_is_blank(tmp_path):
    power = "sys/class/powercap/intel-rapl:0"
    root = write(tmp_path, {f"{power}/name": "package-0"})
    with Meter(root) as meter:
        pass
    assert meter.readings.joules == {}


JETSON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"


def test_a_jetson_gives_the_power_of_its_input(tmp_path):
    # In the layout of Jetson Linux 36 on an Orin Nano: channels with labels, millivolts and milliamperes.
    root = write(
        tmp_path,
        {
            f"{JETSON}/in1_label": "VDD_IN",
            f"{JETSON}/in1_input": 5000,
            f"{JETSON}/curr1_input": 2000,
            f"{JETSON}/in2_label": "VDD_CPU_GPU_CV",
            f"{JETSON}/in2_input": 5000,
            f"{JETSON}/curr2_input": 700,
        },
    )
    (rail,) = ina3221(root)
    assert rail.name == "ina3221 VDD_IN"
    assert rail.watts() == pytest.approx(10.0)
    with Meter(root) as meter:
        time.sleep(0.65)
    (joules,) = meter.readings.joules.values()
    assert 10 * 0.2 <= joules <= 10 * meter.readings.seconds + 0.01


def test_a_board_without_an_input_rail_is_the_sum_of_its_rails(tmp_path):
    root = write(
        tmp_path,
        {
            f"{JETSON}/in1_label": "VDD_GPU_SOC",
            f"{JETSON}/in2_label": "VDD_CPU_CV",
            f"{JETSON}/in3_label": "NC",
        },
    )
    assert [rail.name for rail in ina3221(root)] == ["ina3221 VDD_GPU_SOC", "ina3221 VDD_CPU_CV"]


def test_clocks_temperature_and_throttling_are_read(tmp_path):
    cpu, zone = "sys/devices/system/cpu", "sys/class/thermal"
    root = write(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": 1_500_000,
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": 1_700_000,
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": 2,
            f"{cpu}/cpu1/thermal_throttle/core_throttle_count": 3,
            f"{zone}/thermal_zone0/temp": 41_000,
            f"{zone}/thermal_zone1/temp": 57_500,
            f"{zone}/thermal_zone2/temp": "not a number",
        },
    )
    assert clock_mhz(root) == pytest.approx(1600)
    assert temperature(root) == pytest.approx(57.5)
    assert throttle_count(root) == 5


def test_no_gpu_is_no_fault():
    assert Nvml.open("libno-such-library.so.1") is None


@pytest.mark.hardware
def test_a_gpu_tells_energy_temperature_and_memory():
    card = Nvml.open()
    if card is None:
        pytest.skip("needs an NVIDIA GPU and its driver: libnvidia-ml.so.1 is absent")
    assert card.name()
    assert 0 < card.temperature() < 120
    assert card.memory() > 0
    before = card.joules()
    time.sleep(0.5)
    assert card.joules() > before
