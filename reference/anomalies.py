"""The abnormal behaviours, and which split shows which: as in UBnormal, no split shows those of another.

A model that was trained on the training split has seen a person falling down, yet never one lying there from the
start; somebody who dances, yet nobody who fights.
"""

from collections.abc import Callable

import numpy as np

from tvau_edge.reference.actors import Looks
from tvau_edge.reference.behaviours import Actor, Going, State, Staying, band, in_hand, reach
from tvau_edge.reference.scene import Layout

# Behaviours by name, and the word that stands for each in class prompts.
TRAINING = {
    "fall": "a person falling down",
    "crawl": "a person crawling",
    "dance": "a person dancing",
    "run injured": "a person running injured",
    "stagger": "a person staggering",
    "sit": "a person sitting on the ground",
    "throw": "a person throwing an object",
    "ride on the footpath": "a person riding a bicycle on the footpath",
    "walk on the road": "a person walking on the road",
    "abandoned bag": "an abandoned bag",
}
VALIDATION = {
    "crouch": "a person crouching",
    "wave": "a person waving for help",
    "skate on the footpath": "a person skating on the footpath",
    "motorbike on the footpath": "a person riding a motorbike on the footpath",
}
TEST = {
    "run": "a person running",
    "jump": "a person jumping",
    "lie": "a person lying on the ground",
    "fight": "people fighting",
    "car on the footpath": "a car driving on the footpath",
    "dog on the road": "a dog walking on the road",
}
ABNORMAL = TRAINING | VALIDATION | TEST

_GOING = {
    "run": Going("person", "run", "footpath", (2.8, 3.8), 2.9, "running along the footpath"),
    "run injured": Going("person", "limp", "footpath", (1.9, 2.6), 3.4, "running injured along the footpath"),
    "stagger": Going("person", "stagger", "footpath", (0.6, 0.9), 4.0, "staggering along the footpath", 0.25),
    "crawl": Going("person", "crawl", "footpath", (0.35, 0.6), 9.0, "crawling along the footpath"),
    "ride on the footpath": Going(
        "cyclist", "ride", "footpath", (2.4, 3.6), 3.0, "riding along the footpath"
    ),
    "motorbike on the footpath": Going(
        "motorbike", "ride", "footpath", (2.4, 4.0), 0.0, "riding along the footpath"
    ),
    "skate on the footpath": Going(
        "person", "skate", "footpath", (2.0, 3.2), 0.3, "skating along the footpath"
    ),
    "car on the footpath": Going("car", "drive", "footpath", (2.0, 3.6), 0.0, "driving along the footpath"),
    "walk on the road": Going("person", "walk", "road", (1.0, 1.6), 4.4, "walking along the road"),
    "dog on the road": Going("dog", "walk", "road", (0.9, 1.6), 8.0, "walking along the road"),
}
_STAYING = {
    "jump": Staying("jump", (5.5, 7.5), "jumping up and down on the footpath"),
    "dance": Staying("dance", (4.5, 6.5), "dancing on the footpath"),
    "wave": Staying("wave", (3.5, 5.0), "waving for help on the footpath"),
    "crouch": Staying("crouch", (0.4, 0.6), "crouching on the footpath"),
    "sit": Staying("sit", (0.4, 0.6), "sitting on the footpath"),
    "lie": Staying("lie", (0.0, 0.0), "lying on the footpath"),
}


def zone_of(behaviour: str) -> str:
    """The zone that a street needs for an abnormal behaviour to happen there."""
    return _GOING[behaviour].zone if behaviour in _GOING else "footpath"


def abnormal_actors(layout: Layout, rng: np.random.Generator, seconds: float, behaviour: str) -> list[Actor]:
    """Draw the actors of one anomaly; it is to be seen for at least a third of the clip.

    Args:
        layout: a street that has the zone of `zone_of(behaviour)`.
        rng: what everything is drawn from.
        seconds: length of the clip.
        behaviour: a key of `ABNORMAL`.
    """
    if behaviour in _GOING:
        return [_GOING[behaviour].actor(behaviour, layout, rng, seconds, True)]
    if behaviour in _STAYING:
        return [_STAYING[behaviour].actor(behaviour, layout, rng, True)]
    return _STORIES[behaviour](layout, rng, seconds)


def _fall(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    looks, start = Looks.draw("person", rng), float(rng.uniform(0, 2 * np.pi))
    depth, facing, speed = (
        band(layout, "footpath", rng),
        int(rng.choice([-1, 1])),
        float(rng.uniform(1.0, 1.5)),
    )
    when = float(rng.uniform(0.2, 0.55)) * seconds
    there = float(rng.uniform(-0.6, 0.6) * reach(depth))

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


def _fight(layout: Layout, rng: np.random.Generator, seconds: float) -> list[Actor]:
    depth, start = band(layout, "footpath", rng), float(rng.uniform(0, 2 * np.pi))
    along, rate = float(rng.uniform(-0.7, 0.7) * reach(depth)), float(rng.uniform(6.5, 9.0))

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
    depth, facing = band(layout, "footpath", rng), int(rng.choice([-1, 1]))
    along, period = float(rng.uniform(-0.6, 0.6) * reach(depth)), float(rng.uniform(1.3, 1.8))

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
    depth, facing = band(layout, "footpath", rng), int(rng.choice([-1, 1]))
    speed, when = float(rng.uniform(1.1, 1.5)), float(rng.uniform(0.15, 0.4)) * seconds
    there = float(rng.uniform(-0.6, 0.6) * reach(depth))

    def owner(t: float) -> State:
        along, phase = there + facing * speed * (t - when), start + 4.4 * speed * t
        return State(along, depth, "walk", phase, facing, "walking along the footpath")

    def left(t: float) -> State:
        held = in_hand(owner(min(t, when)))
        if t < when:
            return held
        return State(held.along, held.depth, "stand", 0, facing, "standing alone on the footpath", True)

    return [Actor(looks, "walk", owner), Actor(bag, "abandoned bag", left)]


_STORIES: dict[str, Callable[[Layout, np.random.Generator, float], list[Actor]]] = {
    "fall": _fall,
    "fight": _fight,
    "throw": _throw,
    "abandoned bag": _abandon,
}
