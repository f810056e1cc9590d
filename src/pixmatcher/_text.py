"""Text for people."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text for one line of output: control characters, and bytes that are not Unicode, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
