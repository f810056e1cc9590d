"""The page that describes the routes, in a browser without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from service_process import PATIENCE, serving

from pixmatcher.server import ServerSettings, create_app
from pixmatcher.server.tokens import add_token

pytest.importorskip("playwright", reason="the browser is driven by Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("Chromium is missing: install Debian's package chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # Root, as in containers, cannot use the sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


def test_the_page_shows_the_routes_and_calls_them(page: Page, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "browser", "read")
    settings = ServerSettings({}, token_file=tmp_path / "tokens")
    app = create_app(settings)

    @app.get("/v1/hostile/{name}", tags=["hostile"], summary="<img src=x onerror=alert(1)>")
    def hostile(name: str, count: int = 1) -> dict[str, object]:
        """Answer with <script>alert(2)</script>."""
        return {"name": name, "count": count}

    with serving(app, settings.limits) as port:
        url = f"http://127.0.0.1:{port}"
        problems: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{url}/docs")
        for path in app.openapi()["paths"]:
            expect(page.locator("summary .path", has_text=path).first).to_be_visible(timeout=PATIENCE * 1000)
        assert not problems
        route = page.locator("details", has=page.get_by_text("/v1/hostile/{name}", exact=True))
        route.locator("summary").click()
        expect(route).to_contain_text("<script>alert(2)</script>")
        page.get_by_label("name *").fill("../../a b")
        route.get_by_role("button", name="Send").click()
        expect(route).to_contain_text("token missing", timeout=PATIENCE * 1000)
        page.get_by_label("Token").fill(token)
        route.get_by_role("button", name="Send").click()
        expect(route).to_contain_text('"reason": "not found"', timeout=PATIENCE * 1000)  # the name is one segment
        page.get_by_label("name *").fill("a b")
        page.get_by_label("count").fill("3")
        route.get_by_role("button", name="Send").click()
        expect(route).to_contain_text('"name": "a b"', timeout=PATIENCE * 1000)
        expect(route).to_contain_text('"count": 3')
        assert all(each.startswith(url) for each in asked), asked
        assert not [each for each in problems if "status of 40" not in each], problems
