"""TensorRT engines: built on the device, kept in a cache, reported on while they are made."""
