"""When events are explained: once they are old enough to be understood, and again when they have gone on since."""

from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from tvau_edge.runtime.config import LanguageConfig
from tvau_edge.runtime.detection.trigger import EventUpdate
from tvau_edge.runtime.detection.vision import Evidence
from tvau_edge.runtime.language.explain import Explainer, Explanation
from tvau_edge.runtime.service.watched import Watched

_REMEMBERED = 64  # events that may still be explained


@dataclass(slots=True)
class _Event:
    """What was submitted of an event.

    Attributes:
        camera: that saw it.
        patches: of the event, up to the newest that was submitted.
        length: patches of the sequence that the language model was to have then.
        since: the newest patch of that sequence and those that came after it; empty where it cannot grow.
        explained: whether an explanation has come.
    """

    camera: Watched
    patches: int
    length: int
    since: list[Evidence] = field(default_factory=list)
    explained: bool = False


class Explaining:
    """Submits events to the explainer; guarded by the pipeline's lock, but for `explained`.

    Args:
        config: when, and how.
        window: T'.
        explainer: takes them.
    """

    def __init__(self, config: LanguageConfig, window: int, explainer: Explainer) -> None:
        self._window, self._explainer = window, explainer
        self._first = config.explain_after or window // 2
        self._again, self._every = config.explain_again, config.explain_again_every
        self._least = config.explain_again_after or window // 2
        self._longest = config.longest_sequence(window)
        self._events: OrderedDict[UUID, _Event] = OrderedDict()
        self.events = 0  # that were explained

    def see(self, camera: Watched) -> None:
        """Take note of a temporal patch of a camera, with which its event may be old enough."""
        update = camera.trigger.current
        if update is None:
            return
        event = self._events.get(update.event)
        if event is not None:
            self._go_on(event, update, self._every)
        elif update.patches >= self._first:
            self._submit(camera, update)

    def end(self, camera: Watched, update: EventUpdate) -> None:
        """Explain an event that has ended, if it never was, or if it went on for long enough since."""
        event = self._events.get(update.event)
        if event is None:
            self._submit(camera, update)
        else:
            self._go_on(event, update, self._least)
            event.since.clear()

    def explained(self, explanation: Explanation) -> None:
        """Take note of an explanation, on any thread."""
        event = self._events.get(explanation.event)
        if event is not None:
            event.camera.timeline.explain(explanation.event, explanation.result.answers)
            self.events += not event.explained
            event.explained = True

    def _submit(self, camera: Watched, update: EventUpdate) -> None:
        event = self._events[update.event] = _Event(camera, update.patches, self._window)
        while len(self._events) > _REMEMBERED:
            self._events.popitem(last=False)
        if self._again == "extend":
            event.since.append(update.newest)
        self._explainer.submit(update.event, update.window, update.peak)

    def _go_on(self, event: _Event, update: EventUpdate, least: int | None) -> None:
        """Take note of an event's newest patch; explain it again if so many have come since."""
        if event.since and update.newest.index > event.since[-1].index:
            event.since.append(update.newest)
            if event.length + len(event.since) > self._longest + self._window + 1:  # quiet ones do not count
                event.since.clear()
        patches = update.patches - update.quiet
        if self._again != "never" and least is not None and patches - event.patches >= least:
            event.patches = patches
            since = self._grow(event, update) if self._again == "extend" else []
            self._explainer.submit(update.event, update.shown, update.peak, again=True, since=since)

    def _grow(self, event: _Event, update: EventUpdate) -> list[Evidence]:
        """What the event's sequence grows by, after its newest patch; nothing where a new one must begin."""
        newest = update.shown.evidence[-1]
        since = [item for item in event.since if item.index <= newest.index]
        event.length += len(since) - 1
        if len(since) < 2 or event.length > self._longest:
            since, event.length = [], self._window
        event.since = [newest, *(item for item in update.window.evidence if item.index > newest.index)]
        return since
