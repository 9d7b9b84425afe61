"""A tiny language model as GGUF, a real mosquitto, and a subscriber that collects."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher
from tvau_edge.runtime.manifest import Geometry
from tvau_edge.runtime.verdict import Model, Prompts, Verdict, at, uuid7

MOSQUITTO = next(
    (p for p in ("/usr/sbin/mosquitto", shutil.which("mosquitto")) if p and Path(p).exists()), None
)
PATIENCE = 90.0  # seconds until a test gives up on something that takes milliseconds


@pytest.fixture(scope="session")
def tiny_language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose language model has width 64, 512 tokens and two layers."""
    # Here, since most tests of this room do without torch and the seconds it takes to load.
    import torch

    from tvau_edge.export.model.ahd import AHDConfig
    from tvau_edge.export.model.prompts import TextConfig
    from tvau_edge.export.model.rae import RAEConfig
    from tvau_edge.export.model.vision import VisionConfig
    from tvau_edge.export.synthetic import Widths, write_synthetic

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    widths = Widths(
        VisionConfig(2, 32, 2, 32, 64, (1,)),
        TextConfig(512, 64, 96, 2, 2, 1, 2048, mrope_section=(4, 6, 6)),
        False,
        AHDConfig(2, 32, 16, 64),
        RAEConfig((4, 4, 4), (8, 8), (8, 8), 2, 64),
    )
    clip = Geometry(width=84, height=56, frames_per_second=4, temporal_patches=3)
    write_synthetic(folder, widths, clip=clip, dtype=torch.float32, seed=1)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_language: Path) -> Path:
    """`tiny_language` as GGUF, f32."""
    from tvau_edge.export.checkpoint import Checkpoint
    from tvau_edge.export.language import write_gguf

    path = tiny_language.parent / "lvlm-f32.gguf"
    write_gguf(Checkpoint.open(tiny_language), path, "f32")
    return path


@pytest.fixture(scope="session")
def talking_bundle(tiny_gguf: Path, make_red_bundle: Callable[..., Path]) -> Path:
    """A bundle that marks what is red and talks about it: a tiny language model with random weights."""
    return make_red_bundle(tiny_gguf.parent / "bundle", tiny_gguf)


def eventually(condition: Callable[[], object], what: str = "it") -> None:
    """Wait until a condition holds; how long it takes is not judged."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come about in {PATIENCE:g} s")
        time.sleep(0.01)


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[..., None]:
    return eventually


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(name="free_port")
def _free_port() -> int:
    """A port of the loopback interface at which nobody listens."""
    return free_port()


@dataclass
class Mosquitto:
    """A mosquitto on the loopback interface; it keeps nothing, so a restarted one is empty."""

    folder: Path
    settings: tuple[str, ...] = ("allow_anonymous true",)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        config = self.folder / f"mosquitto-{self.port}.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(
            f"{user}listener {self.port} 127.0.0.1\npersistence false\n" + "\n".join(self.settings)
        )
        config.chmod(0o644)
        with (self.folder / f"mosquitto-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stdout=log, stderr=log)
        eventually(self._listens, "mosquitto's port")

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """Kill -9: everything that it knew is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def make_mosquitto(tmp_path: Path) -> Iterator[Callable[..., Mosquitto]]:
    """Starts a mosquitto with the given lines of configuration."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    running: list[Mosquitto] = []

    def make(*settings: str) -> Mosquitto:
        broker = Mosquitto(tmp_path, settings or ("allow_anonymous true",))
        running.append(broker)
        broker.start()
        return broker

    yield make
    for broker in running:
        broker.kill()


@pytest.fixture
def mosquitto(make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    """A mosquitto that anyone may use."""
    return make_mosquitto()


@pytest.fixture
def password_mosquitto(make_mosquitto: Callable[..., Mosquitto], tmp_path: Path) -> Mosquitto:
    """A mosquitto that knows the user `door` with the password `sesame`."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed (apt-get install mosquitto)")
    users = tmp_path / "users"
    subprocess.run([tool, "-b", "-c", users, "door", "sesame"], check=True, capture_output=True)
    users.chmod(0o644)
    return make_mosquitto("allow_anonymous false", f"password_file {users}")


