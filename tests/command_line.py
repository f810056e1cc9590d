"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def cli(*arguments: str | os.PathLike[str], timeout: float = 60, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "pixmatcher", *map(os.fspath, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        **options,
    )
