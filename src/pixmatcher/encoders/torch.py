"""Encoders in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .runtime import Runtime

if TYPE_CHECKING:
    from . import Encoder


def open_torch_encoder(name: str, runtime: Runtime) -> Encoder:
    """Load an encoder of torchvision, timm or open_clip."""
    raise NotImplementedError
