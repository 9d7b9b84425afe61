"""The commands that a running pipeline obeys: `threshold`, `restart-camera`, `snapshot`."""

from typing import Annotated, Protocol

from pydantic import Field

from tvau_edge.runtime.control.commands import Commands, Payload
from tvau_edge.runtime.errors import CommandError
from tvau_edge.runtime.manifest import Thresholds

Score = Annotated[float, Field(gt=0, lt=1)]


class Watching(Protocol):
    """What is commanded; `Pipeline` is one."""

    def set_thresholds(self, thresholds: Thresholds, camera: str | None = None) -> None:
        """Use other thresholds."""

    def restart_camera(self, camera: str) -> None:
        """Open a camera again."""

    def snapshot(self, camera: str) -> bytes:
        """The newest picture, as JPEG."""


class Showing(Protocol):
    """Where pictures go; `Publisher` is one."""

    root: str

    def publish_heatmap(self, camera: str, jpeg: bytes) -> None:
        """Publish a camera's picture."""


class Threshold(Payload):
    """Of `threshold`: scores at which events open and close, until the next start."""

    open: Score
    close: Annotated[Score | None, Field(description="none: the same as open")] = None
    camera: Annotated[str | None, Field(description="none: all cameras")] = None


class OneCamera(Payload):
    """Of `restart-camera` and `snapshot`."""

    camera: str


class Published(Payload):
    """Answer to `snapshot`: where the picture is."""

    topic: str
    bytes: int


def register(commands: Commands, pipeline: Watching, publisher: Showing) -> None:
    """Make the commands of a pipeline known."""

    def threshold(payload: Threshold) -> Threshold:
        close = payload.open if payload.close is None else payload.close
        if close > payload.open:
            raise CommandError(
                f"close {close} is above open {payload.open}; an event would close as it opens"
            )
        pipeline.set_thresholds(Thresholds(open=payload.open, close=close), payload.camera)
        return payload.model_copy(update={"close": close})

    def restart(payload: OneCamera) -> None:
        pipeline.restart_camera(payload.camera)

    def snapshot(payload: OneCamera) -> Published:
        jpeg = pipeline.snapshot(payload.camera)
        publisher.publish_heatmap(payload.camera, jpeg)
        return Published(topic=f"{publisher.root}/{payload.camera}/heatmap", bytes=len(jpeg))

    commands.register("threshold", Threshold, threshold)
    commands.register("restart-camera", OneCamera, restart)
    commands.register("snapshot", OneCamera, snapshot)
