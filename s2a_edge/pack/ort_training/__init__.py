"""The artifacts of onnxruntime's On-Device Training API, made of our training step."""
