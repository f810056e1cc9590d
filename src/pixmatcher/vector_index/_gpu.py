"""FAISS on a GPU, where the installed FAISS has support for GPUs and there is one; the package faiss-cpu has none.

Only the training of an index uses it: k-means, and the exact comparison that an index is measured by. Nothing that is
stored or found depends on it, except that centres of lists may differ in their last digits.
"""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import faiss

logger = logging.getLogger("pixmatcher.vector_index")

T = TypeVar("T")

_PROBE = """
import faiss, numpy
rows = numpy.eye(8, dtype=numpy.float32)
index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatL2(8))
index.add(rows)
assert (index.search(rows, 1)[1][:, 0] == numpy.arange(8)).all()
"""
_PROBE_SECONDS = 120
_one_at_a_time = threading.Lock()


def on_gpu_or_cpu(work: Callable[[Any], T]) -> T:
    """Return `work(resources)`, with FAISS's resources of the first GPU; `work(None)` if there is none, or it fails."""
    if (resources := _resources()) is not None:
        try:
            with _one_at_a_time:  # which the resources require
                return work(resources)
        except RuntimeError as error:  # such as a GPU without enough free memory
            logger.warning("The GPU failed, so FAISS goes on with the CPU (%s)", error)
    return work(None)


def flat_index(dimension: int, resources: Any) -> Any:
    """Return an empty index that compares all its rows by distance: on the GPU, or on the CPU without resources."""
    index = faiss.IndexFlatL2(dimension)
    return index if resources is None else faiss.index_cpu_to_gpu(resources, 0, index)


@functools.cache
def _resources() -> Any:
    """Return FAISS's resources of the first GPU; None if FAISS cannot use one."""
    if not hasattr(faiss, "StandardGpuResources"):
        return None
    # In another process: if the driver is too old, FAISS ends the process that asks for the number of GPUs.
    command = [sys.executable, "-c", _PROBE]
    try:
        probe = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_PROBE_SECONDS)
        problem = "" if not probe.returncode else (probe.stderr.strip().splitlines() or [str(probe.returncode)])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        logger.info("FAISS uses the CPU, as it cannot use a GPU (%s)", problem)
        return None
    logger.info("FAISS trains indexes on the GPU")
    return faiss.StandardGpuResources()
