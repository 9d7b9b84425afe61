"""Injects faults into delivery and counts what arrives.

    python tests/faults/run.py --faults 1000 --seed 1 --json faults.json

Real mosquitto, real outbox on a small file system of its own (a tmpfs, which takes root; without it the disk is
never filled), a TCP proxy that misbehaves, a producer process that is killed, and a subscriber with a persistent
session. Ends with a table, and with exit code 1 when anything promised is missing, out of order, or comes twice with
different ids.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from rich.console import Console
from rich.progress import track
from rich.table import Table
from world import DISK, FAULTS, Fault, World

console = Console(stderr=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs at `folder`; yields whether it could be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def draw(random: Random, count: int, full: bool) -> list[Fault]:
    """So many faults in their proportions, in random order; each kind at least once."""
    kinds = {fault: share for fault, share in FAULTS.items() if full or fault is not World.disk_full}
    total = sum(kinds.values())
    drawn = [fault for fault, share in kinds.items() for _ in range(max(1, round(share * count / total)))]
    random.shuffle(drawn)
    return drawn


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="none: by the clock; it is printed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    console.print(f"seed {seed}")
    random, tally, started = Random(seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as full:
        world = World(Path(name), Path(name) / "disk")
        try:
            for fault in track(draw(random, options.faults, full), "faults", console=console):
                fault(world, random)
                tally[fault.__name__] += 1
                time.sleep(random.uniform(0, 0.2))
            world.finish(120)
            result = world.ledger.judge(world.counter)
        finally:
            world.close()
            log = (Path(name) / "producer.log").read_text()
            crashed = "Traceback" in log
            if crashed:
                console.print(log[-4000:], markup=False)
    report = {
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
        "faults": dict(sorted(tally.items())),
        "total": tally.total(),
        "disk_refused": log.count("cannot be written"),
        "clock_noticed": log.count("the clock was set"),
        "excused": len(world.ledger.excused),
        "left": world.left,
        **result,
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    bad = crashed or world.left != 0
    return int(bad or any(result[key] for key in ("missing", "out_of_order", "copies_with_another_id")))


def show(report: dict) -> None:
    """Print the table."""
    table = Table(title=f"{report['total']} faults in {report['seconds']:g} s, seed {report['seed']}")
    table.add_column("fault")
    table.add_column("times", justify="right")
    for name, times in report["faults"].items():
        table.add_row(name.replace("_", " "), str(times))
    table.add_section()
    for key, text in (
        ("promised", "verdicts that put returned for"),
        ("came", "messages that came"),
        ("copies", "of these, copies with the same id"),
        ("copies_with_another_id", "copies with another id"),
        ("missing", "missing"),
        ("excused", "killed while the disk was full, before they were on it"),
        ("out_of_order", "out of order"),
        ("left", "left in the outbox"),
        ("disk_refused", "times that the outbox met a full disk"),
        ("clock_noticed", "times that it noticed a clock that was set"),
    ):
        table.add_row(text, str(report[key]))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
