"""The user's cache of models."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import platformdirs


def cache_folder() -> Path:
    """Where models are kept: `PIXMATCHER_CACHE`, or the user's cache folder."""
    given = os.environ.get("PIXMATCHER_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("pixmatcher")


def model_folder(name: str) -> Path:
    """Where the ONNX files of the encoder called `name` lie, or would lie."""
    return cache_folder() / "models" / quote(name, safe="@")
