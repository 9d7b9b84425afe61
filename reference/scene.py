"""A drawn street under a fixed surveillance camera: the ground in perspective, its zones, light and weather.

The camera stands over the street and looks along it. The ground is a plane in metres: X to the right, Z away from
the camera; a point of it projects to x = cx + f X / Z and y = horizon + f h / Z, so that one metre measures
f / Z pixels there. Drawn, not real: colours and shapes come from a seed.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 360  # pixels

Zone = Literal["footpath", "road", "off"]
Light = Literal["day", "dusk", "night"]
Weather = Literal["clear", "rain", "fog"]
Passing = Literal["none", "cloud", "flicker"]
Image = NDArray[np.uint8]

_MARGIN = 60.0  # metres of ground drawn beyond what the camera sees
_TINT = {"day": (1.0, 1.0, 1.0), "dusk": (0.86, 0.68, 0.55), "night": (0.30, 0.33, 0.42)}  # R, G, B


@dataclass(frozen=True)
class Layout:
    """One street: where its zones lie, how the camera sees it, what light falls on it.

    Attributes:
        seed: what the layout was drawn from; the same seed gives the same street.
        focal: pixels.
        camera_height: metres over the ground.
        horizon: pixels from the top.
        yaw: radians between the street and the camera's X axis.
        bands: zones across the street as (zone, near edge, far edge) in metres of depth, near to far.
        light, weather: of the whole clip.
        lamps: ground points [L, 2] (along the street, depth) of street lamps.
        shake: pixels of camera shake.
        noise: standard deviation of sensor noise, 0..255.
        passing: what changes the light while nothing happens: the shadow of a cloud, a lamp that flickers.
    """

    seed: int
    focal: float
    camera_height: float
    horizon: float
    yaw: float
    bands: tuple[tuple[Zone, float, float], ...]
    light: Light
    weather: Weather
    lamps: NDArray[np.float64]
    shake: float
    noise: float
    passing: Passing

    @classmethod
    def draw(cls, seed: int) -> "Layout":
        """Draw a street from `seed`."""
        rng = np.random.default_rng([seed, 11])
        edges = 10.0 + np.concatenate([[0.0], np.cumsum(rng.uniform((2.6, 4.2, 2.6), (4.4, 6.4, 4.0)))])
        kind = rng.integers(4)
        zones: list[Zone] = [["footpath", "road", "footpath"], ["road", "footpath", "footpath"],
                             ["footpath", "footpath", "road"], ["footpath", "footpath", "footpath"]][kind]  # fmt: skip
        bands = tuple((zone, float(a), float(b)) for zone, a, b in zip(zones, edges, edges[1:], strict=False))
        light: Light = rng.choice(np.array(["day", "day", "dusk", "night"]))
        weather: Weather = rng.choice(np.array(["clear", "clear", "clear", "rain", "fog"]))
        along = np.arange(-16, 17, 8.0) + rng.uniform(-2, 2)
        tempted = rng.random() < 0.3
        return cls(
            seed=seed,
            focal=float(rng.uniform(540, 640)),
            camera_height=float(rng.uniform(4.6, 6.2)),
            horizon=float(rng.uniform(20, 70)),
            yaw=float(rng.uniform(-0.3, 0.3)),
            bands=bands,
            light=str(light),  # type: ignore[arg-type]
            weather=str(weather),  # type: ignore[arg-type]
            lamps=np.stack([along, np.full_like(along, edges[-1] - 0.3)], axis=1),
            shake=float(rng.choice([0.0, 0.0, 0.6, 1.2])),
            noise=float(rng.uniform(1.5, 5.0)),
            passing="none" if not tempted else "cloud" if light == "day" else "flicker",
        )

    def ground(self, along: float, depth: float) -> tuple[float, float]:
        """Turn a place of the street (metres along it, metres of depth) to the camera's (X, Z)."""
        middle = (self.bands[0][1] + self.bands[-1][2]) / 2
        cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
        across = depth - middle
        return along * cosine - across * sine, middle + along * sine + across * cosine

    def project(self, along: float, depth: float, height: float = 0.0) -> tuple[float, float, float]:
        """Project a place of the street, `height` metres over the ground, to (x, y, pixels per metre)."""
        x, z = self.ground(along, depth)
        scale = self.focal / max(z, 1.0)
        return WIDTH / 2 + x * scale, self.horizon + (self.camera_height - height) * scale, scale

    def zone(self, depth: float) -> Zone:
        """The zone at a depth of the street."""
        return next((zone for zone, near, far in self.bands if near <= depth < far), "off")

    def middles(self, zone: Zone) -> list[tuple[float, float]]:
        """Depth ranges (near, far) of the bands of a zone."""
        return [(near, far) for name, near, far in self.bands if name == zone]


