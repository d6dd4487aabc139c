"""Whisper on a CPU: ONNX graphs made from the published weights, and the search over them."""
