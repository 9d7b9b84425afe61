"""What runs on the device, from source to broker. Never imports torch."""
