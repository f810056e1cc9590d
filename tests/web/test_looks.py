"""Accessibility: contrast, accessible names, the order of headings, the width of the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from browser_steps import becomes, first_is, fits, no_error, press, search_text, settle, steady, tile, upload
from playwright.sync_api import Page, expect
from small_collections import PHOTOS

pytestmark = pytest.mark.slow

PALE = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const color = (text) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = text;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return { rgb: [r, g, b], alpha: a / 255 };
  };
  const over = (top, below) => top.rgb.map((value, i) => value * top.alpha + below[i] * (1 - top.alpha));
  const linear = (value) => value <= 10.31475 ? value / 3294.6 : ((value / 255 + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const parents = (part) => {
    const all = [];
    for (let each = part; each; each = each.parentElement ?? each.getRootNode().host) all.push(each);
    return all;
  };
  const found = [];
  const look = (root) => {
    for (const part of root.querySelectorAll("*")) {
      if (part.shadowRoot) look(part.shadowRoot);
      const text = [...part.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data.trim()).join("");
      if (!text || part.dataset.testid === "stIconMaterial" || !part.checkVisibility({ visibilityProperty: true })
        || part.closest("[data-testid=stSliderThumbValue]")  // in the thumb, but shown above it
        || ["STYLE", "SCRIPT", "TITLE"].includes(part.tagName) || part instanceof SVGElement) continue;
      const around = parents(part).map((each) => getComputedStyle(each));
      const opacity = around.reduce((product, each) => product * each.opacity, 1);
      if (!opacity) continue;
      const below = around.map((each) => color(each.backgroundColor)).reverse()
        .reduce((below, top) => over(top, below), [255, 255, 255]);
      const own = color(around[0].color);
      const shown = over({ rgb: own.rgb, alpha: own.alpha * opacity }, below);
      const [light, dark] = [luminance(shown), luminance(below)].sort((x, y) => y - x);
      const ratio = (light + .05) / (dark + .05);
      if (ratio < 4.5) found.push(ratio.toFixed(2) + " " + text);
    }
  };
  look(document);
  return found;
}"""
"""The texts whose contrast is below the 4.5 of WCAG 2.2 (1.4.3), with their contrast."""

NAMELESS = re.compile(r"^ *- (?:button|link|textbox|slider|combobox|radio|application)(?: \[.*)?:?$", re.MULTILINE)
"""Finds elements without an accessible name in the snapshot that Playwright makes."""


STANDS_STILL = """() => document.getAnimations().every(
  (each) => each.playState !== "running" || each.effect.getComputedTiming().iterations === Infinity)"""
"""Whether all animations have ended."""


BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 22, 21)"}
"""The background color of the page in each theme, from .streamlit/config.toml."""


def check(page: Page) -> None:
    settle(page)
    page.mouse.move(0, 0)
    for theme, background in BACKGROUNDS.items():
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        expect(page.get_by_test_id("stApp")).to_have_css("background-color", background)
        page.wait_for_function(STANDS_STILL)
        becomes(page, lambda: page.evaluate(PALE), [])
    becomes(page, lambda: NAMELESS.findall(page.locator("body").aria_snapshot()), [])
    expect(page.locator("img:not([alt]), img[alt='']")).to_have_count(0)
    headings = page.get_by_role("heading")
    levels = steady(page, lambda: headings.evaluate_all("all => all.map((it) => Number(it.tagName[1]))") or None)
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    for width in (1280, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        fits(page, width)
    page.set_viewport_size({"width": 1280, "height": 900})
    no_error(page)


def test_all_elements_have_contrast_and_accessible_names(visit: Callable[..., Page], tmp_path: Path) -> None:
    page = visit(locale="fr-FR")
    check(page)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    upload(page, tmp_path / "broken.jpg")
    expect(page.get_by_text("ne peut pas être utilisée")).to_be_visible()
    check(page)
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")
    check(page)
    press(page, page.get_by_text("English", exact=True))
    press(page, page.get_by_role("link", name="Text search"))
    search_text(page, "asdkjh qwe zzx")
    expect(page.get_by_text("Nothing here is quite like that")).to_be_visible()
    expect(tile(page, 3)).to_be_visible()
    check(page)
    for name, heading in (("Collection", "Formats"), ("About", "How it works")):
        press(page, page.get_by_role("link", name=name))
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        check(page)
