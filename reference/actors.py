"""What moves in a drawn street: articulated people, cyclists, cars, dogs, bags, drawn with their masks.

An actor is drawn around the point where it touches the ground, in metres scaled to pixels: x to the right of that
point, y upwards. Each shape goes to the picture and, under the actor's number, to the map of objects.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Kind = Literal["person", "cyclist", "motorbike", "car", "dog", "bag"]
Posture = Literal[
    "walk", "run", "stand", "jump", "fallen", "crawl", "fight", "throw", "ride", "drive", "lie",
    "limp", "stagger", "dance", "wave", "crouch", "sit", "skate",
]  # fmt: skip
Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (196, 40, 42),
    "blue": (44, 80, 178),
    "green": (44, 130, 66),
    "yellow": (224, 190, 48),
    "white": (232, 232, 228),
    "black": (34, 34, 38),
    "orange": (226, 122, 36),
    "purple": (120, 58, 150),
}
TROUSERS: dict[str, Colour] = {
    "blue": (52, 66, 110),
    "black": (38, 38, 42),
    "brown": (104, 74, 52),
    "grey": (112, 114, 118),
}
_SKIN: tuple[Colour, ...] = ((238, 200, 170), (205, 160, 120), (150, 104, 72), (98, 66, 46))
_HAIR: tuple[Colour, ...] = ((40, 28, 22), (90, 60, 34), (180, 150, 90), (120, 120, 120))
_DOGS: dict[str, Colour] = {"brown": (112, 76, 48), "black": (40, 36, 36), "white": (222, 214, 200)}


@dataclass(frozen=True)
class Looks:
    """How one actor looks: names for the narration, colours for the picture."""

    kind: Kind
    colour: str
    lower: str
    skin: Colour
    hair: Colour
    size: float

    @classmethod
    def draw(cls, kind: Kind, rng: np.random.Generator) -> "Looks":
        """Draw the looks of an actor."""
        names = list(_DOGS) if kind == "dog" else list(COLOURS)
        return cls(
            kind=kind,
            colour=names[rng.integers(len(names))],
            lower=list(TROUSERS)[rng.integers(len(TROUSERS))],
            skin=_SKIN[rng.integers(len(_SKIN))],
            hair=_HAIR[rng.integers(len(_HAIR))],
            size=float(rng.uniform(0.92, 1.08)),
        )

    @property
    def appearance(self) -> str:
        """A noun phrase such as "a person in a red jacket and blue trousers"."""
        match self.kind:
            case "person":
                return f"a person in {_article(self.colour)} jacket and {self.lower} trousers"
            case "cyclist":
                return f"a cyclist in {_article(self.colour)} jacket"
            case "motorbike":
                return f"a motorcyclist in {_article(self.colour)} jacket"
            case _:
                return f"{_article(self.colour)} {self.kind}"


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@dataclass
class Canvas:
    """A picture [H, W, 3] uint8 RGB and, beside it, which object each pixel shows [H, W] uint8 (0: background)."""

    image: NDArray[np.uint8]
    objects: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.objects = np.zeros(self.image.shape[:2], np.uint8)


@dataclass(frozen=True)
class Brush:
    """Draws in metres around a point of the picture.

    Attributes:
        canvas: what is drawn on.
        number: the object's number on the map of objects, 1..255.
        origin: pixel where the actor touches the ground.
        scale: pixels per metre.
        facing: 1 looks right, -1 left.
    """

    canvas: Canvas
    number: int
    origin: Point
    scale: float
    facing: int

    def _pixels(self, points: list[Point]) -> NDArray[np.int32]:
        x, y = self.origin
        placed = [(x + self.facing * px * self.scale, y - py * self.scale) for px, py in points]
        return np.round(np.array(placed) * 16).astype(np.int32)

    def limb(self, points: list[Point], width: float, colour: Colour) -> None:
        """Draw a line of `width` metres with round joints through `points`."""
        pixels = self._pixels(points)
        thick = max(1, round(width * self.scale))
        for a, b in pairwise(pixels):
            cv2.line(self.canvas.image, a.tolist(), b.tolist(), colour, thick, cv2.LINE_AA, 4)
            cv2.line(self.canvas.objects, a.tolist(), b.tolist(), self.number, thick, cv2.LINE_8, 4)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill a polygon."""
        pixels = self._pixels(points)
        cv2.fillPoly(self.canvas.image, [pixels], colour, cv2.LINE_AA, 4)
        cv2.fillPoly(self.canvas.objects, [pixels], self.number, cv2.LINE_8, 4)

    def disc(self, centre: Point, radius: float, colour: Colour) -> None:
        """Fill a circle."""
        at = self._pixels([centre])[0].tolist()
        pixels = max(16, round(radius * self.scale * 16))
        cv2.circle(self.canvas.image, at, pixels, colour, -1, cv2.LINE_AA, 4)
        cv2.circle(self.canvas.objects, at, pixels, self.number, -1, cv2.LINE_8, 4)

    def wheel(self, centre: Point, radius: float) -> None:
        """Draw an open wheel."""
        at = self._pixels([centre])[0].tolist()
        pixels, thick = max(16, round(radius * self.scale * 16)), max(1, round(0.06 * self.scale))
        cv2.circle(self.canvas.image, at, pixels, (30, 30, 30), thick, cv2.LINE_AA, 4)
        cv2.circle(self.canvas.objects, at, pixels, self.number, thick, cv2.LINE_8, 4)

    def shadow(self, width: float, strength: float) -> None:
        """Darken the ground below; a shadow belongs to no object."""
        x, y = (round(value) for value in self.origin)
        half, flat = max(1, round(width * self.scale / 2)), max(1, round(0.14 * min(width, 2.0) * self.scale))
        top, left = max(y - flat, 0), max(x - half, 0)
        region = self.canvas.image[top : y + flat, left : x + half]
        if region.size:
            stain = np.zeros(region.shape[:2], np.float32)
            cv2.ellipse(stain, (x - left, y - top), (half, flat), 0, 0, 360, strength, -1, cv2.LINE_AA)
            region[:] = (region * (1 - stain[..., None])).astype(np.uint8)


