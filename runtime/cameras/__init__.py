"""From a file, a camera or a pipeline to temporal patches: decoding, masks, schedules, sampling, fair queues."""
