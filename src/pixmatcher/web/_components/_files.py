"""Load a component from its files."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st


@cache
def component(name: str, *, isolate_styles: bool = True) -> Any:
    """Return the component of this name. A call of it mounts it on the page and returns its state."""
    files = {suffix: Path(__file__).with_name(f"{name}.{suffix}") for suffix in ("html", "css", "js")}
    contents = {suffix: file.read_text("utf-8") for suffix, file in files.items() if file.exists()}
    return st.components.v2.component(f"pixmatcher_{name}", **contents, isolate_styles=isolate_styles)
