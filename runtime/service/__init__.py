"""What runs it all: the pipeline, its watchdog, health, metrics, logs."""
