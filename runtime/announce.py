"""Turns what the trigger and the dialogue say into the verdicts that subscribers see."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from tvau_edge.runtime.trigger import EventUpdate
from tvau_edge.runtime.verdict import ModelInfo, Prompts, Verdict


@dataclass(slots=True)
class _Event:
    """What is known of one event so far."""

    sequence: int = 0
    answers: dict[str, str] = field(default_factory=dict)
    p_yes: float | None = None
    last: EventUpdate | None = None


class Announcer:
    """Numbers the verdicts of each event and fills them with its answers, whichever thread brings the news.

    Args:
        device: name of this box.
        model: what made the verdicts.
        prompts: the class prompts in force.
        unsure: band of p_yes in which the answer is "unsure".
        publish: takes a verdict; called under a lock, so that the order of an event is the order of its numbers.
        remember: ended events that may still be explained late.
    """

    def __init__(
        self,
        device: str,
        model: ModelInfo,
        prompts: Prompts,
        unsure: tuple[float, float],
        publish: Callable[[Verdict], None],
        remember: int = 64,
    ) -> None:
        self._device, self._model, self._prompts, self._unsure = device, model, prompts, unsure
        self._publish = publish
        self._remember = remember
        self._events: dict[UUID, _Event] = {}
        self._lock = threading.Lock()
