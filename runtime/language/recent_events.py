"""The evidence of recent events, kept so that somebody may ask about them; bounded in number and bytes."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from uuid import UUID

from tvau_edge.runtime.errors import EvidenceError
from tvau_edge.runtime.language.messages import Tensors, Turn


@dataclass(slots=True)
class RecentEvent:
    """What is kept of an event.

    Attributes:
        event: its id.
        camera: name.
        tensors: p_v and p_an, in float16 where they fit.
        newest: index of the newest temporal patch in it.
        turns: what was asked and answered so far.
    """

    event: UUID
    camera: str
    tensors: Tensors
    newest: int = -1
    turns: list[Turn] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of its evidence."""
        return sum(array.nbytes for array in self.tensors.values())


class RecentEvents:
    """The newest events; the oldest are forgotten when there are too many, or they are too large together.

    Args:
        most: events.
        max_bytes: of evidence.
    """

    def __init__(self, most: int, max_bytes: int) -> None:
        self._most, self._max_bytes = most, max_bytes
        self._events: OrderedDict[UUID, RecentEvent] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, recent: RecentEvent) -> None:
        """Keep an event's evidence, in place of what was kept of it before."""
        with self._lock:
            self._events[recent.event] = recent
            self._events.move_to_end(recent.event)
            while self._events and (len(self._events) > self._most or self._bytes() > self._max_bytes):
                self._events.popitem(last=False)

    def find(self, event: UUID) -> RecentEvent | None:
        """What is kept of an event, if anything is."""
        with self._lock:
            return self._events.get(event)

    def get(self, event: UUID) -> RecentEvent:
        """What is kept of an event.

        Raises:
            EvidenceError: nothing; says which events there are.
        """
        with self._lock:
            if event in self._events:
                return self._events[event]
            known = ", ".join(str(other) for other in reversed(self._events)) or "none yet"
        raise EvidenceError(
            f"event {event} is unknown or too old; evidence is kept of, newest first: {known}"[:900]
        )

    @property
    def bytes(self) -> int:
        """Of all evidence."""
        with self._lock:
            return self._bytes()

    def __len__(self) -> int:
        return len(self._events)

    def _bytes(self) -> int:
        return sum(recent.size for recent in self._events.values())
