"""The site's configuration: one TOML file, typed once; its errors name file, key, value and what is allowed."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.cameras.gstreamer import PREFIX
from tvau_edge.runtime.cameras.polygons import Polygon
from tvau_edge.runtime.cameras.schedule import parse_span
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.errors import ConfigError
from tvau_edge.runtime.problems import explain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_TAKEN = ("available", "command", "health")  # levels of the topic tree beside the cameras'


class Table(BaseModel):
    """Base of the configuration's tables: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _topic_level(name: str) -> str:
    if not name or any(character in name for character in "/+#\0") or name != name.strip():
        raise ValueError("becomes one level of an MQTT topic: no '/', '+', '#', and no space around it")
    if not name.isprintable():
        raise ValueError("becomes one level of an MQTT topic: no control characters")
    return name


def _camera_name(name: str) -> str:
    if name in _TAKEN:
        raise ValueError(f"is the name of another topic; not one of {', '.join(_TAKEN)}")
    return name


def _span(text: str) -> str:
    parse_span(text)
    return text


TopicLevel = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_topic_level)]
Polygons = Annotated[list[Polygon], Field(max_length=32)]


class CameraConfig(Table):
    """One camera, file or folder of images."""

    name: Annotated[
        TopicLevel,
        AfterValidator(_camera_name),
        Field(description="name of the camera; a level of its topics"),
    ]
    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="path of a video, folder of images, /dev/video0, rtsp://…, or 'gst: ' and a GStreamer "
            "pipeline up to raw video",
        ),
    ]
    stall_seconds: Annotated[
        PositiveFloat, Field(le=3600, description="a live source that is silent for longer has stalled")
    ] = 10.0
    reconnect: Annotated[
        bool, Field(description="open a live source again when it fails; false: give up")
    ] = True
    reconnect_seconds: Annotated[
        PositiveFloat,
        Field(
            le=86400, description="longest pause between two attempts; the first is a second, each doubles it"
        ),
    ] = 60.0
    image_rate: Annotated[
        PositiveFloat, Field(le=1000, description="frames per second of a folder of images")
    ] = 10.0
    upscale: Annotated[
        bool, Field(description="allow a video smaller than the model's input, at a loss of accuracy")
    ] = False
    schedule: Annotated[
        list[Annotated[str, AfterValidator(_span)]],
        Field(max_length=64, description="when it is watched, such as 'mon-fri 07:00-19:00'; empty: always"),
    ] = []
    motion_gate: Annotated[
        PositiveFloat | None,
        Field(
            le=255,
            description="look only when a cell's pixels change by more than so many levels (0..255) on average; "
            "none: look always",
        ),
    ] = None
    motion_refresh_seconds: Annotated[
        PositiveFloat, Field(le=86400, description="after which a scene that stands still is looked at again")
    ] = 60.0
    include: Annotated[
        Polygons, Field(description="polygons, corners in 0..1, in which anomalies count; empty: everywhere")
    ] = []
    exclude: Annotated[Polygons, Field(description="polygons in which anomalies do not count")] = []
    mask: Annotated[
        Polygons, Field(description="privacy masks: polygons that are black before anything sees the picture")
    ] = []
    heatmap: Annotated[
        bool,
        Field(description="publish the picture of an event with its heatmap over it, as a retained JPEG"),
    ] = False

    @model_validator(mode="after")
    def _live(self) -> "CameraConfig":
        if self.schedule and not Source.is_live(self.source):
            raise ValueError(
                "schedule is for live sources; a file or folder is watched from its start to its end"
            )
        return self


class VisionConfig(Table):
    """Which form of the vision graph runs, and on what."""

    backend: Annotated[
        Literal["auto", "onnxruntime", "openvino", "tensorrt"],
        Field(description="back end; auto takes what suits the device"),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "int8", "bf16"],
        Field(
            description="precision; bf16 is OpenVINO's, on a CPU that has it; auto takes what suits the device"
        ),
    ] = "auto"
    threads: Annotated[PositiveInt | None, Field(le=1024, description="CPU threads; none: all cores")] = None
    batch: Annotated[
        PositiveInt, Field(le=64, description="most temporal patches in one pass, one of each camera")
    ] = 8
    stall_seconds: Annotated[
        PositiveFloat, Field(le=3600, description="a pass that takes longer hangs: the graph is loaded anew")
    ] = 60.0


