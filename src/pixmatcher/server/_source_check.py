"""Which sources clients may add: those inside the folders that the service allows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .._urls import is_file_url, is_url, path_of_file_url
from ..errors import QueryError
from ..sources.webdataset import list_shards
from ._problems import ProblemError

_LOCAL = ("folder", "tiny-imagenet", "webdataset")
_FETCHED = ("urls", "open-images")
_PATTERN = re.compile(r"[*?\[{]")


def full_spec(spec: str) -> str:
    """Return the spec of a source as collections record it: a folder by its path, without `folder:` or `file://`.

    Raises `ProblemError` if it is the URL of a file on another machine.
    """
    path = spec.removeprefix("folder:")
    try:
        path = path_of_file_url(path) if is_file_url(path) else path
    except QueryError as error:
        raise ProblemError(422, "source not valid", "The source is the URL of a file on another machine.") from error
    return os.path.normpath(path) if os.path.isabs(path) else path


def check_new_source(spec: str, folders: Sequence[Path], allow_urls: bool) -> None:
    """Raise `ProblemError` if clients may not add this source to a collection.

    All paths that it names must be inside one of `folders`, links resolved. Saved embeddings, and kinds of sources that
    other packages declare, are refused: the paths that they name cannot all be checked.
    """
    spec = full_spec(spec)
    kind, rest = "folder", spec
    if not os.path.isabs(spec):
        kind, colon, rest = spec.partition(":")
        if not colon or spec.startswith((".", "~")) or (kind in _LOCAL + _FETCHED and not _is_full(rest)):
            raise ProblemError(
                422,
                "source not valid",
                f"The path {rest if colon else spec!r} is relative: give the full path on the machine of the service.",
            )
    if kind not in _LOCAL + _FETCHED or (spec != rest and os.path.lexists(spec)):
        if is_url(spec):
            raise ProblemError(
                403, "source not allowed", "A URL is not a source: only folders and lists of the service's machine are."
            )
        raise ProblemError(
            403,
            "source not allowed",
            "Clients may add sources of the kinds " + ", ".join(_LOCAL + _FETCHED) + " with a full path: add others on "
            "the machine of the service.",
        )
    if kind in _FETCHED and not allow_urls:
        raise ProblemError(
            403, "source not allowed", "This service fetches no URLs: only sources whose images are files can be added."
        )
    allowed = [os.path.join(os.path.realpath(folder), "") for folder in folders]
    for path in _named_paths(kind, rest, allowed):
        if not _is_inside(path, allowed):
            raise _outside()


def _is_full(path: str) -> bool:
    return os.path.isabs(path) or is_file_url(path)


def _named_paths(kind: str, rest: str, allowed: Sequence[str]) -> Iterator[str]:
    """Yield the paths that the rest of a spec may mean. Raises `ProblemError` for one that cannot be checked."""
    rest = path_of_file_url(rest) if is_file_url(rest) else rest
    if not os.path.isabs(rest) or "\0" in rest or ".." in rest.replace("?", "/").split("/"):
        raise _outside()
    if kind == "folder":
        yield rest
        return
    # What follows a ? are options, unless there is a file of such a name.
    first, *others = (match.start() for match in re.finditer(r"\?|\Z", rest))
    yield rest[:first]
    yield from (rest[:end] for end in others if os.path.lexists(rest[:end]))
    if kind == "webdataset":
        start = _PATTERN.split(rest)[0]
        if not _is_inside(os.path.dirname(start) if start != rest else start, allowed):
            raise _outside()
        yield from list_shards(os.path.abspath(rest))


def _is_inside(path: str, allowed: Sequence[str]) -> bool:
    return os.path.join(os.path.realpath(path), "").startswith(tuple(allowed))


def _outside() -> ProblemError:
    return ProblemError(
        403,
        "source not allowed",
        "Clients may only add sources inside the folders that this service allows, by a full path without '..'.",
    )
