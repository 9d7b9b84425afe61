"""One camera inside the pipeline: its feed, its trigger, and what was seen of it last."""

import time
from collections import deque
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from tvau_edge.runtime.cameras.feed import Feed
from tvau_edge.runtime.cameras.intake import Intake
from tvau_edge.runtime.cameras.sampler import TemporalPatch
from tvau_edge.runtime.cameras.source import Source
from tvau_edge.runtime.config import CameraConfig, TriggerConfig
from tvau_edge.runtime.detection.jpeg import encode_jpeg
from tvau_edge.runtime.detection.motion import MotionGate
from tvau_edge.runtime.detection.overlay import blend
from tvau_edge.runtime.detection.smoothing import Smoothing
from tvau_edge.runtime.detection.timeline import Timeline
from tvau_edge.runtime.detection.trigger import Trigger
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.detection.zones import Zones
from tvau_edge.runtime.errors import SourceError
from tvau_edge.runtime.manifest import Geometry, Thresholds

_KEPT = 600  # moments of a live camera that its timeline keeps
_LAGS = 64  # patches over which the lag is taken


@dataclass
class Watched:
    """What the pipeline knows of a camera; guarded by the pipeline's lock."""

    config: CameraConfig
    feed: Feed
    trigger: Trigger
    timeline: Timeline
    zones: Zones
    smoothing: Smoothing
    gate: MotionGate | None
    patches: int = 0
    events: int = 0
    told: float = 0.0
    event: UUID | None = None  # that is open
    shown: UUID | None = None  # in the retained state
    error_told: bool = False
    lags: deque[float] = field(default_factory=lambda: deque(maxlen=_LAGS))  # seconds
    newest: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = (
        None  # frame [H, W, 3] and heatmap [H', W']
    )

    @classmethod
    def make(
        cls,
        config: CameraConfig,
        geometry: Geometry,
        thresholds: Thresholds,
        trigger: TriggerConfig,
        intake: Intake,
    ) -> "Watched":
        """Put together what a camera needs.

        Raises:
            ConfigError: its zones leave nothing.
        """
        zones = Zones(config.include, config.exclude, geometry.grid, config.name)
        gate = None
        if config.motion_gate is not None:
            gate = MotionGate(config.motion_gate, geometry, config.motion_refresh_seconds, zones.counts)
        return cls(
            config,
            Feed(config, geometry, intake),
            Trigger(
                thresholds,
                geometry.temporal_patches,
                open_after=trigger.open_after,
                close_after=trigger.close_after,
                update_seconds=trigger.update_seconds,
            ),
            Timeline(config.name, _KEPT if Source.is_live(config.source) else None),
            zones,
            Smoothing(trigger.smooth),
            gate,
        )

    def saw(self, patch: TemporalPatch, evidence: Evidence) -> None:
        """Note the newest picture and how late it was judged."""
        self.newest = patch.frames[1], evidence.heatmap
        self.lags.append(time.time() - patch.time)

    def picture(self) -> bytes:
        """The newest picture with its heatmap over it, as JPEG.

        Raises:
            SourceError: there is none yet.
        """
        if self.newest is None:
            raise SourceError(f"camera {self.config.name} has shown nothing yet")
        return encode_jpeg(blend(*self.newest))
