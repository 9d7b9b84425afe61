"""What the actors of a clip do: where each is at each moment, in which posture, and what that is called.

A behaviour is normal or abnormal by what it is and where: riding a bicycle is normal on the road and abnormal on
the footpath. The abnormal ones are in `reference.anomalies`.
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


# What people do on a street, by name.
NORMAL = (
    "walk",
    "walk with a bag",
    "stand",
    "dog walk",
    "ride on the road",
    "drive on the road",
    "motorbike on the road",
)


def band(layout: Layout, zone: str, rng: np.random.Generator) -> float:
    """A depth inside one of the bands of `zone`, a little off its edges."""
    near, far = layout.middles(zone)[rng.integers(len(layout.middles(zone)))]  # type: ignore[arg-type]
    return float(rng.uniform(near + 0.35, far - 0.35))


def reach(depth: float) -> float:
    """Metres along the street that the camera sees to each side at a depth."""
    return depth * 0.5


@dataclass(frozen=True, slots=True)
class Going:
    """How an actor moves along the street.

    Attributes:
        kind, posture: of the actor.
        zone: where it goes.
        speed: metres per second, lowest and highest.
        gait: radians of its gait per metre.
        motion: as in `State`.
        sway: metres that it swings across its way.
    """

    kind: Kind
    posture: Posture
    zone: str
    speed: tuple[float, float]
    gait: float
    motion: str
    sway: float = 0.0

    def actor(
        self, name: str, layout: Layout, rng: np.random.Generator, seconds: float, abnormal: bool
    ) -> Actor:
        """Draw the actor. An abnormal one passes the middle of the picture while the clip lasts."""
        looks, start = Looks.draw(self.kind, rng), float(rng.uniform(0, 2 * np.pi))
        depth, facing, speed = (
            band(layout, self.zone, rng),
            int(rng.choice([-1, 1])),
            rng.uniform(*self.speed),
        )
        middle = (rng.uniform(0.3, 0.7) if abnormal else rng.uniform(0, 1)) * seconds
        along = float(rng.uniform(-0.5, 0.5) * reach(depth) - facing * speed * middle)
        drift = 0.0 if abnormal else float(rng.uniform(-0.05, 0.05))

        def state(t: float) -> State:
            across = drift * t + self.sway * np.sin(1.7 * t + start)
            phase = start + self.gait * speed * t
            return State(
                along + facing * speed * t, depth + across, self.posture, phase, facing, self.motion, abnormal
            )

        return Actor(looks, name, state)


@dataclass(frozen=True, slots=True)
class Staying:
    """What an actor does where it is.

    Attributes:
        posture: of a person.
        rate: radians per second of its motion, lowest and highest.
        motion: as in `State`.
    """

    posture: Posture
    rate: tuple[float, float]
    motion: str

    def actor(self, name: str, layout: Layout, rng: np.random.Generator, abnormal: bool) -> Actor:
        """Draw the actor, somewhere in the picture."""
        looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
        depth, facing, rate = band(layout, "footpath", rng), int(rng.choice([-1, 1])), rng.uniform(*self.rate)
        along = float(rng.uniform(-0.75, 0.75) * reach(depth))

        def state(t: float) -> State:
            return State(
                along, depth, self.posture, start + rate * t, facing, self.motion, abnormal, progress=1.0
            )

        return Actor(looks, name, state)


_WALK = Going("person", "walk", "footpath", (1.0, 1.6), 4.4, "walking along the footpath")
_GOING = {
    "walk": _WALK,
    "walk with a bag": _WALK,
    "dog walk": Going("dog", "walk", "footpath", (0.9, 1.6), 8.0, "walking along the footpath"),
    "ride on the road": Going("cyclist", "ride", "road", (3.2, 5.0), 3.0, "riding along the road"),
    "drive on the road": Going("car", "drive", "road", (4.5, 8.0), 0.0, "driving along the road"),
    "motorbike on the road": Going("motorbike", "ride", "road", (4.5, 8.0), 0.0, "riding along the road"),
}
_STAND = Staying("stand", (0.4, 0.6), "standing on the footpath")


def normal_actors(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    """Draw somebody who does what people do on a street, with what they carry."""
    choices = ["walk", "walk", "walk", "walk with a bag", "stand", "dog walk"]
    if layout.middles("road"):
        choices += ["drive on the road", "ride on the road", "motorbike on the road"]
    name = choices[rng.integers(len(choices))]
    if name == "stand":
        return [_STAND.actor(name, layout, rng, False)]
    actor = _GOING[name].actor(name, layout, rng, seconds, False)
    return [actor, carried(actor, rng)] if name == "walk with a bag" else [actor]


def carried(owner: Actor, rng: np.random.Generator) -> Actor:
    """A bag in the hand of somebody who walks."""

    def state(t: float) -> State | None:
        held = owner.state(t)
        return None if held is None else in_hand(held)

    return Actor(Looks.draw("bag", rng), owner.behaviour, state)


def in_hand(owner: State) -> State:
    """Where a bag is while its owner carries it."""
    return State(
        owner.along - owner.facing * 0.25, owner.depth - 0.05, "stand", 0, owner.facing,
        "being carried along the footpath", lift=0.45,
    )  # fmt: skip