@dataclass(frozen=True)
class Authority:
    """Certificates of one made-up authority, as PEM files."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def issue(
        self, name: str, hosts: str, starts: str = "20200101000000Z", ends: str = "21000101000000Z"
    ) -> Path:
        """Make `name`.pem and `name`.key for the hosts of a subjectAltName."""
        key, request, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        new = ["-newkey", "rsa:2048", "-nodes", "-keyout", key, "-subj", f"/CN={name}"]
        _openssl("req", *new, "-out", request)
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        database = self.folder / "index.txt"
        database.touch()
        config = self.folder / "ca.conf"
        config.write_text(
            "[ca]\ndefault_ca=here\n[here]\n"
            f"database={database}\nnew_certs_dir={self.folder}\nrand_serial=yes\ndefault_md=sha256\n"
            "unique_subject=no\npolicy=any\n[any]\ncommonName=supplied\n"
        )
        signer = [
            "-config",
            config,
            "-batch",
            "-notext",
            "-cert",
            self.ca,
            "-keyfile",
            self.folder / "ca.key",
        ]
        span = ["-startdate", starts, "-enddate", ends]
        _openssl("ca", *signer, *span, "-extfile", extensions, "-in", request, "-out", made)
        return made


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> Authority:
    folder.mkdir()
    new = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        folder / "ca.key",
        "-subj",
        f"/CN={name}",
        "-days",
        "3650",
    ]
    marks = ["-addext", "keyUsage=critical,keyCertSign"]
    _openssl("req", "-x509", *new, *marks, "-out", folder / "ca.pem")
    return Authority(folder)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Ours; has issued `good`, `expired`, `early` (not valid yet) and `stranger` (for another host)."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is absent")
    ours = make_authority(tmp_path_factory.mktemp("tls") / "ours", "ours")
    here = "DNS:localhost,IP:127.0.0.1"
    ours.issue("good", here)
    ours.issue("expired", here, ends="20210101000000Z")
    ours.issue("early", here, starts="20990101000000Z")
    ours.issue("stranger", "DNS:elsewhere.example")
    return ours


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that has signed nothing of ours."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is absent")
    return make_authority(tmp_path_factory.mktemp("tls") / "other", "other")


@pytest.fixture
def tls_mosquitto(make_mosquitto: Callable[..., Mosquitto], authority: Authority) -> Callable[..., Mosquitto]:
    """Starts a mosquitto that speaks TLS with one of the authority's certificates."""

    def make(certificate: str = "good", *settings: str) -> Mosquitto:
        folder = authority.folder
        return make_mosquitto(
            "allow_anonymous true",
            f"cafile {authority.ca}",
            f"certfile {folder / certificate}.pem",
            f"keyfile {folder / certificate}.key",
            *settings,
        )

    return make


class Subscriber:
    """Collects what is published under `#`, through restarts of the broker."""

    def __init__(self, port: int, qos: int = 1) -> None:
        self._messages: list[mqtt.MQTTMessage] = []
        self._changed = threading.Condition()
        self._subscriptions = 0
        self._gone = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=qos)
        self._client.on_disconnect = lambda *_: self._gone.set()
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._collect
        self._client.connect("127.0.0.1", port, keepalive=5)
        self._client.loop_start()
        self.await_subscription(1)

    def _subscribed(self, *_: object) -> None:
        with self._changed:
            self._subscriptions += 1
            self._changed.notify_all()

    def _collect(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def await_subscription(self, number: int) -> None:
        """Wait until it has subscribed so often: once, and again after each restart of the broker."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._subscriptions >= number, PATIENCE), "no subscription"

    def await_end(self) -> None:
        """Wait until all has been read that a broker had sent before it went."""
        assert self._gone.wait(PATIENCE), "the broker is still there"

    def on(self, topic: str) -> list[mqtt.MQTTMessage]:
        """What has come on a topic."""
        with self._changed:
            return [message for message in self._messages if message.topic == topic]

    def payloads(self, topic: str) -> list[bytes]:
        return [bytes(message.payload) for message in self.on(topic)]

    def wait(self, topic: str, count: int = 1) -> list[mqtt.MQTTMessage]:
        """Wait for so many messages on a topic."""
        with self._changed:
            done = self._changed.wait_for(lambda: len(self.on(topic)) >= count, PATIENCE)
        assert done, f"{len(self.on(topic))} of {count} messages came on {topic}"
        return self.on(topic)

    def wait_payload(self, topic: str, payload: bytes) -> None:
        """Wait until this comes on a topic."""
        with self._changed:
            done = self._changed.wait_for(lambda: payload in self.payloads(topic), PATIENCE)
        assert done, f"{payload!r} did not come on {topic}, but {self.payloads(topic)}"

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def subscribe() -> Iterator[Callable[..., Subscriber]]:
    """Starts subscribers, given the broker's port."""
    running: list[Subscriber] = []

    def start(port: int, qos: int = 1) -> Subscriber:
        running.append(Subscriber(port, qos))
        return running[-1]

    yield start
    for subscriber in running:
        subscriber.close()


@pytest.fixture
def subscriber(mosquitto: Mosquitto, subscribe: Callable[..., Subscriber]) -> Subscriber:
    """One that listens to `mosquitto`."""
    return subscribe(mosquitto.port)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    """An empty outbox."""
    box = Outbox(tmp_path / "outbox.db")
    yield box
    box.close()


@pytest.fixture
def make_publisher(outbox: Outbox) -> Iterator[Callable[..., Publisher]]:
    """Makes publishers of the device `box` out of `outbox`, given the port; they stop when the test ends."""
    running: list[Publisher] = []

    def make(port: int, **settings: object) -> Publisher:
        config = BrokerConfig.model_validate({"host": "127.0.0.1", "port": port, **settings})
        running.append(Publisher(config, "box", outbox))
        return running[-1]

    yield make
    for publisher in running:
        publisher.stop(0)


def make_verdict(sequence: int = 0, event: UUID | None = None) -> Verdict:
    moment = at(1_800_000_000.0 + sequence)
    return Verdict(
        id=uuid7(),
        event=event or uuid4(),
        sequence=sequence,
        phase="update" if sequence else "start",
        device="box",
        camera="door",
        time=moment,
        started=at(1_800_000_000.0),
        score=0.75,
        anomaly="unsure",
        prompts=Prompts(normal=["a person"], abnormal=["a thief"]),
        model=Model(name="m", bundle="0" * 64, backend="onnxruntime", quantization="int8"),
    )


@pytest.fixture(name="make_verdict", scope="session")
def _make_verdict() -> Callable[..., Verdict]:
    """Makes verdicts of the camera `door` of `box`, given the sequence and the event."""
    return make_verdict
