"""paho's client, made quicker where it spends most: in reading acknowledgements.

paho 2.2 builds a `Properties` for each, also for those that have none, which takes longer than publishing does. What is
overridden is not public: a paho that no longer calls it reads all acknowledgements its own way.
"""

from typing import Literal

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

REASONS = {  # by what MQTT 5.0 has for a PUBACK (section 3.4.2.1); of any other, paho shall judge
    code: ReasonCode(PacketTypes.PUBACK, identifier=code)
    for code in (0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99)
}


class QuickClient(mqtt.Client):
    """As paho's; `on_publish` is given None for the properties of an acknowledgement without any."""

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if len(body) == 3 and self.protocol == mqtt.MQTTv5:
            reason = REASONS.get(body[2])
        else:
            reason = REASONS[0] if len(body) == 2 else None
        if cmd != "PUBACK" or reason is None:
            return super()._handle_pubackcomp(cmd)
        packet = body[0] << 8 | body[1]
        with self._out_message_mutex:
            if packet in self._out_messages:
                return self._do_on_publish(packet, reason, None)  # type: ignore[arg-type]
        return MQTTErrorCode.MQTT_ERR_SUCCESS
