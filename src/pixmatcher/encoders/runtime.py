"""How encoders are run: by which backend, on which device, with or without the network."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ..errors import EncoderError

BACKENDS = ("auto", "onnx", "torch")

ModelProgress = Callable[[str, int, "int | None"], None]
"""Called with what is done, how many bytes of it are done, and how many there are if that is known."""


def _offline() -> bool:
    """Whether the environment forbids the network: our own variable, or the hub's."""
    told = (os.environ.get(name, "") for name in ("PIXMATCHER_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "on", "yes", "true") for value in told)


@dataclass(frozen=True)
class Runtime:
    """How encoders are run; what is not given is taken from the environment.

    Raises `EncoderError` for a backend that there is not.
    """

    backend: str = field(default_factory=lambda: os.environ.get("PIXMATCHER_BACKEND") or "auto")
    """`onnx` is ONNX Runtime on the CPU, `torch` is PyTorch, `auto` is ONNX Runtime where the encoder was exported."""
    device: str = field(default_factory=lambda: os.environ.get("PIXMATCHER_DEVICE") or "auto")
    """Of PyTorch: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes the first there is of cuda, mps and cpu."""
    offline: bool = field(default_factory=_offline)
    """Whether nothing may be downloaded."""
    progress: ModelProgress | None = field(default=None, compare=False)
    """Told of downloads."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise EncoderError(f"There is no backend {self.backend!r}: choose one of {', '.join(BACKENDS)}.")
