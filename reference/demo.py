"""`tvau demo`: the main job on one machine, each part by the command that a user would give."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from tvau_edge.devices.errors import TvauError
from tvau_edge.export.bundle import Options, export_bundle
from tvau_edge.quantize.steps import ShownSteps
from tvau_edge.reference.clip import Clip
from tvau_edge.reference.storage import write_clip
from tvau_edge.runtime.delivery.embedded_broker import EmbeddedBroker
from tvau_edge.runtime.verdict import Verdict

CHECKPOINT = Path(__file__).parent / "checkpoint"
# Seeds that nothing was trained or evaluated on.
CLIP = (3_000_004, ("fall",))
CALIBRATION = (3_000_101, ("run",))
console = Console(stderr=True)


def run_demo(out: Path, checkpoint: Path | None = None) -> list[Verdict]:
    """Run the main job.

    Args:
        out: folder for bundle, clip, overlay and contact sheet; what is there and unchanged is used again.
        checkpoint: folder; the reference checkpoint by default.

    Returns:
        The verdicts, as an MQTT subscriber received them.

    Raises:
        TvauError: a part of the job failed; says which.
    """
    started = time.monotonic()
    console.rule("1. a drawn street, as an H.264 file")
    street, calibration = out / "street.mp4", out / "calibration.mp4"
    with ShownSteps(console) as steps:
        for path, clip in ((street, Clip.draw(*CLIP)), (calibration, Clip.draw(*CALIBRATION))):
            if path.exists():
                console.print(f"{path}: there already", highlight=False)
                continue
            steps.begin(f"drawing {path}")
            write_clip(clip, path, advance=steps.advance)

    console.rule("2. the reference checkpoint becomes a bundle")
    with ShownSteps(console) as steps:
        bundle, made = export_bundle(checkpoint or CHECKPOINT, out / "bundle", Options(calibration), steps)
    console.print(
        f"{bundle.path}: {'made' if made else 'unchanged'}; licence {bundle.manifest.licence}",
        highlight=False,
    )

    console.rule("3. the runtime watches; a subscriber listens")
    verdicts: list[Verdict] = []
    with EmbeddedBroker() as broker:
        console.print(f"embedded broker on 127.0.0.1:{broker.port}", highlight=False)
        subscriber = Subscriber(broker.port, verdicts.append)
        command = [
            *(sys.executable, "-m", "tvau_edge.runtime.cli", "run"),
            *("--bundle", str(bundle.path), "--source", str(street), "--camera", "street"),
            *("--broker", f"127.0.0.1:{broker.port}", "--mqtt", "3.1.1"),
            *("--record", str(out / "overlay.mp4"), "--sheet", str(out / "heatmaps.png")),
        ]
        console.print(f"tvau {' '.join(command[3:])}", style="dim", highlight=False)
        status = subprocess.run(command, check=False).returncode
        subscriber.close()
    if status != 0:
        raise TvauError(f"tvau run ended with status {status}; its message stands above")
    if not verdicts:
        raise TvauError("the subscriber received no verdict: the checkpoint saw nothing in the drawn clip")

    console.rule("4. what was received over MQTT")
    for verdict in verdicts:
        console.print(_panel(verdict))
    (out / "verdicts.jsonl").write_bytes(b"".join(verdict.to_json() + b"\n" for verdict in verdicts))
    console.print(_written(out, time.monotonic() - started))
    return verdicts


class Subscriber:
    """Receives verdicts as any back end would, through a broker.

    Args:
        port: of the broker on this machine.
        receive: takes each verdict, on paho's thread.

    Raises:
        TvauError: the broker does not answer.
    """

    def __init__(self, port: int, receive: Callable[[Verdict], None]) -> None:
        self._receive = receive
        self._ready = threading.Event()
        self._stopped = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe("tvau/#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(10):
            raise TvauError("the embedded broker does not answer a subscription")

    def _on_message(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/verdict"):
            self._receive(Verdict.model_validate(json.loads(message.payload)))
        elif message.topic.endswith("/available") and message.payload == b"stopped":
            self._stopped.set()

    def close(self) -> None:
        """Wait until the runtime has said goodbye, which comes after its last verdict, and disconnect."""
        self._stopped.wait(5)
        self._client.disconnect()
        self._client.loop_stop()


def _panel(verdict: Verdict) -> Panel:
    table = Table.grid(padding=(0, 2))
    place = ", ".join(region.name for region in verdict.regions[:3]) or "-"
    p_yes = "not asked yet" if verdict.p_yes is None else f"{verdict.p_yes:.2f}"
    rows = [
        ("anomaly", f"{verdict.anomaly} (p_yes {p_yes})"),
        ("score", f"{verdict.score:.2f} at {place}"),
        *((name, text) for name, text in _answers(verdict) if text),
        (
            "latency",
            ", ".join(f"{stage} {value:.0f} ms" for stage, value in verdict.latency_ms.items()) or "-",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    title = f"{verdict.phase} of event {str(verdict.event)[:8]}, message {verdict.sequence}"
    return Panel(table, title=title, title_align="left")


def _answers(verdict: Verdict) -> list[tuple[str, str | None]]:
    return [
        ("target", verdict.target),
        ("motion", verdict.motion),
        ("from", verdict.from_),
        ("to", verdict.to),
    ]


def _written(out: Path, seconds: float) -> Table:
    table = Table(title=f"done in {seconds:.0f} s; all of it is in {out}/")
    table.add_column("file")
    table.add_column("what it is")
    for name, what in (
        ("overlay.mp4", "the clip with heatmap, boxes, score and answers drawn over it"),
        ("heatmaps.png", "contact sheet of heatmaps"),
        ("verdicts.jsonl", "the messages, one per line"),
        ("bundle/", "what would be flashed to a device"),
        ("street.mp4, street.json", "the drawn clip and its ground truth"),
    ):
        table.add_row(name, what)
    return table
