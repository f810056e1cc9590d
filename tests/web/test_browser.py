"""The app in a real browser, as a person uses it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from app_process import PATIENCE, REBOUND, running_app
from browser_steps import (
    area_of,
    at_start,
    becomes,
    choose,
    drag,
    first_is,
    fits,
    no_error,
    press,
    press_button,
    run_of_script,
    search_text,
    settle,
    steady,
    tile,
    upload,
)
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from small_collections import HOSTILE_LABEL, HOSTILE_NAMES, PHOTOS, copy_photos


def test_an_uploaded_photo_comes_back_first_and_opens(visit: Callable[..., Page]) -> None:
    page = visit()
    at_start(page)
    upload(page, PHOTOS / "coffee.jpg")
    first_is(page, "coffee.jpg", "1.00")
    expect(tile(page, 17)).to_be_visible()
    expect(page.get_by_text(re.compile(r"\d ms"))).to_be_visible()
    press(page, tile(page, 0).get_by_role("img"))
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("600 x 400")).to_be_visible()
    expect(dialog.get_by_text("photos/coffee.jpg")).to_be_visible()
    expect(dialog.locator("img").first).to_be_visible()
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "coffee.jpg"
    assert Path(download.value.path()).read_bytes() == (PHOTOS / "coffee.jpg").read_bytes()
    no_error(page)


@pytest.mark.slow
def test_another_photo_takes_the_place_of_the_first(visit: Callable[..., Page]) -> None:
    page = visit()
    for name in ("cat.jpg", "horse.jpg", "rocket.jpg", "temple.jpg"):
        upload(page, PHOTOS / name)
        first_is(page, name, "1.00")
        settle(page)


@pytest.mark.slow
def test_a_result_becomes_the_query_image(visit: Callable[..., Page]) -> None:
    page = visit("text")
    search_text(page, "a cup of coffee")
    first_is(page, "coffee.jpg")
    press(page, tile(page, 0).get_by_role("button", name="Similar"))
    expect(page).to_have_url(re.compile("/$"))
    first_is(page, "coffee.jpg", "1.00")
    name = tile(page, 1).locator(".name").inner_text()
    press(page, tile(page, 1).get_by_role("button", name="Similar"))
    first_is(page, name, "1.00")
    name = tile(page, 17).locator(".name").inner_text()
    press(page, tile(page, 17).get_by_role("button", name="Similar"))
    first_is(page, name, "1.00")
    expect(page.get_by_role("heading", name="Find similar images")).to_be_in_viewport()
    press_button(page, "Clear")
    at_start(page)


@pytest.mark.slow
def test_a_photo_is_rotated_and_cropped(visit: Callable[..., Page]) -> None:
    page = visit()
    upload(page, PHOTOS / "temple.jpg")
    first_is(page, "temple.jpg", "1.00")
    press_button(page, "Rotate right")
    expect(tile(page, 0)).not_to_contain_text("1.00")
    press_button(page, "Rotate left")
    first_is(page, "temple.jpg", "1.00")
    drag(page, (20, 20), (70, 70))
    whole = page.get_by_role("button", name="Whole image")
    expect(whole).to_be_visible()
    first_is(page, "temple.jpg")
    expect(tile(page, 0)).not_to_contain_text("1.00")
    press(page, whole)
    first_is(page, "temple.jpg", "1.00")


LISTENS_TO_PASTE = """() => {
  const listens = (root) => root.stopListening
    || [...root.querySelectorAll("*")].some((each) =>
      each.stopListening || (each.shadowRoot && listens(each.shadowRoot)));
  return listens(document);
}"""


@pytest.mark.slow
def test_a_pasted_picture_is_searched_for(visit: Callable[..., Page]) -> None:
    page = visit()
    data = list((PHOTOS / "rocket.jpg").read_bytes())
    page.wait_for_function(LISTENS_TO_PASTE)
    page.evaluate(
        """data => {
            const given = new DataTransfer();
            given.items.add(new File([new Uint8Array(data)], "x.jpg", {type: "image/jpeg"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: given}));
        }""",
        data,
    )
    first_is(page, "rocket.jpg", "1.00")


@pytest.mark.slow
def test_an_example_is_searched_for(visit: Callable[..., Page]) -> None:
    page = visit()
    press(page, page.locator("[class*='st-key-example-flower']").get_by_role("button"))
    first_is(page, "flower.jpg", "1.00")


def test_text_examples_fit_and_nonsense_is_reported(visit: Callable[..., Page]) -> None:
    page = visit("text")
    press(page, page.get_by_role("button", name="a cat", exact=True))
    first_is(page, "cat.jpg")
    search_text(page, "asdkjh qwe zzx")
    expect(page.get_by_text("Nothing here is quite like that")).to_be_visible()


@pytest.mark.slow
def test_uploads_of_unusable_files_are_refused(visit: Callable[..., Page], tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.jpg" for name in ("text", "cut", "bomb", "large")}
    files["text"].write_bytes(b"<svg onload=alert(1)>")
    files["cut"].write_bytes((PHOTOS / "cat.jpg").read_bytes()[:5000])
    Image.new("1", (20_000, 20_000)).save(files["bomb"], "PNG")
    files["large"].write_bytes(b"\xff\xd8\xff" + bytes(26 << 20))
    said = {"text": "unsupported format: SVG", "cut": "truncated", "bomb": "too many pixels", "large": "File must be"}
    page = visit()
    for name, file in files.items():
        upload(page, file)
        expect(page.get_by_test_id("stMain").get_by_text(said[name]).last).to_be_visible()
        if name != "large":  # which the page does not send
            expect(page.locator("body")).to_contain_text("This image cannot be used")
        no_error(page)
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")


@pytest.mark.slow
def test_a_private_address_is_refused(visit: Callable[..., Page]) -> None:
    page = visit()
    press(page, page.get_by_role("button", name="URL").or_(page.get_by_role("radio", name="URL")).first)
    page.get_by_label("Address (URL) of an image").fill("http://127.0.0.1:9/cat.jpg")
    press_button(page, "Load")
    expect(page.get_by_text("could not be loaded")).to_be_visible()
    no_error(page)


@pytest.mark.slow
def test_labels_make_categories_and_a_filter(visit: Callable[..., Page]) -> None:
    page = visit(collection="labelled")
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "animal, beast", "1.00")
    expect(page.get_by_text("Suggested categories")).to_be_visible()
    expect(page.get_by_test_id("stProgress").filter(has_text="animal · ")).to_be_visible()
    with run_of_script(page):
        page.get_by_label("Label", exact=True).click()
        page.get_by_role("option", name="vehicle").click()
    page.keyboard.press("Escape")
    first_is(page, "rocket.jpg")
    expect(tile(page, 1)).to_have_count(0)
    press(page, tile(page, 0).get_by_role("button", name="Open"))
    expect(page.get_by_role("dialog").get_by_text("Someone <b>Else</b>")).to_be_visible()
    expect(page.get_by_role("dialog").get_by_text("CC0")).to_be_visible()


@pytest.mark.slow
def test_names_and_labels_of_strangers_are_shown_as_they_are(visit: Callable[..., Page]) -> None:
    page = visit(collection="odd")
    upload(page, PHOTOS / "cat.jpg")
    shown = page.get_by_test_id("stMain")
    for name in HOSTILE_NAMES:
        plain = name.replace("\n", r"\n").replace("\N{RIGHT-TO-LEFT OVERRIDE}", r"\u202e")
        expect(shown.get_by_text(plain, exact=True)).to_be_visible()
    expect(page.locator("img[src=x], img[src$='/x']")).to_have_count(0)
    for place in range(len(HOSTILE_NAMES)):
        press(page, tile(page, place).get_by_role("button", name="Open"))
        expect(page.get_by_role("dialog").get_by_text(".jpg").first).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    choose(page, "Collection", "labelled")
    expect(shown.get_by_text(HOSTILE_LABEL, exact=True).first).to_be_visible()
    page.goto(page.url + "text")
    expect(page.get_by_placeholder("a dog on the beach")).to_be_visible()
    no_error(page)


@pytest.mark.slow
def test_a_deleted_collection_is_reported_and_can_be_restored(
    visit: Callable[..., Page], collections: dict[str, Path], tmp_path: Path
) -> None:
    page = visit(collection="passing")
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")
    away = tmp_path / "away"
    shutil.move(collections["passing"], away)
    press_button(page, "Rotate right")
    expect(page.get_by_text("is missing or cannot be read")).to_be_visible()
    no_error(page)
    shutil.move(away, collections["passing"])
    page.reload()
    settle(page)
    choose(page, "Collection", "passing")
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")


@pytest.mark.slow
def test_two_visitors_do_not_disturb_each_other(visit: Callable[..., Page]) -> None:
    one, other = visit(), visit("text", locale="fr-FR")
    expect(other.get_by_role("heading", name="Décrivez les images que vous recherchez")).to_be_visible()
    upload(one, PHOTOS / "horse.jpg")
    search_text(other, "a rocket")
    first_is(one, "horse.jpg", "1.00")
    first_is(other, "rocket.jpg")


def test_the_language_follows_the_browser_and_can_be_switched(visit: Callable[..., Page]) -> None:
    page = visit(locale="fr-CA")
    expect(page.get_by_text("Trouver des images similaires")).to_be_visible()
    press(page, page.get_by_text("English", exact=True))
    at_start(page)
    page.get_by_role("link", name="About").click()
    expect(page.get_by_text("How it works")).to_be_visible()
    expect(page.get_by_text("0.1.0")).to_be_visible()


def test_the_collection_is_shown_and_a_folder_indexed(
    visit: Callable[..., Page], collections: dict[str, Path], tmp_path: Path
) -> None:
    page = visit("collection")
    expect(page.get_by_test_id("stMetricValue").first).to_have_text("18")
    expect(page.get_by_text("These files could not be indexed.")).to_be_visible()
    choose(page, "Collection", "growing")
    expect(page.get_by_test_id("stMetricValue").first).to_have_text("1")
    page.get_by_text("Index a folder").click()
    folder = page.get_by_label("Folder of images on the computer")
    folder.fill(str(tmp_path / "<b>nowhere</b>"))
    press_button(page, "Add to this collection")
    expect(page.get_by_text("<b>nowhere</b>")).to_be_visible()
    more = tmp_path / "more"
    more.mkdir()
    shutil.copy(PHOTOS / "horse.jpg", more)
    folder.fill(str(more))
    press_button(page, "Add to this collection")
    expect(page.get_by_text("Images added: 1,")).to_be_visible()
    page.reload()
    settle(page)
    choose(page, "Collection", "growing")
    expect(page.get_by_text("Images added: 1,")).to_be_visible()
    expect(page.get_by_test_id("stMetricValue").first).to_have_text("2")
    assert (more / "horse.jpg").exists()


@pytest.mark.slow
def test_a_new_collection_is_created_and_shown_to_all(visit: Callable[..., Page], tmp_path: Path) -> None:
    page, other = visit("collection"), visit()
    page.get_by_text("Index a folder").click()
    folder, make = page.get_by_label("Folder of images on the computer"), "Create a new collection"
    folder.fill("/")
    press_button(page, make)
    expect(page.get_by_text("belongs to the system")).to_be_visible()
    folder.fill(str(copy_photos(tmp_path / "made here", "cat.jpg", "horse.jpg")))
    press_button(page, make)
    expect(page.get_by_text("Images added: 2,")).to_be_visible()
    assert (tmp_path / "made here" / ".pixmatcher" / "collection.json").is_file()
    page.reload()
    expect(page.get_by_text("Images added: 2,")).to_be_visible()
    press_button(page, "Open the new collection")
    expect(page.get_by_role("heading", name="made here")).to_be_visible()
    expect(page.get_by_test_id("stMetricValue").first).to_have_text("2")
    upload(other, PHOTOS / "horse.jpg")
    first_is(other, "horse.jpg", "1.00")
    choose(other, "Collection", "made here")
    first_is(other, "horse.jpg", "1.00")
    expect(tile(other, 2)).to_have_count(0)
    # A folder that has a collection is shown at once.
    choose(page, "Collection", "photos")
    folder.fill(str(tmp_path / "made here"))
    press_button(page, make)
    expect(page.get_by_role("heading", name="made here")).to_be_visible()
    no_error(page)


@pytest.mark.slow
def test_the_first_collection_is_created(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    photos = copy_photos(tmp_path / "first", "cat.jpg", "horse.jpg")
    with running_app(["-vv"], tmp_path / "home") as url:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{url}/text")
        expect(page.get_by_role("heading", name="Welcome to PixMatcher")).to_be_visible()
        settle(page)
        page.get_by_role("link", name="About").click()
        expect(page.get_by_text("How it works")).to_be_visible()
        settle(page)
        page.get_by_role("link", name="Image search").click()
        expect(page.get_by_role("heading", name="Welcome to PixMatcher")).to_be_visible()
        settle(page)
        page.get_by_label("Folder of images on the computer").fill(str(photos))
        page.get_by_role("button", name="Create a new collection").click()
        expect(page.get_by_text("Find similar images")).to_be_visible()
        upload(page, PHOTOS / "horse.jpg")
        first_is(page, "horse.jpg", "1.00")
        page.close()
    log = (tmp_path / "home.log").read_text()
    assert "INFO pixmatcher.web: app started with 0 collections" in log
    assert "INFO pixmatcher.web: job started: new collection" in log
    assert "INFO pixmatcher.web: job finished after" in log
    assert f"INFO pixmatcher.web: opened the collection {photos}/.pixmatcher with 2 items" in log
    assert f"DEBUG pixmatcher.web: searched by image in {photos}/.pixmatcher: " in log


@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_example_photos_are_a_first_collection(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with running_app([], tmp_path / "home") as url:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        settle(page)
        page.get_by_role("button", name="Example photos").click()
        expect(page.get_by_text("Find similar images")).to_be_visible()
        upload(page, PHOTOS / "horse.jpg")
        first_is(page, "horse.jpg", "1.00")
        page.close()


def draw_map(page: Page, button: str = "Draw the map") -> None:
    """Draw the chosen map, unless it was drawn before."""
    settle(page)
    draw, chart = page.get_by_role("button", name=button), page.locator(".js-plotly-plot .points")
    expect(draw.or_(chart).first).to_be_visible()
    if draw.is_visible():
        draw.click()
    expect(chart.first).to_be_visible()
    settle(page)


def points_of_map(page: Page) -> list[tuple[int, float, float]]:
    """Return the position of each point on the map, and its coordinates in the window."""
    settle(page)
    expect(page.locator(".js-plotly-plot")).to_have_count(1)
    found = steady(
        page,
        lambda: page.evaluate(
            """() => {
              const chart = document.querySelector(".js-plotly-plot"), { xaxis, yaxis } = chart?._fullLayout ?? {};
              if (!xaxis?.d2p || !yaxis?.d2p) return null;
              const box = chart.getBoundingClientRect();
              const left = box.left + xaxis._offset, top = box.top + yaxis._offset;
              return chart._fullData.filter((trace) => trace.customdata).flatMap((trace) => [...trace.x].map(
                (x, n) => [trace.customdata[n], left + xaxis.d2p(x), top + yaxis.d2p(trace.y[n])]));
            }"""
        ),
    )
    return [(int(place), float(x), float(y)) for place, x, y in found]


# During a run of the script, the page may hold two of them; only one is open.
SHOWN_AT_POINTER = ".at-pointer:popover-open"


def point_at(page: Page, point: tuple[int, float, float]) -> Locator:
    """Move the pointer to a point of the map. Return what the page shows next to it."""
    position, x, y = point

    def shown_position() -> object:
        """Return the position of what is shown. The chart reports only some movements: the pointer moves again."""
        found = page.evaluate("shown => document.querySelector(shown)?.self?.position", SHOWN_AT_POINTER)
        if found != position:
            page.mouse.move(x - 20, y - 20)
            page.mouse.move(x, y, steps=4)
            page.wait_for_timeout(500)  # it reports late, and what is shown comes from the server
        return found

    becomes(page, shown_position, position)
    return page.locator(SHOWN_AT_POINTER)


def name_at(page: Page, point: tuple[int, float, float]) -> str:
    """Move the pointer to a point of the map. Return the name and the label that the page shows next to it."""
    return point_at(page, point).inner_text().strip()


def corners_of_map(page: Page) -> list[tuple[float, float]]:
    """Return the corners of a path around all points of the map."""
    left, top, width, height = area_of(page, page.locator(".js-plotly-plot .nsewdrag"))
    left, top, right, bottom = left + 3, top + 3, left + width - 3, top + height - 3
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


@pytest.mark.slow
def test_the_map_is_drawn_and_points_are_chosen(visit: Callable[..., Page]) -> None:
    page = visit("map")
    draw_map(page)
    start, *others = corners_of_map(page)
    page.mouse.move(*start)
    page.mouse.down()
    for corner in others:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    chosen = page.get_by_text("Images selected: 18")
    expect(chosen).to_be_visible()
    # The points inside the lasso still react to the pointer, and the lasso stays.
    card = point_at(page, points_of_map(page)[0])
    expect(card.locator("img")).to_be_visible()
    expect(chosen).to_be_visible()
    press(page, tile(page, 0).get_by_role("button", name="Similar"))
    expect(tile(page, 0)).to_contain_text("1.00")
    page.get_by_role("link", name="Map").click()
    expect(page.locator(".js-plotly-plot").get_by_text("your image").first).to_be_visible()


@pytest.mark.slow
def test_a_frame_selects_points_of_the_map_and_can_be_undone(visit: Callable[..., Page]) -> None:
    page = visit("map")
    draw_map(page)
    points_of_map(page)
    page.locator(".modebar-btn[data-title='Box Select']").click()
    start, _, end, *_ = corners_of_map(page)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=4)
    page.mouse.up()
    chosen = page.get_by_text("Images selected: 18")
    expect(chosen).to_be_visible()
    press_button(page, "Clear")
    expect(chosen).to_have_count(0)


@pytest.mark.slow
def test_a_point_of_the_map_shows_its_picture_and_a_click_opens_it(visit: Callable[..., Page]) -> None:
    page = visit("map")
    for method in ("t-SNE", "PCA"):
        if method == "PCA":
            choose(page, "Method", method)
        draw_map(page)
        names = set()
        for point in points_of_map(page)[:3]:
            card = point_at(page, point)
            expect(card).to_contain_text(".jpg")
            becomes(page, lambda: card.locator("img").evaluate("it => it.naturalWidth > 0"), True)  # noqa: B023
            names.add(card.inner_text().strip())
        assert len(names) == 3
    for tool in ("Lasso Select", "Pan"):
        page.locator(f".modebar-btn[data-title='{tool}']").click()
        point = points_of_map(page)[4]
        name = name_at(page, point)
        page.mouse.click(*point[1:])
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_text(name, exact=True)).to_be_visible()
        expect(page.locator(SHOWN_AT_POINTER)).to_have_count(0)
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
    point = points_of_map(page)[5]
    name = name_at(page, point)
    page.mouse.click(*point[1:])
    dialog.get_by_role("button", name="Find similar images").click()
    first_is(page, name, "1.00")
    no_error(page)


@pytest.mark.slow
def test_names_on_the_map_are_shown_as_they_are(visit: Callable[..., Page]) -> None:
    page = visit("map", collection="odd")
    draw_map(page)
    shown = {name_at(page, point) for point in points_of_map(page)}
    assert shown == {
        name.replace("\n", r"\n").replace("\N{RIGHT-TO-LEFT OVERRIDE}", r"\u202e") for name in HOSTILE_NAMES
    }
    choose(page, "Collection", "labelled")
    draw_map(page)
    shown = {name_at(page, point).split("\n")[-1] for point in points_of_map(page)}
    assert shown == {"animal, beast", HOSTILE_LABEL, "vehicle"}
    expect(page.locator(".js-plotly-plot .legend").get_by_text("<script>")).to_be_visible()


@pytest.mark.slow
def test_a_text_is_placed_on_the_map(visit: Callable[..., Page]) -> None:
    page = visit("text")
    search_text(page, "a cup of coffee")
    first_is(page, "coffee.jpg")
    with run_of_script(page):
        page.get_by_role("link", name="Map").click()
    draw_map(page)
    with run_of_script(page):
        page.get_by_role("button", name="Place a text").click()
    draw_map(page)
    placed = page.locator(".js-plotly-plot .annotation")
    expect(placed).to_have_text("a cup of coffee")
    expect(page.get_by_role("heading", name="Nearest to a cup of coffee")).to_be_visible()
    first_is(page, "coffee.jpg")
    page.get_by_label("Place a text on the map").fill("<b>a rocket</b>")
    page.keyboard.press("Enter")
    expect(placed.filter(has_text="<b>a rocket</b>")).to_be_visible()
    first_is(page, "rocket.jpg")
    choose(page, "Space", "lite: visual")
    draw_map(page)
    expect(page.locator(".js-plotly-plot .annotation")).to_have_count(0)


@pytest.mark.slow
def test_the_map_on_a_telephone(visit: Callable[..., Page]) -> None:
    page = visit("map", locale="fr-FR", viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    draw_map(page, "Dessiner la carte")
    expect(page.locator(".js-plotly-plot .legend").get_by_text("groupe 1")).to_be_visible()
    fits(page, 390)
    page.locator(".js-plotly-plot").evaluate("chart => chart.scrollIntoView({block: 'center'})")
    finger = page.context.new_cdp_session(page)
    kinds = ["touchStart", *["touchMove"] * 4]
    for kind, (x, y) in zip(kinds, corners_of_map(page), strict=True):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    expect(page.get_by_text("Images sélectionnées : 18")).to_be_visible()
    settle(page)
    _, x, y = points_of_map(page)[0]
    page.touchscreen.tap(x, y)
    expect(page.get_by_role("dialog").get_by_text(".jpg").first).to_be_visible()


@pytest.mark.slow
def test_nothing_is_wider_than_the_window(visit: Callable[..., Page]) -> None:
    page = visit("text")
    press(page, page.get_by_role("button", name="a cat", exact=True))
    first_is(page, "cat.jpg")
    for width in (1280, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        expect(tile(page, 1)).to_be_visible()
        fits(page, width)
        left, _, tile_width, _ = area_of(page, tile(page, 0))
        assert left >= 0
        assert left + tile_width <= width


@pytest.mark.slow
def test_an_item_is_not_searched_for_in_another_collection(visit: Callable[..., Page]) -> None:
    page = visit()
    upload(page, PHOTOS / "cat.jpg")
    first_is(page, "cat.jpg", "1.00")
    name = tile(page, 1).locator(".name").inner_text()
    press(page, tile(page, 1).get_by_role("button", name="Similar"))
    first_is(page, name, "1.00")
    choose(page, "Collection", "passing")
    at_start(page)


def test_an_unknown_host_name_is_refused(browser: Browser, app_url: str) -> None:
    page = browser.new_page()
    page.goto(f"{app_url.replace('127.0.0.1', REBOUND)}/collection")
    expect(page.get_by_text("cannot be opened at this address")).to_be_visible()
    expect(page.get_by_text("Collection", exact=True)).to_have_count(0)
    page.close()
