"""The crop frame on the query image: by mouse, touch and keyboard, on a given image and on an item."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from app_process import PATIENCE
from browser_steps import (
    area_of,
    at_start,
    becomes,
    crop_frame,
    drag,
    first_is,
    no_error,
    point_of_image,
    press,
    press_button,
    run_of_script,
    settle,
    steady,
    tile,
    upload,
)
from playwright.sync_api import Page, TimeoutError, expect
from small_collections import PHOTOS

pytestmark = pytest.mark.slow

Sides = tuple[float, float, float, float]


def sides(page: Page) -> Sides:
    """Return left, top, right and bottom of the frame on the screen, in percent of the image."""
    style = crop_frame(page).evaluate(
        "it => ['left', 'top', 'right', 'bottom'].map(s => it.style.getPropertyValue('--' + s))"
    )
    left, top, right, bottom = (float(side.rstrip("%")) for side in style)
    return left, top, right, bottom


def are(page: Page, *expected: float) -> None:
    """Check the sides. The page shows the results of a search first, and then the frame that was searched for."""
    becomes(page, lambda: sides(page), pytest.approx(expected, abs=1))


def is_part(page: Page) -> None:
    """Check that a part of the image is searched for, and wait for the results."""
    expect(page.get_by_role("button", name="Whole image")).to_be_visible()
    settle(page)


def is_whole(page: Page) -> None:
    expect(page.get_by_role("button", name="Whole image")).to_have_count(0)
    settle(page)


def test_the_frame_is_drawn_moved_and_sized_with_the_mouse(visit: Callable[..., Page]) -> None:
    page = visit()
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    are(page, 0, 0, 100, 100)
    drag(page, (30, 30), (60, 70))
    is_part(page)
    are(page, 30, 30, 60, 70)
    expect(tile(page, 0)).not_to_contain_text("1.00")
    drag(page, (45, 50), (55, 40))
    are(page, 40, 20, 70, 60)
    drag(page, (70, 60), (90, 90))
    are(page, 40, 20, 90, 90)
    drag(page, (40, 20), (20, 30))
    are(page, 20, 30, 90, 90)
    drag(page, (50, 60), (150, 60))  # no further than the edge
    are(page, 30, 30, 100, 90)
    drag(page, (2, 2), (28, 20))  # outside of it: a new one
    are(page, 2, 2, 28, 20)
    settle(page)
    page.mouse.click(*point_of_image(page, 80, 80))  # a click draws nothing
    are(page, 2, 2, 28, 20)
    press_button(page, "Whole image")
    first_is(page, "temple.jpg", "1.00")
    are(page, 0, 0, 100, 100)
    no_error(page)


def test_the_frame_is_moved_and_sized_with_keys(visit: Callable[..., Page]) -> None:
    page = visit()
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    settle(page)
    page.get_by_role("button", name="Rotate left").focus()
    page.keyboard.press("Shift+Tab")
    expect(crop_frame(page)).to_be_focused()
    expect(crop_frame(page)).to_have_accessible_name("The part of the image to search for")
    expect(crop_frame(page)).to_have_accessible_description(re.compile("^Arrow keys move the frame"))
    expect(page.get_by_text("Arrow keys move the frame")).to_be_visible()
    expect(crop_frame(page)).to_have_css("outline-style", "solid")
    for _ in range(20):
        page.keyboard.press("Shift+ArrowLeft")
    for _ in range(15):
        page.keyboard.press("Shift+ArrowUp")
    are(page, 0, 0, 60, 70)
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    are(page, 4, 2, 64, 72)
    expect(tile(page, 0)).to_contain_text("1.00")  # not searched for yet
    with run_of_script(page):
        page.keyboard.press("Enter")
    is_part(page)
    are(page, 4, 2, 64, 72)
    expect(tile(page, 0)).not_to_contain_text("1.00")
    expect(crop_frame(page)).to_be_focused()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Tab")  # the field is left without Enter: the current frame is shown again
    are(page, 4, 2, 64, 72)
    page.keyboard.press("Shift+Tab")
    for _ in range(60):
        page.keyboard.press("Shift+ArrowLeft")
    left, _, right, _ = sides(page)
    assert right - left >= 5  # it cannot be lost
    with run_of_script(page):
        page.keyboard.press("Escape")
    is_whole(page)
    first_is(page, "temple.jpg", "1.00")
    are(page, 0, 0, 100, 100)


def test_the_frame_is_sized_and_moved_with_a_finger(visit: Callable[..., Page]) -> None:
    page = visit(locale="fr-FR", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    expect(crop_frame(page)).to_have_accessible_name("La partie de l'image à rechercher")
    settle(page)
    crop_frame(page).scroll_into_view_if_needed()
    with run_of_script(page):
        swipe(page, (100, 100), (70, 60))
    expect(page.get_by_role("button", name="Image entière")).to_be_visible()
    are(page, 0, 0, 70, 60)
    with run_of_script(page):
        swipe(page, (35, 30), (45, 60))
    are(page, 10, 30, 80, 90)
    for corner in crop_frame(page).locator("i").all():
        assert min(area_of(page, corner)[2:]) >= 24  # WCAG 2.2, 2.5.8
    above = steady(page, lambda: page.get_by_test_id("stMain").evaluate("it => it.scrollTop"))
    swipe(page, (95, 95), (95, 15))  # outside the frame, the page is scrolled
    page.wait_for_function("at => document.querySelector('[data-testid=stMain]').scrollTop > at", arg=above)
    are(page, 10, 30, 80, 90)


def swipe(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Move a finger over the image, as a touch screen reports it to the browser."""
    devtools = page.context.new_cdp_session(page)
    (x, y), (u, v) = point_of_image(page, *start), point_of_image(page, *end)
    steps = [(x + (u - x) * step / 8, y + (v - y) * step / 8) for step in range(9)]
    for kind, (left, top) in zip(["touchStart", *["touchMove"] * 8], steps, strict=True):
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": left, "y": top}]})
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    devtools.detach()


