"""One drawn clip: a street, its actors over time, and the ground truth of every frame."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tvau_edge.reference.actors import Brush, Canvas, Looks, draw_actor
from tvau_edge.reference.anomalies import ABNORMAL, abnormal_actors, zone_of
from tvau_edge.reference.behaviours import Actor, State, normal_actors
from tvau_edge.reference.scene import (
    HEIGHT,
    WIDTH,
    Layout,
    apply_weather,
    draw_background,
    draw_lamps,
    light_map,
    passing_light,
)

FRAMES_PER_SECOND = 12
HELD_OUT = 100_000  # clips of seeds from here on are never trained on, and neither are their streets
_STREETS = 10_000
_CELLS = (
    ("upper left", "upper center", "upper right"),
    ("middle left", "center", "middle right"),
    ("lower left", "lower center", "lower right"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One object in one frame.

    Attributes:
        number: its pixel value in the mask; also its track.
        box: inclusive pixels (x1, y1, x2, y2) of what shows of it.
        area: pixels that show of it.
        state: what it does.
    """

    number: int
    box: tuple[int, int, int, int]
    area: int
    state: State


@dataclass(frozen=True, slots=True)
class DrawnFrame:
    """A frame: image [360, 640, 3] uint8 RGB, mask [360, 640] uint8 of object numbers (0: background), objects."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    objects: tuple[Seen, ...]


@dataclass(frozen=True)
class Clip:
    """A clip to be drawn: everything follows from the seed and the names of its anomalies.

    Attributes:
        seed: of actors and their motion.
        anomalies: keys of `ABNORMAL`; none in a normal clip.
        layout: the street.
        actors: numbered from 1 in this order.
        seconds: length.
    """

    seed: int
    anomalies: tuple[str, ...]
    layout: Layout
    actors: tuple[Actor, ...]
    seconds: float

    @classmethod
    def draw(
        cls, seed: int, anomalies: Sequence[str] = (), layout: int | None = None, seconds: float = 8.0
    ) -> "Clip":
        """Draw a clip.

        Args:
            seed: 0 or more.
            anomalies: keys of `ABNORMAL`, one for each thing that happens.
            layout: seed of the street; by default drawn from `seed`, until there is one where it all can happen.
            seconds: length.

        Raises:
            ValueError: an anomaly is not known, or cannot happen on the street of `layout`.
        """
        for anomaly in anomalies:
            if anomaly not in ABNORMAL:
                raise ValueError(f"unknown anomaly {anomaly!r}; known: {', '.join(ABNORMAL)}")
        zones = {zone_of(anomaly) for anomaly in anomalies}
        rng = np.random.default_rng([seed, 21])
        first = _STREETS if seed >= HELD_OUT else 0
        street = Layout.draw(first + int(rng.integers(_STREETS)) if layout is None else layout)
        while not all(street.middles(zone) for zone in zones):
            if layout is not None:
                raise ValueError(f"the street of layout {layout} has not all of {', '.join(sorted(zones))}")
            street = Layout.draw(first + int(rng.integers(_STREETS)))
        actors = [actor for _ in range(rng.integers(2, 7)) for actor in normal_actors(street, rng, seconds)]
        for anomaly in anomalies:
            actors += abnormal_actors(street, rng, seconds, anomaly)
        return cls(seed, tuple(anomalies), street, tuple(actors), seconds)

    @property
    def looks(self) -> dict[int, Looks]:
        """Looks of each object by its number."""
        return {number: actor.looks for number, actor in enumerate(self.actors, 1)}

    def __len__(self) -> int:
        """Number of frames."""
        return round(self.seconds * FRAMES_PER_SECOND)

    def frames(self, every: int = 1) -> Iterator[DrawnFrame]:
        """Draw the frames in order, every one or each `every`-th; the same frames each time."""
        street, light = draw_background(self.layout), light_map(self.layout)
        draw_lamps(street, self.layout)
        noise = np.random.default_rng([self.seed, 22]).normal(0, self.layout.noise, (HEIGHT + 64, WIDTH + 64))
        noise = noise.astype(np.float32)
        for index in range(0, len(self), every):
            rng = np.random.default_rng([self.seed, 23, index])
            canvas, states = self._paint(street, index / FRAMES_PER_SECOND)
            passing = passing_light(self.layout, index / FRAMES_PER_SECOND)
            lit = canvas.image * (light if passing is None else light * passing)
            image = np.clip(lit, 0, 255).astype(np.uint8)
            image, mask = apply_weather(image, self.layout, rng), canvas.objects
            if self.layout.shake:
                move = np.float32([[1, 0, 0], [0, 1, 0]])
                move[:, 2] = rng.normal(0, self.layout.shake, 2)
                image = cv2.warpAffine(image, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
                mask = cv2.warpAffine(mask, move, (WIDTH, HEIGHT), flags=cv2.INTER_NEAREST)
            top, left = rng.integers(0, 64, 2)
            grain = noise[top : top + HEIGHT, left : left + WIDTH, None]
            image = np.clip(image + grain, 0, 255).astype(np.uint8)
            yield DrawnFrame(image, mask, tuple(_seen(mask, states)))

    def _paint(self, street: NDArray[np.uint8], time: float) -> tuple[Canvas, dict[int, State]]:
        canvas = Canvas(street.copy())
        states = {number: actor.state(time) for number, actor in enumerate(self.actors, 1)}
        present = {number: state for number, state in states.items() if state is not None}
        shade = {"day": 0.30, "dusk": 0.22, "night": 0.12}[self.layout.light]
        # Far actors first, so that near ones occlude them.
        for number, state in sorted(present.items(), key=lambda item: -self._depth(item[1])):
            x, y, scale = self.layout.project(state.along, state.depth, state.lift)
            if -300 < x < WIDTH + 300:
                brush = Brush(canvas, number, (x, y), scale, state.facing)
                looks = self.actors[number - 1].looks
                dark = 0.0 if state.lift else shade
                draw_actor(brush, looks, state.posture, state.phase, state.progress, dark)
        return canvas, present

    def _depth(self, state: State) -> float:
        return self.layout.ground(state.along, state.depth)[1]


def _seen(mask: NDArray[np.uint8], states: dict[int, State]) -> Iterator[Seen]:
    areas = np.bincount(mask.ravel(), minlength=256)
    for number, state in states.items():
        if areas[number]:
            x, y, width, height = cv2.boundingRect((mask == number).astype(np.uint8))
            yield Seen(number, (x, y, x + width - 1, y + height - 1), int(areas[number]), state)


def cell_name(box: tuple[int, int, int, int]) -> str:
    """Name the ninth of the picture that the middle of a box lies in: "upper left", "center" and so on."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return _CELLS[min(2, int(3 * y / HEIGHT))][min(2, int(3 * x / WIDTH))]
