"""The folder in which several workers keep their counts. Imports nothing that counts, as it must be set up before."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that prometheus-client reads when it is imported."""


def share_metrics(folder: Path) -> None:
    """Make the processes that this one starts keep their counts in a folder, which is emptied of former counts.

    Call it before prometheus-client is imported. Raises OSError if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in folder.glob("*.db"):
        file.unlink()
    os.environ[FOLDER_VARIABLE] = str(folder)


def forget_worker(pid: int) -> None:
    """Remove what a worker that ended was doing, such as its requests under way; what it counted stays."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is not None:
        for file in Path(folder).glob(f"gauge_live*_{pid}.db"):
            file.unlink(missing_ok=True)
