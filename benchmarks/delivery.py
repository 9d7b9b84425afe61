"""How fast verdicts reach a broker through the outbox, beside what paho alone does in the same run.

    python -m tvau_edge.benchmarks.delivery --json delivery.json

Both send messages of about 1 kB at QoS 1 to one mosquitto on the loopback interface and count until the last one is
acknowledged, in turns, `rounds` times. The outbox's are durable before they leave: `put` is called by several
threads, each with one verdict at a time, and timed. Beside it stands what the disk takes to sync 4 kB, below which no
`put` can be.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.errors import BrokerError
from tvau_edge.runtime.verdict import Model, Prompts, Region, Verdict, at, uuid7

THREADS = 16  # that put
_STEP = 0.001


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was measured; rates are acknowledged messages per second, times of `put` are milliseconds.

    Attributes:
        messages: of each round.
        bytes: of one payload.
        threads: that called `put`.
        paho: rate of paho alone, one per round.
        outbox: rate through the outbox, one per round.
        ratio: median of outbox over median of paho.
        put_p50: of all rounds.
        put_p99: of all rounds.
        put_max: of all rounds.
        sync_p50: milliseconds of one write and sync of 4 kB on the same disk, before each round.
        sync_p99: the same.
        cpu_paho: microseconds of this process per message, of paho alone.
        cpu_outbox: the same through the outbox.
        cpu_put: of these, in the threads that put, without making their messages.
        load: 1-minute load average per core at the end; above 1, others were at work and the times are theirs too.
    """

    messages: int
    bytes: int
    threads: int
    paho: list[float]
    outbox: list[float]
    ratio: float
    put_p50: float
    put_p99: float
    put_max: float
    sync_p50: float
    sync_p99: float
    cpu_paho: float
    cpu_outbox: float
    cpu_put: float
    load: float


@contextmanager
def local_mosquitto(folder: Path) -> Iterator[int]:
    """A mosquitto on a free port of the loopback interface, for as long as the context lasts.

    Raises:
        BrokerError: mosquitto is not installed, or does not start.
    """
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise BrokerError("mosquitto is not installed: apt-get install mosquitto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{user}listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen(
        [program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise BrokerError("mosquitto does not start") from None
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def sample_verdict(camera: str = "door") -> Verdict:
    """A verdict of about 1 kB; drawn."""
    moment = at(1_800_000_000.0)
    return Verdict(
        id=uuid7(),
        event=uuid7(),
        sequence=3,
        phase="start",
        device="box",
        camera=camera,
        time=moment,
        started=moment,
        score=0.75,
        anomaly="yes",
        p_yes=0.9,
        target="a person in a red jacket on a bicycle",
        motion="riding fast across the walkway",
        from_="the left",
        to="the right",
        explanation="Yes. A person in a red jacket on a bicycle rides fast across the walkway.",
        regions=[Region(box=(0.1, 0.2, 0.3, 0.4), score=0.7, name="upper left")],
        prompts=Prompts(normal=["a person walking"], abnormal=["a person riding a bicycle"]),
        model=Model(name="m", bundle="0" * 64, backend="onnxruntime", quantization="int8"),
    )


def paho_alone(port: int, payload: bytes, messages: int) -> float:
    """Acknowledged messages per second that paho reaches, in its default window of 20."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    acknowledged = 0
    done = threading.Event()

    def count(*_: object) -> None:
        nonlocal acknowledged
        acknowledged += 1
        if acknowledged == messages:
            done.set()

    client.on_publish = count
    client.connect("127.0.0.1", port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(_STEP)
    started = time.perf_counter()
    for _ in range(messages):
        client.publish("tvau/box/door/verdict", payload, qos=1)
    done.wait(120)
    seconds = time.perf_counter() - started
    client.disconnect()
    client.loop_stop()
    if acknowledged < messages:
        raise BrokerError(f"paho alone: {acknowledged} of {messages} messages were acknowledged in 120 s")
    return messages / seconds


def through_the_outbox(
    port: int, folder: Path, payload: bytes, messages: int, threads: int
) -> tuple[float, list[float], float]:
    """Acknowledged messages per second through the outbox, seconds of each `put`, CPU seconds of all `put` together."""
    outbox = Outbox(folder / f"outbox-{time.monotonic_ns()}.db")
    publisher = Publisher(BrokerConfig(host="127.0.0.1", port=port), "box", outbox)
    publisher.start()
    times: list[list[float]] = [[] for _ in range(threads)]
    cpu = [0.0] * threads

    def put(number: int) -> None:
        clock, mine = time.perf_counter, times[number]
        for _ in range(messages // threads):
            before = clock()
            outbox.put(f"tvau/box/camera{number}/verdict", "start", payload)
            mine.append(clock() - before)
        cpu[number] = time.thread_time()

    workers = [threading.Thread(target=put, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    while len(outbox):
        time.sleep(_STEP)
    seconds = time.perf_counter() - started
    publisher.stop(0)
    outbox.close()
    return messages // threads * threads / seconds, [value for mine in times for value in mine], sum(cpu)


def sync_times(folder: Path, count: int = 200) -> list[float]:
    """Seconds of each of `count` writes and syncs of 4 kB."""
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for number in range(count):
            before = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 4096, number % 50 * 4096)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - before)
    return times


def measure(messages: int = 20_000, threads: int = THREADS, rounds: int = 3) -> Delivery:
    """Measure both, in turns.

    Raises:
        BrokerError: mosquitto is missing or does not acknowledge.
    """
    payload = sample_verdict().to_json()
    paho, outbox, puts, syncs = [], [], [], []
    cpu = [0.0, 0.0, 0.0]
    with tempfile.TemporaryDirectory() as name, local_mosquitto(Path(name)) as port:
        for _ in range(rounds):
            syncs += sync_times(Path(name))
            before = time.process_time()
            paho.append(paho_alone(port, payload, messages))
            between = time.process_time()
            rate, times, putting = through_the_outbox(port, Path(name), payload, messages, threads)
            cpu[0] += between - before
            cpu[1] += time.process_time() - between
            cpu[2] += putting
            outbox.append(rate)
            puts += times
    puts.sort()
    syncs.sort()
    microseconds = [round(seconds / rounds / messages * 1e6, 1) for seconds in cpu]
    return Delivery(
        messages=messages,
        bytes=len(payload),
        threads=threads,
        paho=[round(rate) for rate in paho],
        outbox=[round(rate) for rate in outbox],
        ratio=round(median(outbox) / median(paho), 3),
        put_p50=round(puts[len(puts) // 2] * 1e3, 3),
        put_p99=round(puts[int(len(puts) * 0.99)] * 1e3, 3),
        put_max=round(puts[-1] * 1e3, 3),
        sync_p50=round(syncs[len(syncs) // 2] * 1e3, 3),
        sync_p99=round(syncs[int(len(syncs) * 0.99)] * 1e3, 3),
        cpu_paho=microseconds[0],
        cpu_outbox=microseconds[1],
        cpu_put=microseconds[2],
        load=round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),
    )


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = asdict(measure(options.messages, options.threads, options.rounds))
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
