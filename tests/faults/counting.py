"""A subscriber with a persistent session that counts, and the ledger of what was promised."""

import json
import threading
import time
from collections.abc import Callable

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Counter:
    """Notes each verdict's number and id, per camera, in the order in which they come.

    Args:
        port: of the broker, or of a proxy before it.
    """

    def __init__(self, port: int) -> None:
        self.seen: dict[int, list[tuple[int, str]]] = {}
        self.subscriptions = 0
        self.since = 0.0  # monotonic time of the last subscription
        self._lock = threading.Lock()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="counter", protocol=mqtt.MQTTv5)
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda client, *_: client.subscribe("tvau/box/+/verdict", qos=1)
        client.on_subscribe = self._subscribed
        client.on_message = self._note
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        client.connect("127.0.0.1", port, keepalive=60, clean_start=False, properties=keep)
        client.loop_start()
        self._client = client

    @property
    def connected(self) -> bool:
        """Whether it has subscribed on this connection."""
        return self._client.is_connected() and self.since > 0

    def _subscribed(self, *_: object) -> None:
        self.subscriptions += 1
        self.since = time.monotonic()

    def _note(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        table = json.loads(message.payload)
        camera = int(table["camera"].removeprefix("camera"))
        with self._lock:
            self.seen.setdefault(camera, []).append((table["sequence"], table["id"]))

    def count(self) -> int:
        """Messages so far."""
        with self._lock:
            return sum(len(seen) for seen in self.seen.values())

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Ledger:
    """What `put` returned for: camera -> number -> id; and what of it never was on disk when its process died."""

    def __init__(self) -> None:
        self.promised: dict[int, dict[int, str]] = {0: {}, 1: {}, 2: {}}
        self.excused: set[tuple[int, int]] = set()
        self.in_memory: set[tuple[int, int]] = set()

    def note(self, line: str) -> None:
        """Take a line of a producer."""
        camera, number, identity, durable = line.split()
        self.promised[int(camera)][int(number)] = identity
        if durable == "1":
            self.in_memory.clear()  # its order is kept: what was in memory went to the disk before
        else:
            self.in_memory.add((int(camera), int(number)))

    def died(self) -> None:
        """The producer was killed: what was in memory alone was promised to nobody."""
        self.excused |= self.in_memory
        self.in_memory = set()

    def firsts(self) -> list[int]:
        """Numbers to go on with; the one after the last may be on disk, unsaid."""
        return [max(numbers, default=-2) + 2 for numbers in self.promised.values()]

    def missing(self, counter: Counter) -> int:
        """Promised, and not come."""
        return sum(
            1
            for camera, numbers in self.promised.items()
            for number in numbers.keys() - {seen for seen, _ in list(counter.seen.get(camera, []))}
            if (camera, number) not in self.excused
        )

    def judge(self, counter: Counter) -> dict[str, int]:
        """Counts of what was promised, came, is missing, came out of order, twice, or twice with another id."""
        result = dict.fromkeys(
            ("promised", "came", "missing", "out_of_order", "copies", "copies_with_another_id"), 0
        )
        result["missing"] = self.missing(counter)
        for camera, numbers in self.promised.items():
            seen = counter.seen.get(camera, [])
            ids: dict[int, str] = {}
            newest = -1
            for number, identity in seen:
                if number in ids:
                    result["copies"] += 1
                    result["copies_with_another_id"] += ids[number] != identity
                    continue
                ids[number] = identity
                result["out_of_order"] += number < newest
                newest = max(newest, number)
            result["promised"] += len(numbers)
            result["came"] += len(seen)
        return result


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it does not in that time.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come about in {seconds:g} s")
        time.sleep(0.01)
