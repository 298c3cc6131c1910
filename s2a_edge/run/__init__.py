"""The board's half: trains, evaluates and exports a bundle on ONNX Runtime."""
