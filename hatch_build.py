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
SOURCES = (
    "encoders/lite/_network_avx512.c",
    "encoders/lite/_network_avxvnni.c",
    "encoders/lite/_network_avx2.c",
    "images/_resize_bilinear.c",
    "images/_jpeg_eighth.c",
    "vector_index/_inner_loops.c",
)
"""Each becomes a library of its own beside it."""


class Compile(BuildHookInterface[Any]):
    """Adds the libraries to the package. Where there is no C compiler the package is built without them, and works."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package, self.made = Path(self.root, "src", "pixmatcher"), Path(tempfile.mkdtemp())
        if version == "editable":
            # pip compiles the modules of other packages; these, each start would where it may not write.
            compileall.compile_dir(package, quiet=2)
        for source in SOURCES:
            library = Path(source).with_suffix(".so")
            made = self.made / library.name
            try:
                compiler = shlex.split(os.environ.get("CC") or "cc")
                command = [*compiler, *FLAGS, "-o", made, package / source, "-lm"]
                subprocess.run(command, check=True, capture_output=True, text=True)
                if version == "editable":
                    _replace(package / library, made)
                    continue
            except (OSError, ValueError, subprocess.CalledProcessError) as error:
                reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
                if version == "editable":
                    with contextlib.suppress(OSError):
                        (package / library).unlink(missing_ok=True)  # it is of another source
                self.app.display_warning(f"{source} is not compiled, so what it does takes more time: {reason}")
                continue
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data.update(pure_python=False, tag=f"py3-none-{platform}")
            build_data["force_include"][str(made)] = f"pixmatcher/{library.as_posix()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.made)


def _replace(library: Path, made: Path) -> None:
    """Replace the library in one step: a process may have it open."""
    beside = library.with_name(f".{library.name}.{os.getpid()}")
    beside.write_bytes(made.read_bytes())
    beside.replace(library)