def draw_actor(
    brush: Brush, looks: Looks, posture: Posture, phase: float, progress: float, shade: float
) -> None:
    """Draw one actor.

    Args:
        brush: where and how large.
        looks: its colours.
        posture: what it does.
        phase: radians of its gait, or of whatever in its motion goes round.
        progress: 0..1 through a motion that happens once (a fall, a throw).
        shade: strength of its shadow, 0..1.
    """
    wide = {"car": 4.2, "cyclist": 1.6, "motorbike": 1.8, "dog": 0.8, "bag": 0.5}.get(looks.kind, 0.7)
    if posture in ("fallen", "crawl", "lie"):
        wide = 1.7
    elif posture == "sit":
        wide = 1.1
    brush.shadow(wide, shade)
    match looks.kind:
        case "person":
            _draw_person(brush, looks, posture, phase, progress)
        case "cyclist":
            _draw_cyclist(brush, looks, phase)
        case "motorbike":
            _draw_motorbike(brush, looks)
        case "car":
            _draw_car(brush, looks)
        case "dog":
            _draw_dog(brush, looks, phase)
        case "bag":
            _draw_bag(brush, COLOURS[looks.colour])


def _two_bones(root: Point, upper: float, lower: float, length: float, bend: float) -> list[Point]:
    """A limb of two bones: `upper` is its angle from straight down, `bend` the further angle of the second."""
    middle = (root[0] + length * np.sin(upper), root[1] - length * np.cos(upper))
    return [
        root,
        middle,
        (middle[0] + lower * np.sin(upper + bend), middle[1] - lower * np.cos(upper + bend)),
    ]


