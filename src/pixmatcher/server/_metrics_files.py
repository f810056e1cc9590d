"""The files in which the workers of a service count together, in a folder that ends with the service.

prometheus-client maps them into memory. A file grows there without getting its room on the disk: on a full disk, the
system kills a process that counts. So all room is taken before.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BYTES = {"counter": 256 << 10, "histogram": 256 << 10, "gauge_livesum": 64 << 10}
"""The bytes of each file of a worker: twice what the metrics of all routes need."""
_LEAST_BYTES = 8
"""The length of a file without any count."""


def create_files(folder: Path) -> None:
    """Create the files of this process. Raises `OSError` if there is no room for them; then none of them stays."""
    files = {folder / f"{kind}_{os.getpid()}.db": size for kind, size in _BYTES.items()}
    try:
        for file, size in files.items():
            file.write_bytes(bytes(size))
    except OSError:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def close_files(folder: Path, pid: int) -> None:
    """Keep only the counts of a process that has ended."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    for path in folder.glob(f"*_{pid}.db"):
        with path.open("r+b") as file:
            used = int.from_bytes(file.read(4), sys.byteorder)
            file.truncate(max(used, _LEAST_BYTES))
