"""The reference checkpoint's class prompts, at the paper's three nested levels: word, phrase, sentence.

They name what the training split shows. What the other splits show has to be told from these.
"""

from tvau_edge.reference.anomalies import TRAINING
from tvau_edge.runtime.language.class_prompts import nested

_NORMAL = (
    "a person walking on the footpath",
    "a person carrying a bag",
    "a person standing on the footpath",
    "a person riding a bicycle on the road",
    "a person riding a motorbike on the road",
    "a car driving on the road",
    "a dog walking on the footpath",
)


CLASS_PROMPTS: dict[str, list[str]] = {
    "normal": [prompt for behaviour in _NORMAL for prompt in nested(behaviour)],
    "abnormal": [prompt for behaviour in TRAINING.values() for prompt in nested(behaviour)],
}
