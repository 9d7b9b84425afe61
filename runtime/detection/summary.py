"""What came of a run, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CameraSummary:
    """What became of one camera.

    Attributes:
        camera: its name.
        patches: temporal patches that were judged.
        dropped: temporal patches that gave way to newer ones.
        repeated: samples that stood for several instants.
        events: opened.
        still: patches that kept the evidence of the one before, by the motion gate.
        frames_dropped: decoded frames that gave way to newer ones.
        reconnects: times that it was opened again.
    """

    camera: str
    patches: int
    dropped: int
    repeated: int
    events: int
    still: int = 0
    frames_dropped: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers.

    Attributes:
        cameras: one entry per camera.
        seconds: wall time.
        vision_ms: mean time of the vision pass per temporal patch that it saw.
        explained: events that the language model explained.
        given_up: events that waited too long for it.
        verdicts: published.
        peak_memory: bytes of this process, where the system tells.
        cpu_seconds: of this process, on all cores.
    """

    cameras: list[CameraSummary]
    seconds: float
    vision_ms: float
    explained: int
    given_up: int
    verdicts: int
    peak_memory: int | None
    cpu_seconds: float = 0.0