def test_a_part_of_an_item_is_searched_for(visit: Callable[..., Page]) -> None:
    page = visit()
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    press(page, tile(page, 0).get_by_role("button", name="Similar"))
    expect(crop_frame(page)).to_be_visible()
    first_is(page, "temple.jpg", "1.00")
    drag(page, (20, 20), (70, 70))
    is_part(page)
    expect(tile(page, 0)).not_to_contain_text("1.00")
    first_is(page, "temple.jpg")
    of_item = steady(page, page.locator(".score").all_inner_texts)
    press_button(page, "Whole image")
    first_is(page, "temple.jpg", "1.00")
    press_button(page, "Rotate right")
    expect(tile(page, 0)).not_to_contain_text("1.00")
    press_button(page, "Rotate left")
    first_is(page, "temple.jpg", "1.00")
    # The same part of a given image and of an item has the same results.
    press_button(page, "Clear")
    at_start(page)
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    drag(page, (20, 20), (70, 70))
    is_part(page)
    expect(page.locator(".score")).to_have_text(of_item)
    no_error(page)


def test_an_unavailable_item_is_searched_by_its_stored_embedding(
    visit: Callable[..., Page], collections: dict[str, Path], tmp_path: Path
) -> None:
    page = visit(collection="passing")
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")
    shutil.move(collections["passing"] / "cat.jpg", tmp_path)
    try:
        press(page, tile(page, 0).get_by_role("button", name="Similar"))
        expect(page.get_by_role("button", name="Rotate left")).to_have_count(0)
        first_is(page, "cat.jpg", "1.00")
        expect(crop_frame(page)).to_have_count(0)
        no_error(page)
    finally:
        shutil.move(tmp_path / "cat.jpg", collections["passing"])


def test_the_camera_takes_a_picture(visit: Callable[..., Page]) -> None:
    page = visit()
    press(page, page.get_by_text("Camera", exact=True))
    take_picture(page)
    expect(page.locator("video")).to_have_count(0)  # it is turned off
    drag(page, (20, 20), (70, 70))
    is_part(page)
    press_button(page, "Take another photo")
    take_picture(page)
    is_whole(page)  # of a picture of its own
    press_button(page, "Clear")
    at_start(page)
    take_picture(page)


def take_picture(page: Page) -> None:
    """Click until the picture is taken: the camera takes none while its stream begins, and does not say so."""
    page.wait_for_function("document.querySelector('video')?.readyState === 4")
    settle(page)
    taken = page.get_by_role("button", name="Take another photo")
    for _ in range(PATIENCE // 5000):
        with suppress(TimeoutError):
            page.get_by_role("button", name="Take Photo").click(timeout=5000)
        with suppress(AssertionError):
            expect(taken).to_be_visible(timeout=5000)
            break
    expect(taken).to_be_visible()
    settle(page)
    expect(tile(page, 17)).to_be_visible()
    no_error(page)
