"""What is compiled when the package is built: the code in C, and the modules of an editable install."""

from __future__ import annotations

import compileall
import contextlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden")
SOURCES = {"images/_jpeg_eighth.c": "decoded slower", "encoders/lite/_network_avx2.c": "encoded slower"}
"""What is compiled, and what happens without it."""


class Compile(BuildHookInterface[Any]):
    """Adds the libraries to the package. Where there is no C compiler the package is built without them, and works."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package, self.folder = Path(self.root, "src", "pixmatcher"), Path(tempfile.mkdtemp())
        if version == "editable":
            # pip compiles the modules of other packages; these, each start would where it may not write.
            compileall.compile_dir(package, quiet=2)
        made = [library for library in map(self._compile, SOURCES) if library is not None]
        for source in SOURCES:
            library = Path(source).with_suffix(".so")
            if version == "editable" and library in made:
                self._put_beside(package / library)
            elif version == "editable":
                with contextlib.suppress(OSError):
                    (package / library).unlink(missing_ok=True)  # it is of another source
            elif library in made:
                build_data["force_include"][str(self.folder / library.name)] = f"pixmatcher/{library.as_posix()}"
        if made and version != "editable":
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")

    def _compile(self, source: str) -> Path | None:
        """Compile a file of the package; return the path of its library in the package, or None and say why."""
        library = Path(source).with_suffix(".so")
        try:
            compiler = shlex.split(os.environ.get("CC") or "cc")
            path = Path(self.root, "src", "pixmatcher", source)
            command = [*compiler, *FLAGS, "-o", self.folder / library.name, path, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
            self.app.display_warning(f"Some images will be {SOURCES[source]}, as {source} was not compiled: {reason}")
            return None
        return library

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.folder)

    def _put_beside(self, library: Path) -> None:
        """Replace the library in one step: a process may have it open."""
        beside = library.with_name(f".{library.name}.{os.getpid()}")
        beside.write_bytes((self.folder / library.name).read_bytes())
        beside.replace(library)
