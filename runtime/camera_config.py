"""The configuration of one camera."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from tvau_edge.runtime.polygons import Polygon
from tvau_edge.runtime.schedule import parse_span
from tvau_edge.runtime.source import Source

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
