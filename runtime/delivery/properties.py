"""Properties of an MQTT 5 PUBLISH, in the form that paho sends (MQTT 5.0, sections 2.2.2 and 3.3.2.3).

paho's own `Properties` says the same, and takes longer to do so than all the rest of a message's way; the tests hold
these bytes to its.
"""

from paho.mqtt.packettypes import PacketTypes


def content_type(value: str) -> bytes:
    """MIME type of the payload."""
    return b"\x03" + _sized(value.encode())


def expiry(seconds: int) -> bytes:
    """Seconds after which the broker forgets the message, 0..2^32-1."""
    return b"\x02" + seconds.to_bytes(4, "big")


def correlation(data: bytes) -> bytes:
    """What the sender of a command told its answer apart by."""
    return b"\x09" + _sized(data)


def user(name: bytes, value: bytes) -> bytes:
    """A name and a value, in UTF-8; these carry the CloudEvents attributes."""
    return b"\x26" + _sized(name) + _sized(value)


class PublishProperties:
    """What goes with a message besides topic and payload; as paho takes it.

    Args:
        body: properties, one after the other.
    """

    __slots__ = ("body",)
    packetType = PacketTypes.PUBLISH

    def __init__(self, body: bytes) -> None:
        self.body = body

    def pack(self) -> bytes:
        """As they go over the network, their length before them."""
        length, out = len(self.body), bytearray()
        while length > 127:  # seven bits a byte, the lowest first
            out.append(length & 0x7F | 0x80)
            length >>= 7
        out.append(length)
        return bytes(out) + self.body


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
