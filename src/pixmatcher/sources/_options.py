"""The options of a spec: `KIND:PATH?NAME=VALUE&NAME=VALUE`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, quote, urlencode

from ..errors import SourceError


def split_options(kind: str, rest: str, names: Sequence[str]) -> tuple[str, dict[str, str], str]:
    """Return the absolute path, the options and the full spec for the rest of a spec, `PATH?NAME=VALUE&NAME=VALUE`.

    The path may contain a ? if such a file exists. Raises `SourceError` for an unknown, repeated or empty option.
    """
    path, query = rest, ""
    if "?" in rest and not os.path.lexists(rest):
        marks = [position for position, character in enumerate(rest) if character == "?"]
        at = next((mark for mark in reversed(marks) if os.path.lexists(rest[:mark])), marks[0])
        path, query = rest[:at], rest[at + 1 :]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        pairs = [(query, "")]
    options = dict(pairs)
    wrong = [name for name, value in pairs if name not in names or not value]
    if wrong or len(options) < len(pairs):
        allowed = ", ".join(f"{name}=" for name in names)
        raise SourceError(
            f"The options ?{query} are not valid: write {allowed} after the ?, each once with a value, separated by &."
        )
    path = os.path.abspath(path)
    return path, options, f"{kind}:{path}" + _as_query({name: options[name] for name in names if name in options})


def _as_query(options: Mapping[str, str]) -> str:
    """Return the options as they follow the path in a spec."""
    return "?" + urlencode(options, quote_via=quote, safe="/:") if options else ""
