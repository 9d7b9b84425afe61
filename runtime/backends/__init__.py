"""Inference back ends: siblings behind `runtime.vision.Graph`; nothing else knows which is in use."""
