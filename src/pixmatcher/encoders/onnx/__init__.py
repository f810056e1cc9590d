"""Encoders as ONNX files: the card that describes them, the hub's file layout, running them, int8 versions.

Running an encoder needs ONNX Runtime only; making an int8 version needs the library `onnx` too.
"""