class TriggerConfig(Table):
    """When an event opens and closes."""

    open: Annotated[
        float | None, Field(gt=0, lt=1, description="score at which an event opens; none: the bundle's")
    ] = None
    close: Annotated[
        float | None, Field(gt=0, lt=1, description="score under which an event closes; none: the bundle's")
    ] = None
    # On the drawn validation clips: micro-AUC 0.836 for one patch, 0.850 for two, 0.854 for three, which tell later.
    smooth: Annotated[
        PositiveInt, Field(le=100, description="temporal patches over which the score is averaged")
    ] = 2
    open_after: Annotated[PositiveInt, Field(le=10000, description="temporal patches in a row to open")] = 1
    close_after: Annotated[PositiveInt, Field(le=10000, description="temporal patches in a row to close")] = 4
    update_seconds: Annotated[
        PositiveFloat, Field(le=86400, description="least time between two updates of an event")
    ] = 5.0


class LanguageConfig(Table):
    """The language model that explains events."""

    enabled: Annotated[
        Literal["auto", "on", "off"],
        Field(description="auto: explain when the bundle and this machine have what it takes"),
    ] = "auto"
    type: Annotated[
        str | None, Field(description="GGUF type when the bundle has several; none: the first")
    ] = None
    threads: Annotated[PositiveInt | None, Field(le=1024, description="CPU threads; none: all cores")] = None
    gpu_layers: Annotated[int, Field(ge=-1, le=10000, description="layers on the GPU; -1: all")] = 0
    unsure: Annotated[
        tuple[float, float], Field(description="band of p_yes in which the verdict says 'unsure'")
    ] = (0.4, 0.6)
    calibration: Annotated[
        Path | None, Field(description="JSON file that makes p_yes a probability; none: as the model has it")
    ] = None
    history: Annotated[
        Literal["all", "first", "none"],
        Field(description="what a question sees of those before it; the rest is answered side by side"),
    ] = "all"
    prompts: Annotated[Path, Field(description="file of the class prompts that were set at run time")] = Path(
        "tvau-prompts.safetensors"
    )
    worker: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=200,
            pattern=r"^[^+#$\x00][^+#\x00]*$",
            description="topic on which `tvau explain` workers take requests; none: the model runs on this box",
        ),
    ] = None
    late_seconds: Annotated[
        PositiveFloat, Field(description="an explanation that comes later after its event is marked late")
    ] = 30.0
    deadline_seconds: Annotated[
        PositiveFloat, Field(description="an event that waited longer for its explanation gets none")
    ] = 300.0
    answer_seconds: Annotated[
        PositiveFloat,
        Field(description="one explanation that takes longer has failed; the model is restarted"),
    ] = 120.0
    question_seconds: Annotated[
        PositiveFloat, Field(description="a question that is not answered by then is given up")
    ] = 60.0
    waiting: Annotated[PositiveInt, Field(description="events and questions that may wait")] = 8
    kept_events: Annotated[PositiveInt, Field(description="recent events that can be asked about")] = 32
    kept_bytes: Annotated[PositiveInt, Field(description="bound on their evidence in memory, bytes")] = (
        64 * 1024 * 1024
    )
    explain_after: Annotated[
        PositiveInt | None,
        Field(
            le=10000,
            description="temporal patches after an event's opening at which it is explained; none: half a window",
        ),
    ] = None
    explain_again: Annotated[
        Literal["never", "window", "extend"],
        Field(
            description="an event that went on after it was explained: leave it at that; explain its newest window; or "
            "append what is new to the sequence that the model has, for checkpoints that know sequences of any length"
        ),
    ] = "window"
    explain_again_after: Annotated[
        PositiveInt | None,
        Field(
            le=10000,
            description="temporal patches since then that make it worthwhile when the event ends; none: half a window",
        ),
    ] = None
    explain_again_every: Annotated[
        PositiveInt | None,
        Field(
            le=10000,
            description="temporal patches after which it is explained again while it lasts; none: not before its end",
        ),
    ] = None
    extend_to: Annotated[
        PositiveInt | None,
        Field(
            le=10000,
            description="extend: temporal patches that a sequence may have, after which a new one begins with the "
            "newest window; the model's context takes memory for so many; none: two windows",
        ),
    ] = None

    def longest_sequence(self, window: int) -> int:
        """Temporal patches that an event's sequence may have, of windows of so many."""
        if self.explain_again != "extend":
            return window
        return max(window, self.extend_to or 2 * window)

    def beside(self, folder: Path) -> "LanguageConfig":
        """The same with relative paths of its files resolved against `folder`."""
        paths = {"prompts": folder / self.prompts}
        if self.calibration is not None:
            paths["calibration"] = folder / self.calibration
        return self.model_copy(update=paths)

    @model_validator(mode="after")
    def _band(self) -> "LanguageConfig":
        low, high = self.unsure
        if not 0 <= low <= high <= 1:
            raise ValueError(f"unsure [{low}, {high}] must be two numbers in 0..1, the lower first")
        return self


