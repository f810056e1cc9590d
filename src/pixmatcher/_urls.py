"""What a text has to look like to be a URL, and how a URL may be shown."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Return whether the text begins as a URL of any scheme (RFC 3986, 3.1), followed by `//`."""
    return _SCHEME.match(text) is not None


def without_password(url: str) -> str:
    """Return the URL as it may be shown, logged and stored: without user name and password."""
    before, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}"