def _draw_person(brush: Brush, looks: Looks, posture: Posture, phase: float, progress: float) -> None:
    size, jacket, trousers = looks.size, COLOURS[looks.colour], TROUSERS[looks.lower]
    swing, lean, lift, knee, reach = 0.42, 0.03, 0.0, 0.35, 0.30
    arms: tuple[float, float] | None = None
    match posture:
        case "stand":
            swing, knee, reach = 0.05, 0.0, 0.05
        case "run":
            swing, lean, knee, reach = 0.85, 0.28, 1.15, 0.95
            lift = 0.10 * abs(np.sin(phase))
        case "jump":
            swing, knee, lift = 0.15, 0.5, 0.55 * max(0.0, np.sin(phase))
            arms = (2.6 + 0.3 * np.sin(phase), -2.6)
        case "fight":
            swing, lean, knee = 0.30, 0.12 * np.sin(phase), 0.3
            arms = (1.45 + 0.55 * np.sin(2 * phase), 1.30 - 0.65 * np.sin(2 * phase + 0.8))
        case "throw":
            swing, knee, lean = 0.25, 0.1, 0.35 * progress - 0.15
            arms = (3.4 - 2.4 * progress, 0.5)
        case "limp":
            # One leg drags behind: its steps are short, and the body dips over it.
            swing, lean, knee, reach = 0.30 + 0.35 * np.sin(phase) ** 2, 0.30, 0.7, 0.6
            lift = -0.08 * max(0.0, np.sin(phase))
        case "stagger":
            lean, knee = 0.24 * np.sin(0.45 * phase), 0.5
            arms = (0.9 + 0.3 * np.sin(phase), -0.8)
        case "dance":
            swing, lean, knee, lift = 0.40, 0.16 * np.sin(phase), 0.6, 0.10 * abs(np.sin(phase))
            arms = (2.1 + 0.8 * np.sin(phase), -2.0 + 0.8 * np.sin(1.3 * phase))
        case "wave":
            swing, knee, arms = 0.05, 0.0, (2.75 + 0.45 * np.sin(2 * phase), -0.1)
        case "skate":
            swing, knee, lean = 0.12, 0.35, 0.10
            arms = (0.7 + 0.1 * np.sin(phase), -0.6)
            _draw_board(brush)
        case "crawl":
            _draw_crawling(brush, looks, phase)
            return
        case "crouch" | "sit":
            _draw_low(brush, looks, posture, phase)
            return
        case "lie":
            progress = 1.0
    tilt = lean
    if posture in ("fallen", "lie"):
        # The body turns about the feet until it lies; the limbs go slack.
        tilt = progress * np.pi / 2 * 0.97
        swing, knee, reach = swing * (1 - progress) + 0.18 * progress, 0.25, 0.35
        phase = phase if progress < 0.3 else 1.2

    hip_height = 0.90 * size

    def turned(points: list[Point]) -> list[Point]:
        """Turn about the hip for the torso, or about the feet in a fall; then lift."""
        if posture in ("fallen", "lie"):
            sine, cosine = np.sin(tilt), np.cos(tilt)
            return [(x * cosine + y * sine, -x * sine + y * cosine + 0.14 * progress) for x, y in points]
        return [(x, y + lift) for x, y in points]

    hip = (0.0, hip_height)
    upright = posture not in ("fallen", "lie")
    chest = (
        0.52 * size * np.sin(lean if upright else 0),
        hip_height + 0.52 * size * np.cos(lean if upright else 0),
    )
    head = (chest[0] + 0.20 * size * np.sin(lean if upright else 0), chest[1] + 0.24 * size)
    for side, dark in ((np.pi, 0.78), (0.0, 1.0)):
        angle = swing * np.sin(phase + side)
        bend = -knee * (0.5 + 0.5 * np.sin(phase + side + 2.2))
        leg = _two_bones(hip, angle, 0.45 * size, 0.45 * size, bend)
        brush.limb(turned(leg), 0.15 * size, _dim(trousers, dark))
        brush.limb(turned([leg[2], (leg[2][0] + 0.13, leg[2][1] - 0.01)]), 0.09 * size, (30, 28, 28))
        if side:
            _draw_arm(brush, looks, turned, chest, arms[1] if arms else -reach * np.sin(phase), posture, 0.78)
    brush.limb(turned([(hip[0], hip[1] + 0.04), (chest[0], chest[1] - 0.06)]), 0.34 * size, jacket)
    _draw_arm(brush, looks, turned, chest, arms[0] if arms else reach * np.sin(phase), posture, 0.9)
    brush.disc(turned([head])[0], 0.13 * size, looks.skin)
    brush.disc(turned([(head[0] - 0.02, head[1] + 0.05)])[0], 0.115 * size, looks.hair)


