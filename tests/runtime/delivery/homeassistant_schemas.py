"""Hold discovery's components to Home Assistant's own schemas; run by the Python that has it installed.

Reads the message from standard input and prints a line per component. The package of 2024.3 knows no device
discovery yet; what the device's message shares among its components is given to each, as later versions do.
"""

import importlib
import json
import sys

message = json.load(sys.stdin)
shared = {key: message[key] for key in ("device", "origin", "availability", "qos")}
for key, component in message["components"].items():
    component = dict(component)
    platform = component.pop("platform")
    module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
    known = module.DISCOVERY_SCHEMA(shared | component)
    unknown = sorted(component.keys() - known.keys())  # which the schema drops without a word
    if unknown:
        sys.exit(f"{key}: {platform} knows no {', '.join(unknown)}")
    print(key, platform)
