"""ONNX encoders as hubs offer them."""

from __future__ import annotations

from pathlib import Path

from .card import Card
from .runtime import ModelProgress


def pull_onnx(
    repo: str, folder: Path, *, name: str, offline: bool = False, progress: ModelProgress | None = None
) -> Card:
    """Download the ONNX files of a repository into `folder`."""
    raise NotImplementedError


def read_layout(folder: Path) -> Card:
    """The card of a folder in the usual layout of the hub."""
    raise NotImplementedError
