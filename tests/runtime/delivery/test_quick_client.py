"""What is read by the short way is what paho reads by its long one."""

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from tvau_edge.runtime.delivery.quick_client import REASONS, QuickClient


def heard(
    kind: type[mqtt.Client], protocol: int, body: bytes
) -> tuple[object, list[tuple[int, str, int]], set[int]]:
    """What a client with packets 7 and 513 on their way makes of a PUBACK: result, callbacks, what is left."""
    client = kind(CallbackAPIVersion.VERSION2, protocol=protocol)
    told: list[tuple[int, str, int]] = []
    client.on_publish = lambda client, data, packet, reason, properties: told.append(
        (packet, str(reason), reason.value)
    )
    for packet in (7, 513):
        client._out_messages[packet] = mqtt.MQTTMessage(packet)
    client._in_packet |= {"command": 0x40, "remaining_length": len(body), "packet": bytearray(body)}
    try:
        verdict: object = client._packet_handle()
    except mqtt.MalformedPacket as error:
        verdict = str(error)
    return verdict, told, set(client._out_messages)


@pytest.mark.parametrize("protocol", [mqtt.MQTTv311, mqtt.MQTTv5])
@pytest.mark.parametrize(
    "body",
    [b"\0\x07", b"\x02\x01", b"\0\x08", b"\0", b"", b"\0\x07\x87\0", b"\0\x07\x10\x05\x1f\0\x02no"]
    + [b"\0\x07" + bytes([code]) for code in (*REASONS, 0x95, 0x01, 0xFF)],
)
def test_acknowledgements_are_read_as_paho_does(protocol, body):
    ours, theirs = heard(QuickClient, protocol, body), heard(mqtt.Client, protocol, body)
    assert ours == theirs
