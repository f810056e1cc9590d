"""Text for people."""

from __future__ import annotations

import os
import shlex


def printable(text: str) -> str:
    """Return the text for one line of output: control characters, and bytes that are not Unicode, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def command_to_upgrade(folder: str | os.PathLike[str]) -> str:
    """Return the command that upgrades the collection in a folder, as a shell takes it."""
    return f"pixmatcher upgrade -c {shlex.quote(os.fspath(folder))}"
