"""The texts of contact sheets in all scripts, with real fonts; and small pictures, which are enlarged."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from pixmatcher.collection import Hit, Item
from pixmatcher.export import _fonts, _text_drawing, contact_sheet
from pixmatcher.export._text_drawing import draw_line
from pixmatcher.export.contact_sheet import draw_contact_sheet
from pixmatcher.searching import SearchResult


def clear_caches() -> None:
    for function in vars(_fonts).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()


@pytest.fixture(autouse=True)
def _own_fonts() -> Iterator[None]:
    """Each test finds its fonts itself."""
    clear_caches()
    yield
    clear_caches()


@pytest.fixture
def dejavu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fonts that is all that fontconfig knows: DejaVu Sans, as matplotlib brings it."""
    matplotlib = pytest.importorskip("matplotlib")
    folder = tmp_path / "fonts"
    folder.mkdir()
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"):
        shutil.copy(Path(matplotlib.get_data_path(), "fonts", "ttf", name), folder)
    configuration = tmp_path / "fonts.conf"
    configuration.write_text(
        f"<?xml version='1.0'?><!DOCTYPE fontconfig SYSTEM 'fonts.dtd'><fontconfig><dir>{folder}</dir>"
        f"<cachedir>{tmp_path / 'cache'}</cachedir></fontconfig>"
    )
    monkeypatch.setenv("FONTCONFIG_FILE", str(configuration))
    return folder


def drawn(text: str, width: int = 600, size: int = 14) -> np.ndarray:
    """Return the pixels (30, width, 3) of a line."""
    image = Image.new("RGB", (width, 30), "white")
    draw_line(image, (0, 5), text, size, (0, 0, 0), width)
    return np.asarray(image).astype(int)


def font_of(text: str, *, is_emoji: bool = False) -> str | None:
    face = _fonts.face_for(text, 14, is_emoji=is_emoji)
    return None if face is None else str(face.font.getname()[0])


def needs_fontconfig() -> None:
    if shutil.which("fc-match") is None:
        pytest.skip("fontconfig is not installed (apt-get install fontconfig)")


def needs_font(name: str, text: str, *, is_emoji: bool = False) -> None:
    needs_fontconfig()
    if font_of(text, is_emoji=is_emoji) != name:
        pytest.skip(f"the font {name} is not installed")


def shown_texts(text: str) -> list[str]:
    """Return the clusters of a line, in the order of the text."""
    return [cluster.text for cluster in _text_drawing._clusters(text, 14)]


def test_a_font_of_the_system_is_used_where_the_bundled_one_has_no_glyph(dejavu: Path) -> None:
    needs_fontconfig()
    assert font_of("a") != "DejaVu Sans"
    for text in ("\u00e9", "\u041a", "\u03b1", "\u0531", "\u0634", "\u2660"):
        assert font_of(text) == "DejaVu Sans", text
    cyrillic = drawn("\u041a\u043e\u0448\u043a\u0430")
    assert (cyrillic < 128).any()
    assert not np.array_equal(cyrillic, drawn("\u0421\u043e\u0431\u0430\u043a"))
    assert not np.array_equal(cyrillic, drawn("\\u041a\\u043e\\u0448\\u043a\\u0430"))


