"""The page that describes the routes. It reads the schema, and loads nothing from the network."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()


@functools.cache
def _page() -> tuple[str, str]:
    """Return the page, and the policy that lets only its own script and style run."""
    page = Path(__file__).with_name("docs.html").read_text(encoding="utf-8")
    allowed = {
        tag: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return page, (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}'; "
        "connect-src 'self'; img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """Return a page that shows the routes and calls them."""
    page, policy = _page()
    return HTMLResponse(page, headers={"content-security-policy": policy, "cache-control": "no-cache"})
