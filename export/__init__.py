"""A checkpoint becomes a bundle: ONNX, OpenVINO IR and GGUF, each compared with torch before it is kept."""
