"""What the actors of a clip do: where each is at each moment, in which posture, and what that is called.

A behaviour is normal or abnormal by what it is and where: riding a bicycle is normal on the road and abnormal on
the footpath.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvau_edge.reference.actors import Kind, Looks, Posture
from tvau_edge.reference.scene import Layout

FOLLOW = 4.0  # metres beyond the picture's edge at which an actor starts


@dataclass(frozen=True, slots=True)
class State:
    """One actor at one moment.

    Attributes:
        along, depth: place on the street, metres.
        posture, phase, progress: as in `draw_actor`.
        facing: 1 looks right, -1 left.
        abnormal: whether what it does right now is abnormal.
        motion: what it does, as a verb phrase: "walking along the footpath".
        lift: metres over the ground (a thrown thing).
    """

    along: float
    depth: float
    posture: Posture
    phase: float
    facing: int
    motion: str
    abnormal: bool = False
    progress: float = 0.0
    lift: float = 0.0


@dataclass(frozen=True)
class Actor:
    """One actor of a clip: its looks and its state at each second of the clip."""

    looks: Looks
    behaviour: str
    state: Callable[[float], State | None]


# What may happen, by name: the word used in class prompts -> where it may happen.
NORMAL = ("walk", "stand", "ride on the road", "drive on the road", "dog walk")
ABNORMAL = {
    "run": "a person running",
    "jump": "a person jumping",
    "fall": "a person falling down",
    "lie": "a person lying on the ground",
    "crawl": "a person crawling",
    "fight": "people fighting",
    "ride on the footpath": "a person riding a bicycle on the footpath",
    "car on the footpath": "a car driving on the footpath",
    "throw": "a person throwing an object",
    "abandoned bag": "an abandoned bag",
}


def _band(layout: Layout, zone: str, rng: np.random.Generator) -> float:
    """A depth inside one of the bands of `zone`, a little off its edges."""
    near, far = layout.middles(zone)[rng.integers(len(layout.middles(zone)))]  # type: ignore[arg-type]
    return float(rng.uniform(near + 0.35, far - 0.35))


def _seen(depth: float) -> float:
    """Metres along the street that the camera sees to each side at a depth."""
    return depth * 0.6


def _mover(
    layout: Layout, rng: np.random.Generator, zone: str, speed: float, seconds: float, inside: bool
) -> tuple[float, float, float, int]:
    """Start (along, depth), signed speed and facing of an actor that crosses the picture."""
    depth = _band(layout, zone, rng)
    facing = int(rng.choice([-1, 1]))
    reach = _seen(depth)
    middle = rng.uniform(0.3, 0.7) * seconds if inside else rng.uniform(0, 1) * seconds
    return float(rng.uniform(-0.5, 0.5) * reach - facing * speed * middle), depth, facing * speed, facing


def normal_actor(layout: Layout, rng: np.random.Generator, seconds: float) -> Actor:
    """Draw an actor that does what people do on a street."""
    choices = ["walk", "walk", "walk", "stand", "dog walk"]
    if layout.middles("road"):
        choices += ["drive on the road", "ride on the road"]
    behaviour = choices[rng.integers(len(choices))]
    kind: Kind = {"drive on the road": "car", "ride on the road": "cyclist", "dog walk": "dog"}.get(
        behaviour, "person"
    )  # type: ignore[assignment]
    looks = Looks.draw(kind, rng)
    start = float(rng.uniform(0, 2 * np.pi))
    zone = "road" if "road" in behaviour else "footpath"
    if behaviour == "stand":
        depth = _band(layout, zone, rng)
        along, facing = float(rng.uniform(-0.8, 0.8) * _seen(depth)), int(rng.choice([-1, 1]))

        def standing(t: float) -> State:
            return State(along, depth, "stand", 0.5 * t + start, facing, "standing on the footpath")

        return Actor(looks, behaviour, standing)
    speed = {
        "walk": rng.uniform(1.0, 1.6),
        "dog walk": rng.uniform(0.9, 1.6),
        "ride on the road": rng.uniform(3.2, 5.0),
        "drive on the road": rng.uniform(4.5, 8.0),
    }[behaviour]
    along, depth, velocity, facing = _mover(layout, rng, zone, float(speed), seconds, inside=False)
    posture: Posture = {"car": "drive", "cyclist": "ride"}.get(kind, "walk")  # type: ignore[assignment]
    verb = {"car": "driving along the road", "cyclist": "riding along the road"}.get(
        kind, "walking along the footpath"
    )
    gait = 4.4 if kind != "dog" else 8.0  # radians per metre
    drift = float(rng.uniform(-0.05, 0.05))

    def moving(t: float) -> State:
        return State(
            along + velocity * t, depth + drift * t, posture, start + gait * abs(velocity) * t, facing, verb
        )

    return Actor(looks, behaviour, moving)


def abnormal_actors(layout: Layout, rng: np.random.Generator, seconds: float, behaviour: str) -> list[Actor]:
    """Draw the actors of one anomaly; it is to be seen for at least a third of the clip."""
    return _ABNORMAL[behaviour](layout, rng, seconds)


def _run(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
    along, depth, velocity, facing = _mover(
        layout, rng, "footpath", float(rng.uniform(2.8, 3.8)), seconds, True
    )

    def state(t: float) -> State:
        return State(
            along + velocity * t, depth, "run", start + 2.9 * abs(velocity) * t, facing,
            "running along the footpath", True,
        )  # fmt: skip

    return [Actor(looks, "run", state)]


def _ride(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("cyclist", rng), float(rng.uniform(0, 2 * np.pi))
    along, depth, velocity, facing = _mover(
        layout, rng, "footpath", float(rng.uniform(2.4, 3.6)), seconds, True
    )

    def state(t: float) -> State:
        return State(
            along + velocity * t, depth, "ride", start + 3.0 * abs(velocity) * t, facing,
            "riding along the footpath", True,
        )  # fmt: skip

    return [Actor(looks, "ride on the footpath", state)]


def _drive(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks = Looks.draw("car", rng)
    along, depth, velocity, facing = _mover(
        layout, rng, "footpath", float(rng.uniform(2.0, 3.6)), seconds, True
    )

    def state(t: float) -> State:
        return State(along + velocity * t, depth, "drive", 0.0, facing, "driving along the footpath", True)

    return [Actor(looks, "car on the footpath", state)]


def _crawl(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
    along, depth, velocity, facing = _mover(
        layout, rng, "footpath", float(rng.uniform(0.35, 0.6)), seconds, True
    )

    def state(t: float) -> State:
        return State(
            along + velocity * t, depth, "crawl", start + 9.0 * abs(velocity) * t, facing,
            "crawling along the footpath", True,
        )  # fmt: skip

    return [Actor(looks, "crawl", state)]


def _jump(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
    depth = _band(layout, "footpath", rng)
    along, facing = float(rng.uniform(-0.7, 0.7) * _seen(depth)), int(rng.choice([-1, 1]))
    rate = float(rng.uniform(5.5, 7.5))

    def state(t: float) -> State:
        return State(
            along, depth, "jump", start + rate * t, facing, "jumping up and down on the footpath", True
        )

    return [Actor(looks, "jump", state)]


def _fall(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
    depth, facing, speed = (
        _band(layout, "footpath", rng),
        int(rng.choice([-1, 1])),
        float(rng.uniform(1.0, 1.5)),
    )
    when = float(rng.uniform(0.2, 0.55)) * seconds
    there = float(rng.uniform(-0.6, 0.6) * _seen(depth))

    def state(t: float) -> State:
        along = there + facing * speed * (min(t, when + 0.3) - when)
        phase = start + 4.4 * speed * min(t, when + 0.3)
        if t < when:
            return State(along, depth, "walk", phase, facing, "walking along the footpath")
        progress = min(1.0, (t - when) / 0.7)
        return State(
            along,
            depth,
            "fallen",
            phase,
            facing,
            "falling down on the footpath",
            True,
            progress=progress**1.6,
        )

    return [Actor(looks, "fall", state)]


def _lie(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, depth = Looks.draw("person", rng), _band(layout, "footpath", rng)
    along, facing = float(rng.uniform(-0.7, 0.7) * _seen(depth)), int(rng.choice([-1, 1]))

    def state(t: float) -> State:
        return State(along, depth, "lie", 1.2, facing, "lying on the footpath", True, progress=1.0)

    return [Actor(looks, "lie", state)]


def _fight(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    depth, start = _band(layout, "footpath", rng), float(rng.uniform(0, 2 * np.pi))
    along, rate = float(rng.uniform(-0.7, 0.7) * _seen(depth)), float(rng.uniform(6.5, 9.0))

    def fighter(side: int, looks: Looks) -> Actor:
        def state(t: float) -> State:
            sway = 0.16 * np.sin(0.4 * rate * t + start)
            return State(
                along + sway - side * 0.36, depth, "fight", start + rate * t + side, side,
                "fighting on the footpath", True,
            )  # fmt: skip

        return Actor(looks, "fight", state)

    return [fighter(side, Looks.draw("person", rng)) for side in (1, -1)]


def _throw(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, thing = Looks.draw("person", rng), Looks.draw("bag", rng)
    depth, facing = _band(layout, "footpath", rng), int(rng.choice([-1, 1]))
    along, period = float(rng.uniform(-0.6, 0.6) * _seen(depth)), float(rng.uniform(1.3, 1.8))

    def thrower(t: float) -> State:
        progress = min(1.0, (t % period) / (0.45 * period))
        return State(
            along, depth, "throw", 0.6, facing, "throwing things on the footpath", True, progress=progress
        )

    def thrown(t: float) -> State | None:
        flight = t % period - 0.3 * period
        if not 0 <= flight < 0.65 * period:
            return None
        lift = 1.7 + 1.2 * flight - 4.4 * flight**2
        if lift < 0:
            return None
        return State(
            along + facing * (0.5 + 3.2 * flight),
            depth,
            "stand",
            0,
            facing,
            "flying through the air",
            True,
            lift=lift,
        )

    return [Actor(looks, "throw", thrower), Actor(thing, "throw", thrown)]


def _abandon(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, bag, start = Looks.draw("person", rng), Looks.draw("bag", rng), float(rng.uniform(0, 2 * np.pi))
    depth, facing, speed = (
        _band(layout, "footpath", rng),
        int(rng.choice([-1, 1])),
        float(rng.uniform(1.1, 1.5)),
    )
    when = float(rng.uniform(0.15, 0.4)) * seconds
    there = float(rng.uniform(-0.6, 0.6) * _seen(depth))

    def owner(t: float) -> State:
        return State(
            there + facing * speed * (t - when), depth, "walk", start + 4.4 * speed * t, facing,
            "walking along the footpath",
        )  # fmt: skip

    def left(t: float) -> State:
        if t < when:
            along = there + facing * speed * (t - when) - facing * 0.25
            return State(
                along, depth - 0.05, "stand", 0, facing, "being carried along the footpath", lift=0.45
            )
        return State(
            there - facing * 0.25, depth - 0.05, "stand", 0, facing, "standing alone on the footpath", True
        )

    return [Actor(looks, "walk", owner), Actor(bag, "abandoned bag", left)]


_ABNORMAL: dict[str, Callable[[Layout, np.random.Generator, float], list[Actor]]] = {
    "run": _run,
    "jump": _jump,
    "fall": _fall,
    "lie": _lie,
    "crawl": _crawl,
    "fight": _fight,
    "ride on the footpath": _ride,
    "car on the footpath": _drive,
    "throw": _throw,
    "abandoned bag": _abandon,
}