def _draw_arm(
    brush: Brush, looks: Looks, turned, chest: Point, angle: float, posture: Posture, dark: float
) -> None:
    bend = 1.5 if posture == "run" else 0.9 if posture == "fight" else 0.25
    arm = _two_bones((chest[0], chest[1] - 0.05), angle, 0.27 * looks.size, 0.29 * looks.size, bend)
    brush.limb(turned(arm), 0.11 * looks.size, _dim(COLOURS[looks.colour], dark))
    brush.disc(turned([arm[2]])[0], 0.055 * looks.size, looks.skin)


def _draw_crawling(brush: Brush, looks: Looks, phase: float) -> None:
    jacket, trousers = COLOURS[looks.colour], TROUSERS[looks.lower]
    hip, chest = (-0.32, 0.42), (0.28, 0.46)
    for side, dark in ((np.pi, 0.78), (0.0, 1.0)):
        step = 0.16 * np.sin(phase + side)
        brush.limb(
            [hip, (hip[0] + 0.08 + step, 0.06), (hip[0] - 0.38 + step, 0.06)], 0.15, _dim(trousers, dark)
        )
        brush.limb([chest, (chest[0] + 0.04 - step, 0.05)], 0.11, _dim(jacket, dark))
    brush.limb([hip, chest], 0.32, jacket)
    brush.disc((0.52, 0.52), 0.13, looks.skin)
    brush.disc((0.50, 0.57), 0.115, looks.hair)


def _draw_low(brush: Brush, looks: Looks, posture: Posture, phase: float) -> None:
    """Draw somebody who squats, or sits on the ground with stretched legs."""
    jacket, trousers = COLOURS[looks.colour], TROUSERS[looks.lower]
    hip, thigh, bend = ((0.0, 0.40), 1.2, -2.2) if posture == "crouch" else ((-0.15, 0.15), 1.45, 0.1)
    for side, dark in ((0.1, 0.78), (0.0, 1.0)):
        leg = _two_bones(hip, thigh - side, 0.45, 0.45, bend)
        brush.limb(leg, 0.15, _dim(trousers, dark))
        brush.limb([leg[2], (leg[2][0] + 0.13, leg[2][1])], 0.09, (30, 28, 28))
    lean = (0.35 if posture == "crouch" else -0.12) + 0.03 * np.sin(phase)
    chest = (hip[0] + 0.52 * np.sin(lean), hip[1] + 0.52 * np.cos(lean))
    brush.limb([hip, (chest[0], chest[1] - 0.06)], 0.34, jacket)
    reach = 0.5 if posture == "crouch" else -0.5
    arm = _two_bones((chest[0], chest[1] - 0.05), reach, 0.27, 0.29, 0.3)
    brush.limb(arm, 0.11, _dim(jacket, 0.9))
    brush.disc(arm[2], 0.055, looks.skin)
    head = (chest[0] + 0.1 * np.sin(lean), chest[1] + 0.22)
    brush.disc(head, 0.13, looks.skin)
    brush.disc((head[0] - 0.02, head[1] + 0.05), 0.115, looks.hair)


def _draw_board(brush: Brush) -> None:
    brush.limb([(-0.45, 0.09), (0.5, 0.09)], 0.07, (96, 62, 34))
    for x in (-0.32, 0.36):
        brush.disc((x, 0.04), 0.05, (30, 30, 30))


def _draw_motorbike(brush: Brush, looks: Looks) -> None:
    jacket, trousers = COLOURS[looks.colour], TROUSERS[looks.lower]
    for x in (-0.68, 0.68):
        brush.disc((x, 0.31), 0.31, (28, 28, 30))
        brush.disc((x, 0.31), 0.14, (140, 140, 144))
    brush.polygon([(-0.75, 0.72), (-0.35, 0.45), (0.35, 0.40), (0.55, 0.85), (0.1, 0.92)], (58, 60, 66))
    brush.limb([(0.68, 0.31), (0.48, 1.02)], 0.07, (120, 120, 124))
    saddle, shoulder = (-0.28, 0.86), (0.08, 1.36)
    brush.limb([saddle, (0.16, 0.72), (0.02, 0.34)], 0.16, trousers)
    brush.limb([saddle, shoulder], 0.34, jacket)
    brush.limb([shoulder, (0.26, 1.12), (0.48, 1.06)], 0.10, _dim(jacket, 0.85))
    brush.disc((0.20, 1.60), 0.16, (40, 40, 46))


