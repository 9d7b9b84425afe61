"""From verdicts to a broker: the outbox, MQTT, requests, Home Assistant."""
