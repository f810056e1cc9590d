"""A running app over small collections."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from app_process import CHROMIUM, PATIENCE, REBOUND, running_app
from small_collections import HOSTILE_NAMES, PHOTOS, copy_photos, label_photos

from pixmatcher import index

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

if find_spec("streamlit") is None:
    collect_ignore_glob = ["test_*.py"]

    def pytest_report_header() -> str:
        return "tests/web is not run: the web app needs Streamlit, which needs Python 3.11"


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the collections that the app shows, by name."""
    root = tmp_path_factory.mktemp("collections")
    photos = copy_photos(root / "photos")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    odd = root / "odd"
    odd.mkdir()
    for name, photo in zip(HOSTILE_NAMES, sorted(PHOTOS.glob("*.jpg")), strict=False):
        shutil.copy(photo, odd / name)
    passing = copy_photos(root / "passing", "cat.jpg", "coffee.jpg")
    growing = copy_photos(root / "growing", "cat.jpg")
    for folder in (photos, odd, passing, growing):
        index(folder)
    label_photos(root / "labelled")
    return {name: root / name for name in ("photos", "labelled", "odd", "passing", "growing")}


@pytest.fixture(scope="session")
def app_url(collections: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app, started as a user starts it."""
    arguments = [argument for folder in collections.values() for argument in ("-c", str(folder))]
    with running_app(arguments, tmp_path_factory.mktemp("home")) as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in containers, cannot use the sandbox. The camera shows a test image of Chromium.
        arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
        arguments += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> Iterator[dict[str, list[BrowserContext]]]:
    """Browser contexts by their options. The tests use them again, so that each reads the scripts of Streamlit once."""
    kept: dict[str, list[BrowserContext]] = {}
    yield kept
    for same_options in kept.values():
        for context in same_options:
            context.close()


@pytest.fixture
def visit(browser: Browser, contexts: dict[str, list[BrowserContext]], app_url: str) -> Iterator[Callable[..., Page]]:
    """Open a page of the app as a new visitor. No untrusted script may run, and no other server may be asked."""
    from browser_steps import COUNT_RUNS, choose, settle

    pages = []

    def open_page(path: str = "", *, collection: str = "photos", locale: str = "en-US", **options: Any) -> Page:
        options = {"viewport": {"width": 1280, "height": 900}, "locale": locale} | options
        same_options = contexts.setdefault(repr(sorted(options.items())), [])
        # With two pages in a context, one of them would be in the background, where a browser draws less.
        context = next((each for each in same_options if not each.pages), None)
        if context is None:
            context = browser.new_context(**options)
            same_options.append(context)
        page = context.new_page()
        pages.append(page)
        page.add_init_script(COUNT_RUNS)
        page.set_default_timeout(PATIENCE)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.on("request", lambda request: _check_request(request.url, app_url))
        page.goto(f"{app_url}/{path}")
        settle(page)
        if collection != "photos":
            choose(page, "Collection", collection)
        return page

    yield open_page
    for page in pages:
        page.close()


def _check_request(url: str, app_url: str) -> None:
    assert url.startswith((app_url, "data:", "blob:")), f"the page asks for {url}"