def _draw_cyclist(brush: Brush, looks: Looks, phase: float) -> None:
    jacket, trousers = COLOURS[looks.colour], TROUSERS[looks.lower]
    back, front, crank, saddle, bar = (-0.52, 0.34), (0.52, 0.34), (-0.05, 0.32), (-0.22, 0.92), (0.40, 1.0)
    for wheel in (back, front):
        brush.wheel(wheel, 0.33)
    frame = (150, 30, 40)
    brush.limb([back, crank, (0.34, 0.80), (-0.18, 0.76), back], 0.05, frame)
    brush.limb([front, bar], 0.05, frame)
    for side, dark in ((np.pi, 0.78), (0.0, 1.0)):
        pedal = (crank[0] + 0.17 * np.cos(-phase + side), crank[1] + 0.17 * np.sin(-phase + side))
        knee = ((saddle[0] + pedal[0]) / 2 + 0.24, (saddle[1] + pedal[1]) / 2 + 0.08)
        brush.limb([saddle, knee, pedal], 0.14, _dim(trousers, dark))
    shoulder = (0.14, 1.38)
    brush.limb([(saddle[0], saddle[1] + 0.06), shoulder], 0.32, jacket)
    brush.limb([shoulder, (0.32, 1.12), bar], 0.10, _dim(jacket, 0.85))
    brush.disc((0.26, 1.60), 0.13, looks.skin)
    brush.disc((0.25, 1.65), 0.12, looks.hair)


def _draw_car(brush: Brush, looks: Looks) -> None:
    paint = COLOURS[looks.colour]
    brush.polygon([(-2.1, 0.35), (2.1, 0.35), (2.1, 0.80), (1.3, 0.92), (-2.0, 0.95), (-2.1, 0.8)], paint)
    brush.polygon([(-1.75, 0.93), (1.15, 0.93), (0.55, 1.45), (-1.25, 1.45)], _dim(paint, 0.85))
    brush.polygon([(-1.5, 0.97), (-0.35, 0.97), (-0.35, 1.37), (-1.15, 1.37)], (70, 84, 96))
    brush.polygon([(-0.25, 0.97), (0.95, 0.97), (0.48, 1.37), (-0.25, 1.37)], (70, 84, 96))
    for x in (-1.3, 1.3):
        brush.disc((x, 0.33), 0.33, (26, 26, 28))
        brush.disc((x, 0.33), 0.17, (150, 150, 154))
    brush.disc((2.05, 0.68), 0.08, (255, 246, 200))


def _draw_dog(brush: Brush, looks: Looks, phase: float) -> None:
    coat = _DOGS[looks.colour]
    for x, side in ((-0.24, 0.0), (-0.20, np.pi), (0.22, np.pi), (0.26, 0.0)):
        brush.limb([(x, 0.32), (x + 0.12 * np.sin(phase + side), 0.02)], 0.07, _dim(coat, 0.85))
    brush.limb([(-0.27, 0.40), (0.27, 0.42)], 0.20, coat)
    brush.limb([(0.28, 0.44), (0.42, 0.58)], 0.13, coat)
    brush.disc((0.46, 0.60), 0.10, coat)
    brush.limb([(-0.3, 0.44), (-0.46, 0.58 + 0.05 * np.sin(2 * phase))], 0.05, coat)


def _draw_bag(brush: Brush, colour: Colour) -> None:
    brush.polygon([(-0.26, 0.0), (0.26, 0.0), (0.24, 0.38), (-0.24, 0.38)], colour)
    brush.limb([(-0.12, 0.38), (-0.08, 0.50), (0.08, 0.50), (0.12, 0.38)], 0.05, _dim(colour, 0.6))


def _dim(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(value * factor) for value in colour)
    return red, green, blue
