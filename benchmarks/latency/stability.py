"""Can a row's numbers be trusted: a verdict in words, from what the machine did while it was measured."""

from tvau_edge.benchmarks.latency.record import Row
from tvau_edge.benchmarks.latency.statistics import spread

STABLE = "stable"
_STOLEN = 0.01  # share of all cores
_OTHERS = 0.05
_CLOCKS = 0.05  # between lowest and highest
_SPREAD = 0.10  # between processes


def reasons(row: Row) -> dict[str, str]:
    """Why a row is not stable, with figures, each by its kind, which has none; empty when it is."""
    machine = [round_.machine for round_ in row.rounds]
    found = {}
    stolen = [reading.stolen for reading in machine if reading.stolen is not None]
    if stolen and max(stolen) > _STOLEN:
        found["CPU stolen"] = f"CPU stolen, up to {max(stolen):.0%}"
    others = [reading.others for reading in machine if reading.others is not None]
    if others and max(others) > _OTHERS:
        found["other processes"] = f"other processes used up to {max(others):.0%} of the CPU"
    clocks = [reading.clock_mhz for reading in machine if reading.clock_mhz is not None]
    if clocks:
        low, high = min(low for low, _ in clocks), max(high for _, high in clocks)
        if low and high / low - 1 > _CLOCKS:
            found["clocks moved"] = f"clocks moved, {low:.0f} to {high:.0f} MHz"
    throttled = sum(reading.throttled or 0 for reading in machine)
    if throttled:
        found["throttled"] = f"throttled {throttled} times"
    if any(round_.steady is False for round_ in row.rounds):
        found["not settled"] = "not settled after warm-up"
    if len(row.rounds) < 3:
        found["too few processes"] = f"only {len(row.rounds)} of at least 3 processes"
    elif spread(row.times) > _SPREAD:
        found["processes differ"] = f"processes differ by {spread(row.times):.0%}"
    return found


def verdict(row: Row) -> str:
    """`stable`, or `unstable: …` with the reasons."""
    found = reasons(row)
    return f"unstable: {', '.join(found.values())}" if found else STABLE
