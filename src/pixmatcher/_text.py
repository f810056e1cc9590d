"""Text for people."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text for one line: control characters, and bytes that are no Unicode, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
