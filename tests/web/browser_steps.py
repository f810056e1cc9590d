"""Steps in the browser, and checks of what the page shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from app_process import CHROMIUM, PATIENCE

pytest.importorskip("playwright", reason="the browser is driven by Playwright")
if CHROMIUM is None:
    pytest.skip("Chromium is missing: install Debian's package chromium", allow_module_level=True)

from playwright.sync_api import Locator, Page, expect

expect.set_options(timeout=PATIENCE)

Value = TypeVar("Value")


def settle(page: Page) -> None:
    """Wait until the script of the page has run."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=PATIENCE)


def becomes(page: Page, read: Callable[[], object], expected: object) -> None:
    """Check that what is read from the page is at last what is expected: a page shows its parts one after another."""
    end = time.monotonic() + PATIENCE / 1000
    while (found := read()) != expected and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert found == expected


def steady(page: Page, read: Callable[[], Value | None]) -> Value:
    """Return what is read from the page, once it is there and stands still: two reads in succession agree."""
    end = time.monotonic() + PATIENCE / 1000
    found = read()
    while True:
        page.wait_for_timeout(100)
        before, found = found, read()
        if found is not None and found == before:
            return found
        assert time.monotonic() < end, f"the page does not stand still: {before}, then {found}"


def area_of(page: Page, shown: Locator) -> tuple[float, float, float, float]:
    """Return left, top, width and height of an element in the window, once it stands still."""
    shown.wait_for()
    area = steady(page, shown.bounding_box)
    return area["x"], area["y"], area["width"], area["height"]


def fits(page: Page, width: int) -> None:
    """Check that nothing is wider than the window."""
    page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)


COUNT_RUNS = """
  window.finishedRuns = 0;
  const state = "data-test-script-state";
  new MutationObserver((changes) => {
    for (const { target, oldValue } of changes) {
      if (target.getAttribute(state) === "notRunning" && oldValue !== "notRunning") window.finishedRuns += 1;
    }
  }).observe(document, { subtree: true, attributeFilter: [state], attributeOldValue: true });
  // A busy browser may join two changes of the state, and then there is nothing to observe. Therefore the messages of
  // the server are counted too, two seconds later: in their bytes, field 6 says that a run has finished, not that
  // another run takes its place (2).
  const finished = (data) => {
    const bytes = new Uint8Array(data);
    const number = () => {
      for (let value = 0, factor = 1; ; factor *= 128) {
        const byte = bytes[at++];
        value += (byte & 127) * factor;
        if (!(byte & 128)) return value;
      }
    };
    let at = 0;
    while (at < bytes.length) {
      const tag = number(), value = number();
      if (tag === 8 * 6) return value !== 2;
      if (tag % 8 === 2) at += value;
    }
    return false;
  };
  window.WebSocket = class extends WebSocket {
    constructor(...options) {
      super(...options);
      this.addEventListener("message", ({ data }) => {
        if (!(data instanceof ArrayBuffer) || !finished(data)) return;
        const before = window.finishedRuns;
        setTimeout(() => { if (window.finishedRuns === before) window.finishedRuns += 1; }, 2000);
      });
    }
  };
"""
"""A JavaScript for each page: it counts how often the script of the app has finished."""


@contextmanager
def run_of_script(page: Page) -> Iterator[None]:
    """Wait until the run of the script that the block starts has finished."""
    settle(page)  # a run that ends during a click replaces the clicked element, and the click is lost
    before = page.evaluate("finishedRuns")
    yield
    page.wait_for_function("before => finishedRuns > before", arg=before)
    settle(page)


def press(page: Page, button: Locator) -> None:
    """Click on an element that starts a run of the script, and wait until it has finished."""
    with run_of_script(page):
        button.click()


def press_button(page: Page, name: str) -> None:
    press(page, page.get_by_role("button", name=name))


def choose(page: Page, control: str, option: str) -> None:
    """Choose an option that is not chosen yet."""
    page.bring_to_front()  # a browser draws a page in the background late
    with run_of_script(page):
        page.get_by_label(control, exact=True).click()
        page.get_by_role("option", name=option, exact=True).click()
        expect(page.get_by_role("combobox", name=control)).to_have_value(option)


def upload(page: Page, file: Path) -> None:
    settle(page)  # each file gets an input of its own: the last one must be in the page
    page.set_input_files("input[type=file]", file)


def search_text(page: Page, text: str) -> None:
    settle(page)  # a run that ends would put the former text back
    page.get_by_placeholder("a dog on the beach").fill(text)
    page.keyboard.press("Enter")


def tile(page: Page, place: int) -> Locator:
    return page.locator(".tile").nth(place)


def first_is(page: Page, name: str, score: str | None = None) -> None:
    expect(tile(page, 0)).to_contain_text(name)
    if score is not None:
        expect(tile(page, 0)).to_contain_text(score)


def no_error(page: Page) -> None:
    """Check that the page shows no error, once its script has run."""
    settle(page)
    expect(page.get_by_test_id("stException")).to_have_count(0)
    expect(page.locator("body")).not_to_contain_text("Traceback")


def at_start(page: Page) -> None:
    """Check that the image search has no query image."""
    expect(page.get_by_text("Give an image to find the images that look like it.")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(0)
    settle(page)


# The crop frame on the query image


def crop_frame(page: Page) -> Locator:
    return page.get_by_role("application")


def point_of_image(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return the coordinates in the window of a point of the image, given in percent of the image."""
    image = crop_frame(page).locator("img")
    image.wait_for()
    becomes(page, lambda: image.evaluate("it => it.complete && it.naturalWidth > 0"), True)
    left, top, width, height = area_of(page, image)
    return left + x * width / 100, top + y * height / 100


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw on the image, from a point to another, and wait for the results."""
    settle(page)
    (x, y), (u, v) = point_of_image(page, *start), point_of_image(page, *end)
    with run_of_script(page):
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(u, v, steps=5)
        page.mouse.up()
