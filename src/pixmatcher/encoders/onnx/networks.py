"""Helpers of the encoders on ONNX Runtime: sessions, loading at the first use, vectors of length 1."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError
from .providers import CPU, provider_of, provider_options

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger("pixmatcher.encoders")


class DeviceError(EncoderError):
    """A device that ONNX Runtime has could not start, because a driver is missing for example."""


Floats = npt.NDArray[np.float32]
T = TypeVar("T")


def unit(vectors: Floats) -> Floats:
    """Return `vectors` (..., d) scaled to length 1; a vector of zeros stays as it is."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Floats = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return result


class Lazy(Generic[T]):
    """A value that is made once, when any thread first needs it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[T] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def get(self) -> T:
        """Return the value, and make it first if no thread has done so."""
        if not self._made:
            with self._lock:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


@contextmanager
def loading(path: Path, encoder: str, remedy: str) -> Iterator[None]:
    """Raise each error of the block as an `EncoderError` of one sentence; each library has errors of its own.

    A `DeviceError` is raised as it is: it says nothing against the file.
    """
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:
        raise EncoderError(f"The encoder {encoder} cannot load {path}: {remedy}. ({error})") from error


@contextmanager
def quiet_runtime() -> Iterator[None]:
    """Let ONNX Runtime print nothing during the block; it prints errors of its libraries besides raising them."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # the usual one


def open_network(path: Path, *, optimise: bool = True, repack: bool = True, device: str = "cpu") -> InferenceSession:
    """Open a network that computes on the thread of its caller, since callers have threads of their own.

    `optimise` simplifies the graph, which takes longer than loading and is worth it for many batches. So does `repack`,
    which reads all weights and copies them to an order that suits the processor.

    Raises `EncoderError` if the installed ONNX Runtime does not have the provider of `device`, `DeviceError` if it
    fails to start.
    """
    # ONNX Runtime 1.29 and later sends telemetry, and keeps a file for it, unless this is set before the import.
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
    started = time.perf_counter()
    provider = provider_of(device)
    providers = {provider: provider_options(provider), CPU: {}}
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=list(providers.items()))
    except Exception as error:  # the library has no error class of its own
        if provider == CPU:
            raise
        raise DeviceError(str(error)) from error
    if provider not in session.get_providers():
        raise DeviceError("the driver or a library is missing")
    logger.debug(
        "Loaded %s in %.3f s: ONNX Runtime %s, %s, 1 thread per call",
        path,
        time.perf_counter() - started,
        onnxruntime.__version__,
        ", ".join(session.get_providers()),
    )
    return session