def draw_background(layout: Layout) -> Image:
    """Paint the empty street, [360, 640, 3] uint8 RGB, before light and weather."""
    rng = np.random.default_rng([layout.seed, 12])
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = np.array([rng.integers(150, 200), rng.integers(175, 210), rng.integers(205, 235)])
    last = layout.bands[-1][2]
    _paint_band(image, layout, 3.0, layout.bands[0][1], rng.integers(80, 120, 3))
    _paint_band(image, layout, last, last + 40, rng.integers(85, 130, 3))
    footpath = rng.integers(140, 185) + rng.integers(-12, 12, 3)
    road = rng.integers(70, 105) + rng.integers(-5, 5, 3)
    for zone, near, far in layout.bands:
        _paint_band(image, layout, near, far, footpath if zone == "footpath" else road)
        if zone == "footpath":
            _paint_slabs(image, layout, near, far, footpath - 14, float(rng.uniform(1.0, 2.2)))
        else:
            _paint_dashes(image, layout, (near + far) / 2)
        _paint_band(image, layout, far - 0.12, far + 0.12, footpath - 35)
    _paint_houses(image, layout, last + float(rng.uniform(1.0, 3.0)), rng)
    texture = rng.normal(0, 5, (HEIGHT // 2, WIDTH // 2, 1)).repeat(2, 0).repeat(2, 1)
    return np.clip(image + texture, 0, 255).astype(np.uint8)


def _paint_quad(
    image: Image, layout: Layout, corners: list[tuple[float, float, float]], colour: object
) -> None:
    points = [layout.project(*corner)[:2] for corner in corners]
    cv2.fillPoly(image, [np.round(np.array(points) * 16).astype(np.int32)], _rgb(colour), cv2.LINE_AA, 4)


def _paint_band(image: Image, layout: Layout, near: float, far: float, colour: object) -> None:
    near = max(near, 3.0)
    side = min(_MARGIN, 2.4 * near + 8) if near < 6 else _MARGIN / 2
    # Far from the camera's axis a yawed band would pass behind the camera, so each band is painted in short pieces.
    for along in np.arange(-side, side, 2.0):
        piece = [(along, near, 0.0), (along + 2.1, near, 0.0), (along + 2.1, far, 0.0), (along, far, 0.0)]
        if min(layout.ground(a, d)[1] for a, d, _ in piece) > 2.0:
            _paint_quad(image, layout, piece, colour)


def _paint_slabs(image: Image, layout: Layout, near: float, far: float, colour: object, step: float) -> None:
    for along in np.arange(-30, 30, step):
        _line(image, layout, (along, near), (along, far), colour)
    for depth in np.arange(near + step, far, step):
        _line(image, layout, (-30, depth), (30, depth), colour)


def _paint_dashes(image: Image, layout: Layout, depth: float) -> None:
    for along in np.arange(-30, 30, 4.0):
        corners = [
            (along, depth - 0.08),
            (along + 2, depth - 0.08),
            (along + 2, depth + 0.08),
            (along, depth + 0.08),
        ]
        if min(layout.ground(*corner)[1] for corner in corners) > 2.0:
            _paint_quad(image, layout, [(a, d, 0.0) for a, d in corners], (215, 215, 205))


def _line(
    image: Image, layout: Layout, a: tuple[float, float], b: tuple[float, float], colour: object
) -> None:
    if min(layout.ground(*a)[1], layout.ground(*b)[1]) > 2.0:
        ends = [np.round(np.array(layout.project(*end)[:2]) * 16).astype(int) for end in (a, b)]
        cv2.line(image, ends[0].tolist(), ends[1].tolist(), _rgb(colour), 1, cv2.LINE_AA, 4)


def _paint_houses(image: Image, layout: Layout, depth: float, rng: np.random.Generator) -> None:
    along = -34.0
    while along < 34:
        width, height = rng.uniform(4, 9), rng.uniform(6, 12)
        wall = rng.integers(90, 190) + rng.integers(-25, 25, 3)
        _paint_quad(
            image,
            layout,
            [
                (along, depth, 0),
                (along + width, depth, 0),
                (along + width, depth, height),
                (along, depth, height),
            ],
            wall,
        )
        glass = rng.integers(40, 90, 3)
        for left in np.arange(along + 0.7, along + width - 1.2, 2.0):
            for bottom in np.arange(0.9, height - 1.5, 2.6):
                corners = [
                    (left, bottom),
                    (left + 1.1, bottom),
                    (left + 1.1, bottom + 1.4),
                    (left, bottom + 1.4),
                ]
                _paint_quad(image, layout, [(a, depth, h) for a, h in corners], glass)
        along += width + rng.choice([0.0, 0.0, 1.5])


def light_map(layout: Layout) -> NDArray[np.float32]:
    """What light and lamps leave of each pixel, [360, 640, 3], factors around 0..1.2."""
    tint = np.array(_TINT[layout.light], np.float32)
    light = np.ones((HEIGHT, WIDTH, 3), np.float32) * tint
    if layout.light != "day":
        ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        strength = 0.75 if layout.light == "night" else 0.25
        for along, depth in layout.lamps:
            x, y, scale = layout.project(along, depth - 2.0)
            spread = np.exp(-(((xs - x) / (3.2 * scale)) ** 2) - ((ys - y) / (2.0 * scale)) ** 2)
            light += strength * spread[..., None] * np.array((1.0, 0.9, 0.65), np.float32)
    return np.minimum(light, 1.25)


def passing_light(layout: Layout, time: float) -> NDArray[np.float32] | None:
    """What a cloud or a flickering lamp leaves of each pixel after `time` seconds, [360, 640, 1]; None for nothing."""
    rng = np.random.default_rng([layout.seed, 13])
    if layout.passing == "none":
        return None
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    if layout.passing == "cloud":
        x = rng.uniform(-0.3, 0.9) * WIDTH + rng.choice([-1, 1]) * rng.uniform(20, 70) * time
        y, wide = rng.uniform(0.4, 0.9) * HEIGHT, rng.uniform(70, 160)
        from_middle = ((xs - x) / wide) ** 2 + ((ys - y) / (0.35 * wide)) ** 2  # 1 at its edge
        dark = 0.45 / (1 + np.exp(4 * np.clip(from_middle - 1, -1, 10)))
        return (1 - dark)[..., None].astype(np.float32)
    x, y, scale = layout.project(*layout.lamps[rng.integers(len(layout.lamps))])
    on = np.sin(rng.uniform(5, 9) * time + np.sin(3.1 * time)) > -0.2
    spread = np.exp(-(((xs - x) / (3.0 * scale)) ** 2) - ((ys - y) / (1.8 * scale)) ** 2)
    return (1 + (0.5 if on else -0.25) * spread)[..., None].astype(np.float32)


def draw_lamps(image: Image, layout: Layout) -> None:
    """Paint the lamp posts; they stand behind everything that moves."""
    for along, depth in layout.lamps:
        foot, head = layout.project(along, depth), layout.project(along, depth, 4.5)
        width = max(1, round(0.1 * foot[2]))
        ends = [np.round(np.array(end[:2]) * 16).astype(int).tolist() for end in (foot, head)]
        cv2.line(image, ends[0], ends[1], (60, 62, 66), width, cv2.LINE_AA, 4)
        glow = (255, 244, 200) if layout.light != "day" else (120, 120, 120)
        cv2.circle(image, ends[1], max(2, round(0.22 * foot[2])) * 16, glow, -1, cv2.LINE_AA, 4)


def apply_weather(image: Image, layout: Layout, rng: np.random.Generator) -> Image:
    """Lay fog or rain over a lit frame."""
    if layout.weather == "fog":
        depth = np.linspace(0.62, 0.18, HEIGHT, dtype=np.float32)[:, None, None]
        grey = 185 * np.mean(_TINT[layout.light])
        return (image * (1 - depth) + grey * depth).astype(np.uint8)
    if layout.weather == "rain":
        wet = image.copy()
        for x, y, length in rng.uniform((0, 0, 8), (WIDTH, HEIGHT, 20), (160, 3)):
            cv2.line(
                wet, (int(x), int(y)), (int(x - length / 5), int(y + length)), (190, 195, 205), 1, cv2.LINE_AA
            )
        return cv2.addWeighted(image, 0.72, wet, 0.28, 0)
    return image


def _rgb(colour: object) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(value, 0, 255)) for value in colour)  # type: ignore[attr-defined]
    return red, green, blue
