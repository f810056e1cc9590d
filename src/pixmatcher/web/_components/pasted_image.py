"""Receives an image that the visitor pastes anywhere on the page."""

from __future__ import annotations

import base64
import binascii

from ._files import component


def read_pasted_image(max_bytes: int) -> bytes | None:
    """Return the file that the visitor has just pasted, else None. It is empty if it has more than `max_bytes`."""
    value = component("pasted_image")(key="paste", data={"maxBytes": max_bytes}, on_image_change=lambda: None).image
    if not isinstance(value, dict):
        return None
    try:
        return base64.b64decode(value["data"], validate=True) if "data" in value else b""
    except (binascii.Error, TypeError, ValueError):
        return None
