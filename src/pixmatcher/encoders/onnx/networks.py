"""What the encoders on ONNX Runtime have in common: sessions, loading on first use, vectors of length 1."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Floats = npt.NDArray[np.float32]
T = TypeVar("T")


def unit(vectors: Floats) -> Floats:
    """Return `vectors` (..., d) at length 1; what has no length stays as it is."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Floats = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return result


class Lazy(Generic[T]):
    """A value that is made when it is first asked for, once, whatever thread asks."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def get(self) -> T:
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


@contextmanager
def loading(path: Path, encoder: str, remedy: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file of an encoder into one sentence; each library raises its own."""
    try:
        yield
    except Exception as error:
        raise EncoderError(f"The encoder {encoder} cannot load {path}: {remedy}. ({error})") from error


def open_network(path: Path, *, optimise: bool = True, repack: bool = True) -> InferenceSession:
    """Open a network for callers that bring their own threads: a call computes on the thread it is made on.

    To `optimise` the graph takes longer than to load it, and pays where the same network sees many batches. So it is
    with weights: to `repack` them for the processor means to read and copy all.
    """
    # ONNX Runtime 1.29 and later reports to its makers, and keeps a file for it, unless this is set before the import.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not repack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors, which are raised as well
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