class OutboxConfig(Table):
    """Where verdicts wait until the broker has them."""

    path: Annotated[Path, Field(description="SQLite file")] = Path("tvau-outbox.db")
    max_bytes: Annotated[PositiveInt, Field(description="bound on stored payloads, bytes")] = 64 * 1024 * 1024
    max_age_seconds: Annotated[PositiveFloat, Field(description="older updates are dropped")] = 7 * 86400.0


class HomeAssistantConfig(Table):
    """Home Assistant's MQTT discovery."""

    enabled: Annotated[bool, Field(description="announce this box and its cameras to Home Assistant")] = False
    prefix: Annotated[
        TopicLevel, Field(description="discovery prefix, as set in Home Assistant's MQTT integration")
    ] = "homeassistant"


class CommandsConfig(Table):
    """Commands over MQTT; whoever may publish on their topics may use them."""

    enabled: Annotated[list[str], Field(description="names of the commands to obey; none by default")] = []
    per_minute: Annotated[PositiveInt, Field(description="how often each may be used")] = 30
    max_bytes: Annotated[PositiveInt, Field(description="bound on a command's payload, bytes")] = 16384


class HealthConfig(Table):
    """What the box tells of itself."""

    seconds: Annotated[
        PositiveFloat, Field(le=86400, description="between two messages on the topic health")
    ] = 30.0
    prometheus_port: Annotated[
        int | None, Field(ge=1, le=65535, description="port of a Prometheus endpoint; none: no endpoint")
    ] = None
    prometheus_host: Annotated[
        str, Field(min_length=1, max_length=255, description="address that the endpoint listens on")
    ] = "127.0.0.1"


class SiteConfig(Table):
    """Everything `tvau run` needs."""

    device: Annotated[TopicLevel, Field(description="name of this box; a level of its topics")] = "edge"
    bundle: Annotated[Path, Field(description="folder of the bundle")]
    broker: Annotated[BrokerConfig, Field(description="the MQTT broker")] = BrokerConfig()
    vision: Annotated[VisionConfig, Field(description="the vision graph")] = VisionConfig()
    trigger: Annotated[TriggerConfig, Field(description="when an event opens and closes")] = TriggerConfig()
    language: Annotated[LanguageConfig, Field(description="explanations")] = LanguageConfig()
    outbox: Annotated[OutboxConfig, Field(description="durable queue before the broker")] = OutboxConfig()
    homeassistant: Annotated[HomeAssistantConfig, Field(description="Home Assistant's discovery")] = (
        HomeAssistantConfig()
    )
    commands: Annotated[CommandsConfig, Field(description="commands over MQTT")] = CommandsConfig()
    health: Annotated[HealthConfig, Field(description="what the box tells of itself")] = HealthConfig()
    camera: Annotated[
        list[CameraConfig], Field(min_length=1, max_length=256, description="one table per camera")
    ]

    @model_validator(mode="after")
    def _unique(self) -> "SiteConfig":
        names = [camera.name for camera in self.camera]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"camera names must differ; used more than once: {', '.join(twice)}")
        return self


def load_config(
    path: Path, overrides: dict[str, Any] | None = None, tables: dict[str, dict[str, Any]] | None = None
) -> SiteConfig:
    """Read a site's configuration.

    Args:
        path: the TOML file. Relative paths in it are relative to its folder.
        overrides: top-level values that replace the file's (from the command line).
        tables: keys that replace those of the file's tables.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has a wrong key or value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `tvau run --help` shows how to run without one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    table |= overrides or {}
    for name, keys in (tables or {}).items():
        if keys and isinstance(table.get(name, {}), dict):
            table[name] = {**table.get(name, {}), **keys}
    config = parse_config(table, str(path))
    folder = path.parent
    return config.model_copy(
        update={
            "bundle": folder / config.bundle,
            "broker": config.broker.beside(folder),
            "outbox": config.outbox.model_copy(update={"path": folder / config.outbox.path}),
            "language": config.language.beside(folder),
            "camera": [
                camera.model_copy(update={"source": _beside(folder, camera.source)})
                for camera in config.camera
            ],
        }
    )


def parse_config(table: dict[str, Any], where: str) -> SiteConfig:
    """Validate a configuration that is already a table.

    Args:
        table: the configuration's keys.
        where: name of what it came from, for messages.

    Raises:
        ConfigError: one line for each wrong key or value.
    """
    try:
        return SiteConfig.model_validate(table)
    except ValidationError as error:
        lines = [f"{where}: {line}" for line in explain(error, SiteConfig)]
        raise ConfigError("\n".join(lines)) from error


def _beside(folder: Path, source: str) -> str:
    absolute = "://" in source or source.startswith(("/", PREFIX))
    return source if absolute else str(folder / source)
