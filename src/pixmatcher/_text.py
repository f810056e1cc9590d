"""Text for people and for other programs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from ._urls import file_url, is_url


def printable(text: str) -> str:
    """Return the text for one line of output: control characters, and bytes that are not Unicode, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def as_unicode(text: str) -> str:
    r"""Return the text for a format of Unicode, such as JSON: bytes that are not Unicode become escapes such as \udcff.

    Programs that read JSON refuse or replace single surrogates, which is how Python keeps such bytes.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def values_as_unicode(value: object) -> object:
    """Return a value of JSON with all its texts as in `as_unicode`."""
    if isinstance(value, str):
        return as_unicode(value)
    if isinstance(value, Mapping):
        return {as_unicode(str(name)): values_as_unicode(part) for name, part in value.items()}
    return [*map(values_as_unicode, value)] if isinstance(value, (list, tuple)) else value


def name_as_unicode(name: str) -> str:
    """Return a path, URL or text as other programs keep it: a path that is not valid Unicode as the URL of its file.

    The URL can be given wherever a path can, so it still names the file. Anything else is as in `as_unicode`.
    """
    shown = as_unicode(name)
    if shown != name and not is_url(name) and (os.path.isabs(name) or os.path.lexists(name)):
        try:
            return file_url(name)
        except UnicodeEncodeError:  # a surrogate that stands for no byte, so this is the name of no file
            pass
    return shown


def joined(*sentences: str) -> str:
    """Return the sentences of a note that are not empty, one after the other."""
    return " ".join(filter(None, sentences))


def command_to_upgrade(folder: str | os.PathLike[str]) -> str:
    """Return the command that upgrades the collection in a folder, as a shell takes it."""
    return f"pixmatcher upgrade -c {shlex.quote(os.fspath(folder))}"
