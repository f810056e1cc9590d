"""Encoders that PyTorch runs, and their export to ONNX."""
