"""Steps in the browser, and checks of what the page shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from app_process import CHROMIUM, PATIENCE

pytest.importorskip("playwright", reason="the browser is driven by Playwright")
if CHROMIUM is None:
    pytest.skip("Chromium is missing: install Debian's package chromium", allow_module_level=True)

from playwright.sync_api import Locator, Page, TimeoutError, expect

expect.set_options(timeout=PATIENCE)


def settle(page: Page) -> None:
    """Wait until the script of the page has run."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=PATIENCE)


COUNT_RUNS = """
  window.finishedRuns = 0;
  const state = "data-test-script-state";
  new MutationObserver((changes) => {
    for (const { target, oldValue } of changes) {
      if (target.getAttribute(state) === "notRunning" && oldValue !== "notRunning") window.finishedRuns += 1;
    }
  }).observe(document, { subtree: true, attributeFilter: [state], attributeOldValue: true });
"""
"""A JavaScript for each page: it counts how often the script of the app has finished."""


@contextmanager
def run_of_script(page: Page) -> Iterator[None]:
    """Wait until the run of the script that the block starts has finished."""
    settle(page)  # a run that ends during a click replaces the clicked element, and the click is lost
    before = page.evaluate("finishedRuns")
    yield
    with suppress(TimeoutError):  # a busy browser may join two changes of the state, and then nothing is counted
        page.wait_for_function("before => finishedRuns > before", arg=before, timeout=5000)
    settle(page)


def choose(page: Page, control: str, option: str) -> None:
    """Choose an option that is not chosen yet."""
    page.bring_to_front()  # a browser draws a page in the background late
    with run_of_script(page):
        page.get_by_label(control, exact=True).click()
        page.get_by_role("option", name=option, exact=True).click()
        expect(page.get_by_role("combobox", name=control)).to_have_value(option)


def upload(page: Page, file: Path) -> None:
    page.set_input_files("input[type=file]", file)


def tile(page: Page, place: int) -> Locator:
    return page.locator(".tile").nth(place)


def first_is(page: Page, name: str, score: str | None = None) -> None:
    expect(tile(page, 0)).to_contain_text(name)
    if score is not None:
        expect(tile(page, 0)).to_contain_text(score)


def no_error(page: Page) -> None:
    expect(page.get_by_test_id("stException")).to_have_count(0)
    assert "Traceback" not in page.inner_text("body")


def at_start(page: Page) -> None:
    """Check that the image search has no query image."""
    expect(page.get_by_text("Give an image to find the images that look like it.")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(0)
    settle(page)
