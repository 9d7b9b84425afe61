"""Two machines' worth of subscribers on one broker: each with its own subscription, and a pair that shares one.

All have persistent sessions; some are away for a while, the pair's members take turns. Each counts for itself.
"""

import json
import threading
from collections.abc import Callable, Iterator

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tvau_edge.runtime.broker_config import BrokerConfig
from tvau_edge.runtime.delivery.outbox import Outbox
from tvau_edge.runtime.delivery.publisher import Publisher

BOXES, CAMERAS, EACH = ("north", "south"), ("door", "yard"), 60
ALL = [(box, camera, number) for box in BOXES for camera in CAMERAS for number in range(EACH)]


class Reader:
    """A subscriber with a persistent session that can go away and come back."""

    def __init__(self, port: int, name: str, topic: str) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.ids: set[str] = set()
        self._topic, self._port, self._subscribed = topic, port, threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(self._topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._note
        self.come()

    def _note(self, client: mqtt.Client, data: object, message: mqtt.MQTTMessage) -> None:
        table = json.loads(message.payload)
        if table["id"] not in self.ids:  # at least once: a copy has the same id
            self.ids.add(table["id"])
            self.seen.append((table["device"], table["camera"], table["sequence"]))

    def come(self) -> None:
        """Connect to the session, and wait until the broker has the subscription."""
        keep = Properties(PacketTypes.CONNECT)
        keep.SessionExpiryInterval = 3600
        self._subscribed.clear()
        self._client.connect("127.0.0.1", self._port, clean_start=False, properties=keep)
        self._client.loop_start()
        assert self._subscribed.wait(60)

    def go(self) -> None:
        """Disconnect; the session stays."""
        self._client.disconnect()
        self._client.loop_stop()


def in_order(seen: list[tuple[str, str, int]]) -> bool:
    """Whether each camera's numbers rise."""
    streams = [[n for b, c, n in seen if (b, c) == (box, camera)] for box in BOXES for camera in CAMERAS]
    return all(stream == sorted(stream) for stream in streams)


@pytest.fixture
def port(make_mosquitto: Callable) -> int:
    """Of a mosquitto that keeps all that an absent session is owed."""
    return make_mosquitto("allow_anonymous true", "max_queued_messages 0").port


@pytest.fixture
def readers(port: int) -> Iterator[dict[str, Reader]]:
    """Own subscriptions to all and to one box, and two members of one shared subscription."""
    topics = {
        "all": "tvau/+/+/verdict",
        "absent": "tvau/+/+/verdict",
        "north": "tvau/north/+/verdict",
        "pair-1": "$share/pair/tvau/+/+/verdict",
        "pair-2": "$share/pair/tvau/+/+/verdict",
    }
    readers = {name: Reader(port, name, topic) for name, topic in topics.items()}
    yield readers
    for reader in readers.values():
        reader.go()


def test_each_subscriber_has_all_that_it_is_owed_in_order(port, readers, make_verdict, tmp_path, eventually):
    outboxes = [Outbox(tmp_path / f"{box}.db") for box in BOXES]
    publishers = [
        Publisher(BrokerConfig(host="127.0.0.1", port=port), box, outbox)
        for box, outbox in zip(BOXES, outboxes, strict=True)
    ]

    def publish(box: str, publisher: Publisher) -> None:
        for number in range(EACH):
            for camera in CAMERAS:
                verdict = make_verdict(number).model_copy(update={"device": box, "camera": camera})
                publisher.publish_verdict(verdict)

    for publisher in publishers:
        publisher.start()
    readers["absent"].go()
    threads = [threading.Thread(target=publish, args=pair) for pair in zip(BOXES, publishers, strict=True)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(readers["all"].seen) > len(ALL) // 4, "a quarter of the verdicts")
    readers["pair-1"].go()  # what it was owed waits for it, or goes to the other
    for thread in threads:
        thread.join()
    eventually(lambda: not any(len(outbox) for outbox in outboxes), "empty outboxes")
    for name in ("absent", "pair-1"):
        readers[name].come()

    def shared() -> list[tuple[str, str, int]]:
        return readers["pair-1"].seen + readers["pair-2"].seen

    eventually(lambda: len(set(shared())) == len(ALL), "all verdicts at the pair")
    for name, owed in (("all", ALL), ("absent", ALL), ("north", [one for one in ALL if one[0] == "north"])):
        eventually(lambda seen=readers[name].seen, owed=owed: len(seen) == len(owed), f"all at {name}")
        assert sorted(readers[name].seen) == sorted(owed)
        assert in_order(readers[name].seen)
    assert sorted(set(shared())) == sorted(ALL)
    assert readers["pair-1"].seen
    assert readers["pair-2"].seen
    for publisher, outbox in zip(publishers, outboxes, strict=True):
        publisher.stop()
        outbox.close()
