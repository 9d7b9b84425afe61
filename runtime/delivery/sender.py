"""Decides what is given to paho and when: verdicts out of the outbox, the newest of what is retained, answers.

All of it happens on the network's thread, so that each topic keeps its order. Never more is on its way than the broker
takes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery import properties
from tvau_edge.runtime.delivery.cloud_events import CloudEvents
from tvau_edge.runtime.delivery.connection import advised, take_back_all
from tvau_edge.runtime.delivery.outbox import FIRST, Entry, Outbox
from tvau_edge.runtime.delivery.properties import PublishProperties
from tvau_edge.runtime.verdict import abridged, marked_late

log = logging.getLogger(__name__)

_AHEAD = 256  # messages read from the outbox at once
_LATE_SECONDS = 5.0  # after which a message counts as late
_HOLD_SECONDS = (5.0, 300.0)  # before a topic that the broker refused is tried again: at first, at most
_LOOK_SECONDS = 1.0, 0.2  # between two looks for work of which nobody tells us; while topics are held
_BARREN = 3  # connections in a row without an acknowledgement, after which a large message is suspected
_LARGE = 4096  # bytes of a payload; no broker's limit is below that
_ANSWERS = 100  # answers to commands that may wait
# Reasons of the broker that time or its administrator can mend; for others, to send the same again is no use.
_PASSING = {0x80, 0x83, 0x87, 0x97}  # unspecified, implementation specific, not authorized, quota exceeded
_TOO_LARGE = ReasonCode(PacketTypes.DISCONNECT, "Packet too large")
_JSON = properties.content_type("application/json")


@dataclass(slots=True)
class _Retained:
    """The newest message of a topic of which only the newest counts.

    Attributes:
        told: the broker has been sent it on this connection.
        packet: id of the copy that the broker has not acknowledged yet; the next one waits for that, else paho,
            which sends that copy anew on a new connection, would have the older overtake the newer.
    """

    payload: bytes
    content_type: str
    qos: int
    told: bool = False
    packet: int | None = None


class Sender:
    """Feeds one paho client from one outbox.

    Args:
        client: not connected yet.
        config: of the broker.
        outbox: where verdicts wait.
        wake: has `work` called soon, and may be called by any thread.
    """

    def __init__(
        self, client: mqtt.Client, config: BrokerConfig, outbox: Outbox, wake: Callable[[], None]
    ) -> None:
        self._client, self._config, self._outbox, self._wake = client, config, outbox, wake
        self._five = config.protocol == "5"
        self.refused = 0  # messages that the broker never takes
        self.held: dict[str, float] = {}  # topics that it does not take for now -> when to try again
        self.barren = 0  # connections in a row in which nothing was acknowledged, though something was sent
        self.stuck = 0  # messages that wait although we could send
        self.connected = False  # the broker has accepted us
        # Shared with other threads:
        self._guard = threading.Lock()  # of the retained messages
        self._retained: dict[str, _Retained] = {}
        self._answers: deque[tuple[str, bytes, bytes | None]] = deque()  # topic, payload, correlation
        self._stop_at: float | None = None  # when to stop (monotonic), whatever is left
        # The thread's own:
        self._window, self._most_bytes = config.in_flight, config.max_packet_bytes
        self._last, self._generation = FIRST, outbox.generation
        self._ready: deque[Entry] = deque()  # read from the outbox
        self._in_flight: dict[int, tuple[int | None, str]] = {}  # packet id -> number in the outbox, topic
        self._flying: set[int] = set()  # those numbers
        self._older: set[int] = set()  # packet ids of an older connection
        self._delivered: list[int] = []  # numbers of what was acknowledged; the outbox does not know yet
        self._patience: dict[str, float] = {}  # topic -> seconds for which it was last held
        self._abridge: set[int] = set()  # numbers of what was too large for the broker
        self._heard = False  # something was acknowledged on this connection
        self._trial: dict[int, int] = {}  # packet id -> bytes of a verdict behind which nothing is sent yet
        self._taken = _LARGE  # bytes of the largest verdict that the broker is known to take
        self._events = CloudEvents(config.message_expiry_seconds)
        outbox.listen(self._note_put)

    def stop(self, deadline: float) -> None:
        """Have `work` tell what is retained and wait for its acknowledgement, until `deadline` (monotonic)."""
        self._stop_at = deadline
        self._wake()

    def retain(self, topic: str, payload: bytes, content_type: str, qos: int = 1) -> None:
        """Have the newest message of a topic published, now and after each connecting."""
        with self._guard:
            kept = self._retained.get(topic)
            if kept is None:
                self._retained[topic] = _Retained(payload, content_type, qos)
            else:
                kept.payload, kept.told = payload, False
        self._wake()

    def tell_again(self, topics: list[str]) -> None:
        """Have what is retained on these topics published again."""
        with self._guard:
            for topic in topics:
                self._retained[topic].told = False
        self._wake()

    def retains(self, topic: str) -> bool:
        """Whether a topic is one of ours on which something is retained."""
        return topic in self._retained

    def answer(self, topic: str, payload: bytes, correlation: bytes | None) -> None:
        """Publish the answer to a command; when too many wait already, it is given up."""
        if len(self._answers) < _ANSWERS:
            self._answers.append((topic, payload, correlation))
            self._wake()

    # What follows is called on the network's thread alone.

    def connect(self, window: int, most_bytes: int | None) -> None:
        """Take note that the broker has accepted us, with so many messages on their way and bytes of a packet.

        Called before paho sends anew what was not acknowledged. After several connections on which nothing was, it
        is not to: one of these messages may be what the broker cuts us off for, and those behind it would overtake
        what takes its place.
        """
        self.barren = self.barren + 1 if self._in_flight and not self._heard else 0
        self._heard = False
        with self._guard:  # the broker may have lost all that it was told
            for kept in self._retained.values():
                kept.told = False
        if self.barren >= _BARREN:
            take_back_all(self._client)
            self._suspect(next(iter(self._in_flight)))
            self._forget_flight()
        self._older = set(self._in_flight)
        self._trial, self._taken = {}, _LARGE
        self._window = min(self._config.in_flight, window)
        limits = [limit for limit in (self._config.max_packet_bytes, most_bytes) if limit is not None]
        self._most_bytes = min(limits, default=None)
        self.connected = True

    def disconnect(self) -> None:
        """Take note that the connection is gone."""
        self.connected = False

    def acknowledge(self, packet: int, reason: ReasonCode) -> None:
        """Take note of the broker's answer to a message."""
        number, topic = self._in_flight.pop(packet, (None, None))
        if topic is None:  # of QoS 0: that it was written says nothing of the broker
            return
        self._heard = True
        self._older.discard(packet)
        if number is None:
            self._note_retained(packet, topic, reason)
            return
        size = self._trial.pop(packet, 0)
        self._flying.discard(number)
        if reason.value >= 0x80:
            self._refuse(number, topic, reason)
            return
        self._taken = max(self._taken, size)
        self._delivered.append(number)
        if self._patience:
            self._patience.pop(topic, None)

    def work(self) -> float | None:
        """Tell the outbox what was delivered, and send what there is room for.

        Returns:
            Seconds after which to call again if there is no news until then; None when we are to stop, and may.
        """
        if self._delivered:
            delivered, self._delivered = self._delivered, []
            self._abridge.difference_update(delivered)
            self._outbox.delivered(*delivered)
        stop_at = self._stop_at
        if self.connected:
            self._tell_retained()
            # paho sends anew what an older connection left unacknowledged; nothing may overtake that.
            if stop_at is None:
                self._tell_answers()
                if not self._older:
                    self._tell_verdicts()
        if stop_at is None:
            return _LOOK_SECONDS[bool(self.held)]
        left = stop_at - time.monotonic()
        return left if left > 0 and self._unfinished() else None

    def _note_put(self) -> None:
        """Wake the thread, unless the window is full: then an acknowledgement will."""
        if self.connected and len(self._in_flight) < self._window:
            self._wake()

    def _unfinished(self) -> bool:
        """Whether something that is not in the outbox is left to be told or acknowledged."""
        if not self.connected:
            return False
        with self._guard:
            return any(not kept.told or kept.packet is not None for kept in self._retained.values())

    def _forget_flight(self) -> None:
        """Begin anew with all that was in flight, in order."""
        for kept in self._retained.values():
            kept.packet = None
        self._in_flight.clear()
        self._flying.clear()
        self._rewind()

    def _suspect(self, packet: int) -> None:
        """Do not send a large message anew, as it is, to a broker that cuts the connection each time that it comes.

        Some say so neither before nor after. What a packet id is first of, they have not acknowledged.
        """
        number, topic = self._in_flight[packet]
        entries = self._outbox.after(number - 1, 1) if number is not None else []
        kept = self._retained.get(topic) if number is None else None
        payload = kept.payload if kept is not None else entries[0].payload if entries else b""
        if len(payload) < _LARGE or number in self._abridge:
            return
        log.error(
            "broker %s cuts the connection when it is sent %d bytes on %s; that message is %s; if the broker has a "
            "limit, set broker.max_packet_bytes",
            self._config.address,
            len(payload),
            topic,
            "abridged" if number is not None else "not sent again",
        )
        if number is not None:
            self._abridge.add(number)
        elif kept is not None:
            kept.told = True

    def _room(self) -> int:
        return self._window - len(self._in_flight)

    def _tell_retained(self) -> None:
        with self._guard:
            due = [item for item in self._retained.items() if not item[1].told and item[1].packet is None]
        for topic, kept in due[: max(self._room(), 0)]:
            with self._guard:
                kept.told = True
                payload, body = kept.payload, properties.content_type(kept.content_type)
            packet = self._publish(topic, payload, body, None, kept.qos, retain=True)
            kept.packet = packet if kept.qos else None

    def _tell_answers(self) -> None:
        while self._answers and self._room() > 0:
            topic, payload, correlation = self._answers.popleft()
            body = _JSON + (properties.correlation(correlation) if correlation is not None else b"")
            self._publish(topic, payload, body, None)

    def _tell_verdicts(self) -> None:
        if self.held:
            now = time.monotonic()
            over = [topic for topic, until in self.held.items() if until <= now]
            for topic in over:
                del self.held[topic]
                self._rewind()
        if self._generation != self._outbox.generation:
            self._rewind()
        # A broker that does not take a large verdict may go on with what is behind it: nothing is, the first time.
        while self._room() > 0 and not self._trial:
            entry = self._next()
            if entry is None:
                self.stuck = 0 if self._in_flight else len(self._outbox)
                break
            self.stuck = 0
            self._tell_verdict(entry)

    def _next(self) -> Entry | None:
        """The next message of the outbox that may be sent now."""
        while True:
            if not self._ready:
                self._ready.extend(self._outbox.after(self._last, _AHEAD))
                if not self._ready:
                    return None
            entry = self._ready.popleft()
            self._last = entry.number
            passed_over = entry.number in self._flying or entry.topic in self.held
            if not passed_over and entry.number in self._outbox:
                return entry

    def _rewind(self) -> None:
        """Begin anew with the oldest message."""
        self._ready.clear()
        self._last, self._generation = FIRST, self._outbox.generation

    def _tell_verdict(self, entry: Entry) -> None:
        age = time.time() - entry.stored
        payload = entry.payload if age < _LATE_SECONDS else marked_late(entry.payload)
        body = self._events.properties(payload, age) if self._five else b""
        if entry.number in self._abridge or self._exceeds(entry.topic, payload, body):
            payload = abridged(payload)
            if self._exceeds(entry.topic, payload, body):
                self._give_up(entry.number, entry.topic, _TOO_LARGE)
                return
        packet = self._publish(entry.topic, payload, body, entry.number)
        if packet is not None and len(payload) > self._taken:
            self._trial[packet] = len(payload)

    def _publish(
        self,
        topic: str,
        payload: bytes,
        body: bytes,
        number: int | None,
        qos: int = 1,
        *,
        retain: bool = False,
    ) -> int | None:
        """Give a message to paho, which sends it until it is acknowledged; its packet id."""
        if number is None and self._exceeds(topic, payload, body):
            log.error(
                "broker %s takes no message of %d bytes on %s", self._config.address, len(payload), topic
            )
            return None
        more: Any = PublishProperties(body) if self._five else None  # paho asks it to pack itself, no more
        packet = self._client.publish(topic, payload, qos=qos, retain=retain, properties=more).mid
        if qos:
            self._in_flight[packet] = number, topic
            if number is not None:
                self._flying.add(number)
        return packet

    def _exceeds(self, topic: str, payload: bytes, body: bytes) -> bool:
        """Whether a packet would be larger than the broker takes; its lengths and its id make up to 14 bytes."""
        if self._most_bytes is None:
            return False
        return 14 + len(topic.encode()) + len(body) + len(payload) > self._most_bytes

    def _note_retained(self, packet: int, topic: str, reason: ReasonCode) -> None:
        if reason.is_failure:
            address = self._config.address
            log.error("broker %s refuses what we publish on %s: %s", address, topic, advised(reason))
        kept = self._retained.get(topic)
        if kept is not None and kept.packet == packet:
            kept.packet = None

    def _refuse(self, number: int, topic: str, reason: ReasonCode) -> None:
        """Keep what the broker refuses for now, shorten what it finds too large, give up what it never takes."""
        if reason.value == _TOO_LARGE.value and number not in self._abridge:
            self._abridge.add(number)
            self._rewind()
        elif reason.value not in _PASSING:
            self._give_up(number, topic, reason)
        elif topic not in self.held:
            shortest, longest = _HOLD_SECONDS
            before = self._patience.get(topic)
            self._patience[topic] = seconds = min(before * 2, longest) if before else shortest
            self.held[topic] = time.monotonic() + seconds
            if before is None:
                log.error(
                    "broker %s refuses %s: %s; what is published there waits in the outbox",
                    self._config.address,
                    topic,
                    advised(reason),
                )

    def _give_up(self, number: int, topic: str, reason: ReasonCode) -> None:
        self.refused += 1
        self._abridge.discard(number)
        address = self._config.address
        log.error("broker %s will never take a message on %s: %s", address, topic, advised(reason))
        self._outbox.delivered(number)
