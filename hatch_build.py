"""What is compiled when the package is built: the decoder of large JPEGs, and the modules of an editable install."""

from __future__ import annotations

import compileall
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=hidden")


class Compile(BuildHookInterface[Any]):
    """Puts `jpeg_eighth.so` beside its source. Without a C compiler the package is built without it, and works."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        package = Path(self.root, "src", "pixmatcher")
        if version == "editable":  # pip compiles the modules of others; here each start would, where it may not write
            compileall.compile_dir(package, quiet=1)
        source = package / "jpeg_eighth.c"
        library, made = source.with_suffix(".so"), source.with_suffix(f".{os.getpid()}.so")
        library.unlink(missing_ok=True)
        compiler = shlex.split(os.environ.get("CC") or "cc")
        try:
            subprocess.run([*compiler, *FLAGS, "-o", made, source], check=True, capture_output=True)
            made.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            self.app.display_warning(f"Large JPEGs will be decoded by Pillow alone, as nothing was compiled: {error}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{platform}")
        build_data["artifacts"].append("src/pixmatcher/*.so")
