"""Contact sheets are drawn from real pictures, saved, and opened again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher.collection import Hit, Item
from pixmatcher.errors import PixMatcherError
from pixmatcher.export import contact_sheet
from pixmatcher.export.contact_sheet import check_sheet_path, draw_contact_sheet, save_contact_sheet
from pixmatcher.searching import SearchResult

RED, BLUE = (255, 0, 0), (0, 0, 255)


def result_of(uris: list[str], query: object = "a query") -> SearchResult:
    return SearchResult(query, "semantic", 1.0, [Hit(rank, 0.5, Item(uri)) for rank, uri in enumerate(uris, 1)])


def painted(folder: Path, name: str, colour: tuple[int, int, int]) -> str:
    path = folder / name
    Image.new("RGB", (300, 300), colour).save(path)
    return str(path)


def why_not(path: Path) -> str:
    with pytest.raises(PixMatcherError) as caught:
        check_sheet_path(path)
    with pytest.raises(PixMatcherError) as again:
        save_contact_sheet(result_of([]), path)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 4, 5, 30, 400, 1000])
@pytest.mark.parametrize("suffix", [".jpg", ".PNG"])
def test_a_sheet_has_room_for_any_number_of_hits(tmp_path: Path, count: int, suffix: str) -> None:
    shown = min(count, 400)
    red, blue = painted(tmp_path, "red.png", RED), painted(tmp_path, "blue.png", BLUE)
    missing = str(tmp_path / "missing.png")
    uris = [red, *[missing] * (shown - 2), *([blue] if shown > 1 else []), *[red] * (count - shown)]
    path = tmp_path / f"sheet{suffix}"
    save_contact_sheet(result_of(uris), path)
    with Image.open(path) as sheet:
        assert sheet.format == ("PNG" if suffix == ".PNG" else "JPEG")
        assert max(sheet.size) < 7000
        pixels = np.asarray(sheet.reduce(4)).astype(int)  # all cells begin and end at multiples of 4
    cell = 60 * 60  # whose edges a JPEG blurs
    assert abs((np.abs(pixels - RED).max(axis=2) < 9).sum() - cell) < cell / 10
    assert abs((np.abs(pixels - BLUE).max(axis=2) < 9).sum() - (cell if shown > 1 else 0)) < cell / 10
    assert abs((np.abs(pixels - contact_sheet._EMPTY).max(axis=2) < 3).sum() - max(0, shown - 2) * cell) < cell


def test_the_last_line_counts_the_hits_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = str(tmp_path / "missing.png")
    written: list[str] = []
    write = contact_sheet._write

    def noting(draw: object, at: object, text: str, *rest: object) -> None:
        written.append(text)
        write(draw, at, text, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(contact_sheet, "_write", noting)
    whole = draw_contact_sheet(result_of([missing] * 400))
    assert "first" not in written[-1]
    cut = draw_contact_sheet(result_of([missing] * 1500))
    assert written[-1] == "These are the first 400 of 1,500 hits."
    added = np.asarray(cut)[whole.height :]
    assert (added < 100).any()  # ink
    assert (added[-1] == 255).all()  # no ink at the edge, so the line is complete


def test_an_unwritable_path_is_reported_at_once(tmp_path: Path) -> None:
    check_sheet_path(tmp_path / "sheet.JPEG")
    assert not (tmp_path / "sheet.JPEG").exists()
    for name in ("sheet.doc", "sheet", ".png", "sheet.png.gz"):
        assert "must end in .png or .jpg" in why_not(tmp_path / name)
    assert "does not exist" in why_not(tmp_path / "no" / "sheet.png")
    (tmp_path / "file").touch()
    assert "does not exist" in why_not(tmp_path / "file" / "sheet.png")
    (tmp_path / "folder.png").mkdir()
    assert "it is a folder" in why_not(tmp_path / "folder.png")
    if os.getuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "permission denied" in why_not(tmp_path / "closed" / "sheet.png")


def test_errors_when_saving_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PixMatcherError, match=r"cannot be written \(File name too long\): name another file\.$"):
        save_contact_sheet(result_of([]), tmp_path / ("x" * 300 + ".png"))
    if os.path.exists("/dev/full"):
        full = tmp_path / "full.png"
        full.symlink_to("/dev/full")
        with pytest.raises(
            PixMatcherError,
            match=r"cannot be written \(No space left on device\): make room, or name a file on another disk\.$",
        ):
            save_contact_sheet(result_of([]), full)
    old = tmp_path / "old.jpg"
    old.write_bytes(b"old")
    monkeypatch.setattr(contact_sheet, "draw_contact_sheet", lambda *_: Image.new("RGB", (70_000, 1)))
    with pytest.raises(
        PixMatcherError, match=r"cannot be written \(.+\): name another file\.$"
    ):  # more than a JPEG may have
        save_contact_sheet(result_of([]), old)
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 abc",
        "\u202eright to left\u202c \u2067isolated",
        "line\nline\r\ttab\0null\x1b[31mred\x7f\u2028",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f600\ufe0f \U0001f1e9\U0001f1ea",
        "a" + "\u0301" * 500,
        "\udcff\udce9 not Unicode",
        "\U0010ffff\ufffe\ue000",
        "x" * 5000,
        "\u05d0" * 5000,
    ],
)
def test_any_text_can_be_written(text: str) -> None:
    sheet = draw_contact_sheet(result_of([f"/nowhere/{text}.png"] * 2, query=text))
    assert sheet.size == draw_contact_sheet(result_of(["/nowhere/a.png"] * 2)).size
    draw_contact_sheet(result_of(["/nowhere/a.png"], query={"text": text, "image": text}))


def test_characters_of_all_kinds_can_be_written() -> None:
    chance = random.Random(0)
    for _ in range(30):
        names = ["".join(chr(chance.randrange(1, 0x110000)) for _ in range(30)) for _ in range(10)]
        draw_contact_sheet(result_of(names, query=names[0]))
