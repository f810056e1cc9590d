"""What is compiled when the package is built: the decoder of large JPEGs, and the modules of an editable install."""

from __future__ import annotations

import compileall
import contextlib
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden")
LIBRARY = "_jpeg_eighth.so"


class Compile(BuildHookInterface[Any]):
    """Adds the decoder to the package. Where there is no C compiler the package is built without it, and works."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package, self.made = Path(self.root, "src", "pixmatcher"), Path(tempfile.mkdtemp(), LIBRARY)
        if version == "editable":
            # pip compiles the modules of other packages; these, each start would where it may not write.
            compileall.compile_dir(package, quiet=2)
        try:
            compiler = shlex.split(os.environ.get("CC") or "cc")
            command = [*compiler, *FLAGS, "-o", self.made, package / "images" / "_jpeg_eighth.c"]
            subprocess.run(command, check=True, capture_output=True, text=True)
            if version == "editable":
                self._put_beside(package / "images" / LIBRARY)
                return
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            if version == "editable":
                with contextlib.suppress(OSError):
                    (package / "images" / LIBRARY).unlink(missing_ok=True)  # it is of another source
            self.app.display_warning(f"Large JPEGs will be decoded by Pillow, as nothing was compiled: {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{platform}")
        build_data["force_include"][str(self.made)] = f"pixmatcher/images/{LIBRARY}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.made.unlink(missing_ok=True)
        self.made.parent.rmdir()

    def _put_beside(self, library: Path) -> None:
        """Replace the library in one step: a process may have it open."""
        beside = library.with_name(f".{LIBRARY}.{os.getpid()}")
        beside.write_bytes(self.made.read_bytes())
        beside.replace(library)