def test_without_fontconfig_the_usual_folders_are_searched(dejavu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(_fonts, "_FOLDERS", (str(dejavu),))
    assert font_of("\u041a") == "DejaVu Sans"
    assert font_of("\u732b") is None
    monkeypatch.setattr(_fonts, "_FOLDERS", (str(dejavu / "missing"),))
    clear_caches()
    assert font_of("\u041a") is None
    assert shown_texts("\u041a.png") == ["\\u041a", ".", "p", "n", "g"]


def test_a_fontconfig_that_fails_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fc-match"
    monkeypatch.setenv("PATH", str(tmp_path))
    for script in ("exit 1", "echo nothing", "printf '/missing.ttf\\n0\\n'", f"printf '{__file__}\\n0\\n'"):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        clear_caches()
        assert shown_texts("\u732b") == ["\\u732b"]


def test_characters_that_no_font_has_are_escaped(dejavu: Path) -> None:
    needs_fontconfig()
    assert shown_texts("a\u732b\U0001f9ff") == ["a", "\\u732b", "\\U0001f9ff"]
    assert np.array_equal(drawn("\u732b"), drawn("\\u732b"))
    assert not np.array_equal(drawn("\u732b"), drawn("\u72d7"))


def test_what_is_no_printable_text_is_escaped() -> None:
    assert shown_texts("a\nb\x1b\u202e\udcff\u2067\u200d\x7f") == [
        "a", "\\n", "b", "\\x1b", "\\u202e", "\\udcff", "\\u2067", "\\u200d", "\\x7f",
    ]  # fmt: skip


def test_letters_and_marks_are_composed_and_never_divided(dejavu: Path) -> None:
    needs_fontconfig()
    assert shown_texts("cafe\u0301") == ["c", "a", "f", "\u00e9"]
    assert np.array_equal(drawn("cafe\u0301"), drawn("caf\u00e9"))
    assert shown_texts("x\u0301\u0302y") == ["x\u0301\u0302", "y"]
    many = shown_texts("a" + "\u0301" * 50)
    assert max(map(len, many)) == 9
    line = "x\u0301" * 300
    parts = [c.text for c in _text_drawing._shortened(_text_drawing._clusters(line, 14), 101, 14)]
    assert parts == ["x\u0301"] * 51 + ["..."] + ["x\u0301"] * 50


@pytest.mark.parametrize("text", ["x" * 300, "\u00e9" * 300, "a" * 150 + ".jpg", "\u202e" * 200, "i" * 399 + "W", ""])
@pytest.mark.parametrize("width", [100, 240, 500])
def test_a_long_line_is_shortened_to_its_width(text: str, width: int) -> None:
    image = Image.new("RGB", (width + 200, 30), "white")
    draw_line(image, (0, 5), text, 14, (0, 0, 0), width)
    ink = np.flatnonzero((np.asarray(image) < 200).any(axis=(0, 2)))
    if text:
        assert width - 60 < ink.max() < width


def test_the_beginning_and_the_end_of_a_long_name_stay() -> None:
    whole, short = drawn("a" * 200 + ".jpg", 240), drawn("a" * 300 + ".jpg", 240)
    assert np.array_equal(whole, short)
    assert not np.array_equal(whole, drawn("a" * 200 + ".png", 240))


def seen(text: str) -> str:
    """Return the parts of a line as they are seen from left to right."""
    runs = _text_drawing._runs(_text_drawing._clusters(text, 14))
    return "|".join(run.text[::-1] if run.level % 2 else run.text for run in runs)


def test_the_order_of_right_to_left_scripts(dejavu: Path) -> None:
    needs_fontconfig()
    alef, bet, gimel = "\u0627\u0628\u062a"
    # Spaces and digits have another font here, so they are runs of their own.
    assert seen(f"{alef}{bet}.jpg") == f"{bet}{alef}|.jpg"
    assert seen(f"abc {alef}{bet}") == f"abc |{bet}{alef}"
    assert seen(f"{alef} {bet}").replace("|", "") == f"{bet} {alef}"
    assert seen(f"{alef} 12 {gimel}").replace("|", "") == f"{gimel} 12 {alef}"
    assert seen(f"{alef} (1).jpg").replace("|", "") == f")1( {alef}.jpg"  # the brackets are drawn mirrored
    assert seen(f"{alef} (abc).jpg").replace("|", "") == f"{alef} (abc).jpg"
    assert seen(f"abc ({alef}{bet}) d").replace("|", "") == f"abc ({bet}{alef}) d"
    assert seen("12 abc 34.jpg") == "12 abc 34.jpg"


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no raqm, which shapes text")
def test_arabic_letters_are_joined(dejavu: Path) -> None:
    needs_fontconfig()
    joined = drawn("\u0628\u0628\u0628")
    font = ImageFont.truetype(str(dejavu / "DejaVuSans.ttf"), 14)
    alone = font.getlength("\u0628", direction="rtl")
    ink = np.flatnonzero((joined < 128).any(axis=(0, 2)))
    assert ink.max() - ink.min() < 2.5 * alone  # letters in the middle of a word are narrower


def test_right_to_left_without_raqm(dejavu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_fontconfig()
    basic = functools.partial(ImageFont.truetype, layout_engine=ImageFont.Layout.BASIC)
    monkeypatch.setattr(ImageFont, "truetype", basic)
    letters = "\u05d0\u05d1\u05d2\u05d3"
    font = basic(str(dejavu / "DejaVuSans.ttf"), 14)
    if font_of(letters) is None:
        pytest.skip("DejaVu Sans has no Hebrew here")
    left = Image.new("RGB", (600, 30), "white")
    baseline = 5 + _fonts.bundled_face(14).font.getmetrics()[0]
    ImageDraw.Draw(left).text((0, baseline), letters[::-1], fill=(0, 0, 0), font=font, anchor="ls")
    assert np.array_equal(drawn(letters), np.asarray(left).astype(int))


def test_chinese_with_an_installed_font() -> None:
    needs_fontconfig()
    if font_of("\u732b") is None:
        pytest.skip("no font with Chinese characters is installed (apt-get install fonts-noto-cjk)")
    assert shown_texts("\u6c99\u53d1\u4e0a\u7684\u732b") == [*"\u6c99\u53d1\u4e0a\u7684\u732b"]
    assert not np.array_equal(drawn("\u732b"), drawn("\u72d7"))
    assert not np.array_equal(drawn("\u732b"), drawn("\\u732b"))


def test_emoji_are_in_colour_and_of_the_size_of_the_text() -> None:
    needs_font("Noto Color Emoji", "\U0001f600", is_emoji=True)
    for text in ("\U0001f600", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\U0001f468\u200d\U0001f469\u200d\U0001f467"):
        assert shown_texts(text) == [text]
        pixels = drawn(text)
        if "\u200d" not in text:  # a family may be in grey
            assert (pixels.max(axis=2) - pixels.min(axis=2)).max() > 60, ascii(text)
        rows, columns = np.nonzero((pixels < 200).any(axis=2))
        assert 8 < np.ptp(rows) < 24
        assert 8 < np.ptp(columns) < 30  # a single picture


# Small pictures


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (20, 64), (1, 1), (240, 10), (1, 200)])
def test_small_pictures_are_enlarged_to_the_cell(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "small.png"
    Image.new("RGB", size, (255, 0, 0)).save(path)
    hit = Hit(1, 0.5, Item(str(path)))
    sheet = np.asarray(draw_contact_sheet(SearchResult("red", "visual", 1.0, [hit]))).astype(int)
    rows, columns = np.nonzero(np.abs(sheet - (255, 0, 0)).max(axis=2) < 9)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(width, height) == contact_sheet._CELL
    factor = contact_sheet._CELL / max(size)
    assert (width, height) == tuple(max(1, round(factor * side)) for side in size)
