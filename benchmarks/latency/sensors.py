"""What the machine tells of itself while it is measured: CPU time, clocks, temperature, throttling, energy.

Everything is read from files below a root, so that a recorded tree is read like the machine; NVML alone is asked
through its library. What is not there is None.
"""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tvau_edge.benchmarks.latency.nvml import Nvml
from tvau_edge.benchmarks.latency.record import Readings

_PERIOD = 0.2  # seconds between two looks at sensors that have no counter


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def cpu_ticks(root: Path) -> tuple[int, int, int] | None:
    """All cores' ticks since the start: in all, idle, stolen; None where the system does not tell."""
    try:
        fields = (root / "proc/stat").read_text().splitlines()[0].split()
        user, nice, system, idle, wait, irq, soft, steal = (int(value) for value in fields[1:9])
    except (OSError, ValueError, IndexError):
        return None
    return user + nice + system + idle + wait + irq + soft + steal, idle + wait, steal


def clock_mhz(root: Path) -> float | None:
    """Mean clock of the cores in MHz."""
    cores = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
    clocks = [value / 1e3 for path in cores if (value := _number(path))]
    if not clocks:
        with suppress(OSError, ValueError):
            lines = (root / "proc/cpuinfo").read_text().splitlines()
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def temperature(root: Path) -> float | None:
    """Of the hottest zone, degrees Celsius."""
    zones = (_number(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp"))
    return max((zone / 1e3 for zone in zones if zone is not None), default=None)


def throttle_count(root: Path) -> int | None:
    """How often cores were throttled since the start."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [count for path in files if (count := _number(path)) is not None]
    return int(sum(counts)) if counts else None


@dataclass(frozen=True, slots=True)
class Rapl:
    """The energy counter of one x86 package; it wraps at `most` microjoules."""

    name: str
    file: Path
    most: float

    def microjoules(self) -> float | None:
        """The counter; None where only root may read it."""
        return _number(self.file)

    def joules_since(self, before: float) -> float | None:
        """Energy since the counter stood at `before`."""
        now = self.microjoules()
        return None if now is None else ((now - before) % (self.most + 1)) / 1e6


def rapl(root: Path) -> list[Rapl]:
    """The packages' counters; domains within a package, and psys, which holds the packages, would count twice."""
    found = []
    for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]*")):
        if folder.name.count(":") == 1:
            with suppress(OSError):
                name = (folder / "name").read_text().strip()
                if not name.startswith("package"):
                    continue
                most = _number(folder / "max_energy_range_uj") or 2.0**32
                found.append(Rapl(f"rapl {name}", folder / "energy_uj", most))
    return found


@dataclass(frozen=True, slots=True)
class Rail:
    """One rail of an INA3221 power monitor, as Jetsons have it."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float | None:
        """Power now."""
        millivolts, milliamperes = _number(self.volts), _number(self.amperes)
        return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def ina3221(root: Path) -> list[Rail]:
    """The rails that carry the whole board (VDD_IN, or all of a board that has no such rail)."""
    rails = []
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*")):
        for channel in (1, 2, 3):
            with suppress(OSError):
                name = (folder / f"in{channel}_label").read_text().strip()
                if name.upper() != "NC":  # not connected
                    paths = folder / f"in{channel}_input", folder / f"curr{channel}_input"
                    rails.append(Rail(f"ina3221 {name}", *paths))
    whole = [rail for rail in rails if rail.name.endswith("VDD_IN")]
    return whole or rails


@dataclass
class _Start:
    """The counters when a measurement began."""

    time: float
    cpu: tuple[int, int, int] | None
    ours: float
    throttled: int | None
    rapl: list[tuple[Rapl, float]] = field(default_factory=list)
    gpu: float | None = None


class Meter:
    """Watches the machine as a context manager; `readings` tells of it afterwards."""

    def __init__(self, root: Path = Path("/"), nvml: Nvml | None = None) -> None:
        self._root, self._nvml = root, nvml
        self._rails = ina3221(root)
        self._joules = dict.fromkeys((rail.name for rail in self._rails), 0.0)
        self._clocks: list[float] = []
        self._hottest: list[float] = []
        self._gpu_bytes: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sensors", daemon=True)

    def __enter__(self) -> "Meter":
        counters = [(counter, counter.microjoules()) for counter in rapl(self._root)]
        self._start = _Start(
            time.perf_counter(),
            cpu_ticks(self._root),
            _cpu_seconds(),
            throttle_count(self._root),
            [(counter, value) for counter, value in counters if value is not None],
            self._nvml.joules() if self._nvml else None,
        )
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
        self.readings = self._read()

    def _watch(self) -> None:
        seen = time.perf_counter()
        while not self._ended.wait(_PERIOD):
            now = time.perf_counter()
            for rail in self._rails:
                watts = rail.watts()
                if watts is not None:
                    self._joules[rail.name] += watts * (now - seen)
            seen = now
            self._look()

    def _look(self) -> None:
        for value, seen in ((clock_mhz(self._root), self._clocks), (temperature(self._root), self._hottest)):
            if value is not None:
                seen.append(value)
        if self._nvml:
            degrees, used = self._nvml.temperature(), self._nvml.memory()
            if degrees is not None:
                self._hottest.append(degrees)
            if used is not None:
                self._gpu_bytes.append(used)

    def _read(self) -> Readings:
        start, seconds = self._start, time.perf_counter() - self._start.time
        ours = others = stolen = None
        ticks = cpu_ticks(self._root)
        if ticks and start.cpu and ticks[0] > start.cpu[0]:
            total, idle, steal = (now - then for now, then in zip(ticks, start.cpu, strict=True))
            ours = (_cpu_seconds() - start.ours) * os.sysconf("SC_CLK_TCK") / total
            stolen = steal / total
            others = max(0.0, 1 - idle / total - stolen - ours)
        joules = {name: value for name, value in self._joules.items() if value}
        for counter, before in start.rapl:
            if (used := counter.joules_since(before)) is not None:
                joules[counter.name] = used
        if self._nvml and start.gpu is not None and (now := self._nvml.joules()) is not None:
            joules["nvml"] = now - start.gpu
        throttled = throttle_count(self._root)
        return Readings(
            seconds=seconds,
            ours=ours,
            others=others,
            stolen=stolen,
            clock_mhz=(min(self._clocks), max(self._clocks)) if self._clocks else None,
            temperature=max(self._hottest, default=None),
            throttled=None if throttled is None or start.throttled is None else throttled - start.throttled,
            joules=joules,
            gpu_bytes=max(self._gpu_bytes, default=None),
        )


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
