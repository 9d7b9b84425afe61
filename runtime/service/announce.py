"""Turns what the trigger and the dialogue say of events into the verdicts that subscribers see."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from tvau_edge.runtime.detection.regions import find_regions
from tvau_edge.runtime.detection.trigger import EventUpdate
from tvau_edge.runtime.language.explain import Explanation
from tvau_edge.runtime.verdict import Model, Prompts, Region, Verdict, at, uuid7

_REMEMBERED = 64  # ended events that may still be explained


@dataclass(slots=True)
class _Event:
    """What is known of one event so far."""

    last: EventUpdate
    sequence: int = 0
    explanation: Explanation | None = None
    latency_ms: dict[str, float] = field(default_factory=dict)


class Announcer:
    """Numbers the verdicts of each event and fills in its answers, whichever thread brings the news.

    Args:
        device: name of this box.
        model: what makes the verdicts.
        prompts: the class prompts in force.
        threshold: score from which a cell belongs to a region, 0..1.
        unsure: band of p_yes in which the verdict is "unsure".
        publish: takes each verdict; called under a lock, so that an event's verdicts leave in their order.
    """

    def __init__(
        self,
        device: str,
        model: Model,
        prompts: Prompts,
        threshold: float,
        unsure: tuple[float, float],
        publish: Callable[[Verdict], None],
    ) -> None:
        self._device, self._model, self._prompts = device, model, prompts
        self.threshold = threshold
        self._unsure, self._publish = unsure, publish
        self._events: OrderedDict[UUID, _Event] = OrderedDict()
        self._lock = threading.Lock()
        self.published = 0

    def set_prompts(self, prompts: Prompts) -> None:
        """Name other class prompts in the verdicts from now on."""
        with self._lock:
            self._prompts = prompts

    def announce(self, update: EventUpdate, latency_ms: dict[str, float]) -> None:
        """Publish what the trigger says, with the latency of each stage so far."""
        with self._lock:
            event = self._events.get(update.event)
            if event is None:
                event = self._events[update.event] = _Event(update)
                while len(self._events) > _REMEMBERED:
                    self._events.popitem(last=False)
            event.last = update
            event.latency_ms |= latency_ms
            self._tell(event, update)

    def explain(self, explanation: Explanation) -> None:
        """Publish an explanation as an update of its event, also when the event has ended meanwhile."""
        with self._lock:
            event = self._events.get(explanation.event)
            if event is not None:
                event.explanation = explanation
                event.latency_ms |= explanation.latency_ms
                self._tell(event, event.last, update=True)

    def _tell(self, event: _Event, news: EventUpdate, *, update: bool = False) -> None:
        newest = news.newest
        answers = event.explanation.result.answers if event.explanation else {}
        p_yes = event.explanation.result.p_yes if event.explanation else None
        verdict = Verdict(
            id=uuid7(),
            event=news.event,
            sequence=event.sequence,
            phase="update" if update else news.phase,
            device=self._device,
            camera=news.camera,
            time=at(newest.time),
            started=at(news.started),
            ended=at(news.ended) if news.ended is not None else None,
            score=news.peak,
            anomaly=self.judge(p_yes),
            p_yes=p_yes,
            target=answers.get("target"),
            motion=answers.get("motion"),
            from_=answers.get("from"),
            to=answers.get("to"),
            explanation=" ".join(answers.values()) or None,
            regions=[
                Region(box=region.box, score=region.score, name=region.name)
                for region in find_regions(newest.heatmap, self.threshold)
            ],
            prompts=self._prompts,
            model=self._model,
            latency_ms={stage: round(value, 3) for stage, value in event.latency_ms.items()},
            late=update and event.explanation is not None and event.explanation.late,
        )
        event.sequence += 1
        self.published += 1
        self._publish(verdict)

    def judge(self, p_yes: float | None) -> Literal["yes", "no", "unsure"]:
        """The word for a probability: "yes", "no", or "unsure" inside the band and while nobody was asked."""
        low, high = self._unsure
        if p_yes is None or low <= p_yes <= high:
            return "unsure"
        return "yes" if p_yes > high else "no"
