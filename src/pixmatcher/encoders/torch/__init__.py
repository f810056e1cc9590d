"""Encoders that PyTorch runs or exports: networks of torchvision, timm and open_clip with their weights.

Importing this package does not import PyTorch; `encoder` and `export` do. Needs the extra `torch`.
"""
