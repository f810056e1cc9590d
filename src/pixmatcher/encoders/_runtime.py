"""How encoders are run: the backend, the device, whether downloads are allowed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .._progress import ProgressCallback
from ..errors import EncoderError
from ._protocol import Encoder, check_encoder

BACKENDS = ("auto", "onnx", "torch")


def _offline() -> bool:
    """Return whether the environment forbids downloads: PixMatcher's own variable, or the hub's."""
    values = (os.environ.get(name, "") for name in ("PIXMATCHER_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "on", "yes", "true") for value in values)


@dataclass(frozen=True)
class Runtime:
    """How encoders are run; values that are not given are taken from the environment.

    Raises `EncoderError` for an unknown backend.
    """

    backend: str = field(default_factory=lambda: os.environ.get("PIXMATCHER_BACKEND") or "auto")
    """`onnx` is ONNX Runtime, `torch` is PyTorch, `auto` is ONNX Runtime if the encoder was exported."""
    device: str = field(default_factory=lambda: os.environ.get("PIXMATCHER_DEVICE") or "auto")
    """The device. PyTorch: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` is the first available one of cuda, mps and cpu. ONNX
    Runtime, which also runs `lite`: `cpu`, `cuda`, `tensorrt`, `coreml`, `openvino`, `directml`; `auto` is the one that
    was measured to be fastest when images were indexed, or else `cpu`."""
    offline: bool = field(default_factory=_offline)
    """Whether downloads are forbidden."""
    progress: ProgressCallback | None = field(default=None, compare=False)
    """Called with the progress of downloads and of exports."""
    encoders: tuple[Encoder, ...] = field(default=(), compare=False)
    """Encoder objects of the caller: each is used for collections that record an encoder of its name."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise EncoderError(f"Unknown backend {self.backend!r}: choose one of {', '.join(BACKENDS)}.")


def with_encoders(runtime: Runtime | None, encoders: Sequence[Encoder]) -> Runtime | None:
    """Return a runtime that also has these encoder objects; the same one if there are none.

    Raises `EncoderError` for an object that is not an encoder, and as `Runtime`.
    """
    for encoder in encoders:
        check_encoder(encoder)
    if not encoders:
        return runtime
    runtime = runtime or Runtime()
    return replace(runtime, encoders=(*encoders, *runtime.encoders))
