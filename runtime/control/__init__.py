"""Commands that come over MQTT."""
