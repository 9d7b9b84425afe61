"""A process that puts numbered verdicts of three cameras into an outbox and has them delivered; made to be killed.

    python producer.py PORT OUTBOX FIRST FIRST FIRST

Prints `<camera> <number> <id> <1 if on disk>` after each `put` that returned. Obeys lines of standard input: `clock
SECONDS` sets its clock, `finish SECONDS` delivers what is left, prints `left N` and ends.
"""

import os
import sys
import threading
import time
from pathlib import Path

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.verdict import Model, Prompts, Verdict, at, uuid7

PAUSE = 0.02  # seconds between two verdicts of a camera

steady = time.time
shift = 0.0
time.time = lambda: steady() + shift

port, path, firsts = int(sys.argv[1]), Path(sys.argv[2]), [int(first) for first in sys.argv[3:]]
outbox = Outbox(path)
if outbox._database is not None:  # a short log, so that a full disk is met soon
    outbox._database.execute("PRAGMA wal_autocheckpoint = 20")
publisher = Publisher(BrokerConfig(host="127.0.0.1", port=port, keepalive=2, wait=True), "box", outbox)
finishing = threading.Event()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())  # in one piece, and gone from this process


def produce(camera: int, number: int) -> None:
    while not finishing.wait(PAUSE):
        now = at(time.time())
        verdict = Verdict(
            id=uuid7(),
            event=uuid7(),
            sequence=number,
            phase="start",  # never dropped while others are there
            device="box",
            camera=f"camera{camera}",
            time=now,
            started=now,
            score=0.5,
            anomaly="unsure",
            prompts=Prompts(normal=["a person"], abnormal=["a thief"]),
            model=Model(name="drawn", bundle="0" * 64, backend="none", quantization="none"),
        )
        publisher.publish_verdict(verdict)
        say(f"{camera} {number} {verdict.id} {int(outbox.durable)}")
        number += 1


publisher.start()
threads = [
    threading.Thread(target=produce, args=(camera, first), daemon=True) for camera, first in enumerate(firsts)
]
for thread in threads:
    thread.start()
for line in sys.stdin:
    word, value = line.split()
    if word == "clock":
        shift += float(value)
    elif word == "finish":
        finishing.set()
        for thread in threads:
            thread.join()
        end = time.monotonic() + float(value)
        while len(outbox) and time.monotonic() < end:
            time.sleep(0.05)
        say(f"left {publisher.stop(5)}")
        outbox.close()
        break
