"""What runs on the device: source, sampler, vision, trigger, dialogue, verdict, broker. Never imports torch."""
