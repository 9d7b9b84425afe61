"""The reference checkpoint's class prompts, at the paper's three nested levels: word, phrase, sentence."""

from tvau_edge.reference.behaviours import ABNORMAL

_NORMAL = (
    "a person walking on the footpath",
    "a person standing on the footpath",
    "a person riding a bicycle on the road",
    "a car driving on the road",
    "a dog walking on the footpath",
)


def _levels(behaviour: str) -> list[str]:
    return [
        behaviour,
        f"surveillance video of {behaviour}",
        f"A short surveillance clip where {behaviour} occurs.",
    ]


CLASS_PROMPTS: dict[str, list[str]] = {
    "normal": [prompt for behaviour in _NORMAL for prompt in _levels(behaviour)],
    "abnormal": [prompt for behaviour in ABNORMAL.values() for prompt in _levels(behaviour)],
}
