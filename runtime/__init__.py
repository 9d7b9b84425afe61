"""What runs on the device, from source to broker. Never imports torch."""

import os
import sys

# ONNX Runtime and OpenVINO report to Microsoft and to Intel that they run, and keep an id for it in the user's home,
# unless they are told not to. A box that watches cameras tells nobody. OpenVINO takes its own empty stand-in for a
# module that cannot be imported: the one switch that leaves no file.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
