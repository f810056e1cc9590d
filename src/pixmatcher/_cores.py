"""The number of processor cores to use."""

from __future__ import annotations

import os

_processes = 1


def share_cores(processes: int) -> None:
    """Say that this many processes, of which this is one, share the cores and have equal parts of the work."""
    global _processes
    _processes = processes


def usable_cores() -> int:
    """Return the number of cores for this process, at least 1.

    They are those that it may run on, which can be fewer than the machine has, divided as `share_cores` says.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _processes)
