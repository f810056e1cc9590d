"""Thumbnails, and the details that a source gives."""

from __future__ import annotations

import contextlib
import io
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, IndexReport, Item, StorageError, index, search
from pixmatcher.export.contact_sheet import draw_contact_sheet
from pixmatcher.images import fit_image, make_thumbnail, open_image, open_regular_file
from pixmatcher.searching import Query
from pixmatcher.sources import Entry
from support import TinyEncoder, fill_up, paint


class GivenEntries:
    """A source with given entries, whose files can be deleted."""

    spec = "given:/one"
    folder = None
    remote = False
    thumbnails = True

    def __init__(self, *entries: Entry) -> None:
        self.entries = list(entries)
        self.opened: list[str] = []

    def scan(self) -> Iterator[Entry]:
        yield from self.entries

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        self.opened.append(uri)
        return open_regular_file(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}


@pytest.fixture
def given(tmp_path: Path) -> GivenEntries:
    entries = [
        Entry(str(paint(tmp_path / f"{seed}.png", seed, size=(600, 400))), "1", label=f"label {seed}")
        for seed in range(5)
    ]
    return GivenEntries(*entries)


@pytest.fixture
def path(tmp_path: Path, tiny: TinyEncoder) -> Path:
    return tmp_path / "collection"


def refresh(given: GivenEntries, path: Path, **options: bool) -> IndexReport:
    return index(given, path, encoders=["tiny"], **options)


def kept(path: Path) -> dict[str, bytes | None]:
    """Return the thumbnail of each item by its uri."""
    with Collection.open(path) as collection:
        return {item.uri: collection.thumbnail(item.content_hash) for item in collection.items()}


def count(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path / "thumbnails.sqlite")) as connection:
        return int(connection.execute("SELECT count(*) FROM thumbnails").fetchone()[0])


def test_a_thumbnail_is_a_small_picture_without_metadata() -> None:
    image = Image.effect_noise((3000, 1000), 50).convert("RGB")
    image.info["exif"], image.info["comment"] = b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0", b"where I live"
    with Image.open(io.BytesIO(make_thumbnail(image))) as thumbnail:
        assert (thumbnail.format, thumbnail.mode, thumbnail.size) == ("JPEG", "RGB", (256, 85))
        assert {*thumbnail.info} <= {"jfif", "jfif_version", "jfif_density", "jfif_unit"}
    with Image.open(io.BytesIO(make_thumbnail(image.resize((40, 30))))) as thumbnail:
        assert thumbnail.size == (40, 30)
    assert image.size == (3000, 1000)


def test_thumbnails_are_stored_unless_switched_off(given: GivenEntries, path: Path, tmp_path: Path) -> None:
    refresh(given, path)
    for uri, jpeg in kept(path).items():
        assert jpeg is not None
        with Image.open(io.BytesIO(jpeg)) as thumbnail:
            assert thumbnail.size == (256, 171)
            expected = np.asarray(open_image(uri).image.resize(thumbnail.size)).astype(int)
            assert np.abs(np.asarray(thumbnail) - expected).mean() < 6
    refresh(given, tmp_path / "without", thumbnails=False)
    assert set(kept(tmp_path / "without").values()) == {None}
    assert not (tmp_path / "without" / "thumbnails.sqlite").exists()
    given.thumbnails = False
    refresh(given, tmp_path / "not needed")
    assert set(kept(tmp_path / "not needed").values()) == {None}


def test_thumbnails_of_removed_images_are_deleted(given: GivenEntries, path: Path) -> None:
    refresh(given, path)
    assert count(path) == 5
    paint(given.entries[0].uri, 77)
    given.entries = [replace(given.entries[0], version="2"), *given.entries[2:]]
    refresh(given, path)
    assert count(path) == 4
    assert None not in kept(path).values()
    with Collection.open(path) as collection:
        collection.forget("given:/one")
    assert count(path) == 0


def test_a_copy_of_an_image_without_a_thumbnail_gets_one(
    given: GivenEntries, path: Path, tmp_path: Path, tiny: TinyEncoder
) -> None:
    original = paint(tmp_path / "photos" / "original.png", 0, size=(600, 400))
    index(original.parent, path, encoders=["tiny"])
    given.entries = given.entries[:1]
    assert Path(given.entries[0].uri).read_bytes() == original.read_bytes()
    refresh(given, path)
    assert None not in kept(path).values()
    assert count(path) == 1


@pytest.mark.parametrize("damage", [b"this is no database", b"SQLite format 3\0" + b"\xff" * 5000, b""])
def test_a_damaged_thumbnail_file_loses_only_thumbnails(given: GivenEntries, path: Path, damage: bytes) -> None:
    refresh(given, path)
    (path / "thumbnails.sqlite").write_bytes(damage)
    with Collection.open(path) as collection:
        assert [hit.item.uri for hit in search(collection, Query(image=given.entries[3].uri), k=1).hits] == [
            given.entries[3].uri
        ]
        assert collection.thumbnail(next(collection.items()).content_hash) is None
        # A process that is killed at the start leaves an empty file.
        assert [problem.part for problem in collection.verify()] == (["thumbnails"] if damage else [])
        collection.repair()
        assert collection.verify() == []
    (path / "thumbnails.sqlite").write_bytes(damage)
    for entry in given.entries:
        paint(entry.uri, 100 + int(Path(entry.uri).stem))
    given.entries = [replace(entry, version="2") for entry in given.entries]
    refresh(given, path)
    assert None not in kept(path).values()
    with Collection.open(path) as collection:
        assert collection.verify() == []


def test_a_full_disk_ends_the_run_and_loses_nothing(
    given: GivenEntries, tiny: TinyEncoder, small_disk: Path | None
) -> None:
    if small_disk is None:
        pytest.skip("no file system can be mounted here")
    path = small_disk / "collection"
    first, given.entries = given.entries[1:], given.entries[:1]
    refresh(given, path)
    given.entries += first
    filler = fill_up(small_disk)
    with pytest.raises(StorageError, match="full"):
        refresh(given, path)
    filler.unlink()
    refresh(given, path)
    assert None not in kept(path).values()
    assert len(kept(path)) == 5


def test_new_details_of_the_source_are_stored_without_encoding(
    given: GivenEntries, path: Path, tiny: TinyEncoder
) -> None:
    given.entries[0] = replace(given.entries[0], caption="a", details={"author": "Anna \N{SNOWMAN}", "license": "CC0"})
    refresh(given, path)
    encoded, given.opened = tiny.encoded, []
    given.entries[0] = replace(given.entries[0], label="b", details={"author": "Berta"})
    given.entries[1] = replace(given.entries[1], caption="c")
    report = refresh(given, path)
    assert (report.changed, report.unchanged, report.added) == (2, 3, 0)
    assert (tiny.encoded, given.opened) == (encoded, [])
    with Collection.open(path) as collection:
        items = sorted(collection.items(), key=lambda item: item.uri)
        assert [(item.label, item.caption, item.details) for item in items[:3]] == [
            ("b", "a", {"author": "Berta"}),
            ("label 1", "c", {}),
            ("label 2", None, {}),
        ]
        hits = search(collection, Query(image=given.entries[0].uri), k=1).as_json()["hits"]
    assert hits[0]["caption"] == "a"
    assert hits[0]["details"] == {"author": "Berta"}
    assert refresh(given, path).changed == 0


def test_a_collection_of_a_version_without_details(given: GivenEntries, path: Path, tiny: TinyEncoder) -> None:
    refresh(given, path)
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as connection:
        connection.execute("ALTER TABLE items DROP COLUMN details")
        connection.execute("PRAGMA user_version = 0")  # schemas had no version numbers then
        connection.commit()
    with Collection.open(path) as reader:
        assert [item.details for item in reader.items()] == [{}] * 5
        given.entries[0] = replace(given.entries[0], details={"author": "Anna"})
        assert refresh(given, path).changed == 1
        assert {item.label for item in reader.items()} == {f"label {seed}" for seed in range(5)}
    with Collection.open(path) as collection:
        assert {item.label: item.details for item in collection.items() if item.details} == {
            "label 0": {"author": "Anna"}
        }
        assert collection.verify() == []


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_images_are_rotated_as_their_source_says(
    given: GivenEntries, path: Path, tiny: TinyEncoder, rotation: int
) -> None:
    plain = given.entries[0]
    oriented = Path(plain.uri).with_name("oriented.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(plain.uri).save(oriented, exif=exif, quality=95)
    same = shutil.copy(plain.uri, Path(plain.uri).with_name("same.png"))
    given.entries = [plain, replace(plain, uri=str(same), rotation=rotation)]
    given.entries.append(Entry(str(oriented), "1", rotation=rotation))
    refresh(given, path)
    with Collection.open(path) as collection:
        items = {item.uri: item for item in collection.items()}
        straight, turned, by_itself = (items[entry.uri] for entry in given.entries)
        assert straight.content_hash != turned.content_hash
        sizes = {90: (400, 600), 180: (600, 400), 270: (400, 600)}
        assert (turned.width, turned.height) == sizes[rotation]
        assert (by_itself.width, by_itself.height) == (400, 600)  # as its EXIF orientation says
        image = Image.open(plain.uri).convert("RGB")
        for item, expected in (
            (straight, image),
            (turned, image.rotate(rotation, expand=True)),
            (by_itself, image.rotate(-90, expand=True)),
        ):
            vector = tiny.encode_images(fit_image(expected, tiny.recipe)[None])["visual"]
            np.testing.assert_allclose(collection.embeddings([item.id], "visual"), vector, atol=0.02)
        jpeg = collection.thumbnail(turned.content_hash)
        assert jpeg is not None
        with Image.open(io.BytesIO(jpeg)) as thumbnail:
            assert (thumbnail.width > thumbnail.height) == (rotation == 180)


def test_a_contact_sheet_shows_images_that_are_not_available(given: GivenEntries, path: Path) -> None:
    given.entries = [replace(entry, details={"author": "Anna"}) for entry in given.entries]
    refresh(given, path)
    with Collection.open(path) as collection:
        result = search(collection, Query(image=given.entries[0].uri), k=5)
        at_hand = np.asarray(draw_contact_sheet(result, collection)).astype(int)
        for entry in given.entries:
            Path(entry.uri).unlink()
        gone = np.asarray(draw_contact_sheet(result, collection)).astype(int)
        without = np.asarray(draw_contact_sheet(result)).astype(int)
        hits = [replace(hit, item=replace(hit.item, uri=f"https://example.org/{hit.rank}.jpg")) for hit in result.hits]
        remote = np.asarray(draw_contact_sheet(replace(result, hits=hits), collection)).astype(int)
    assert np.abs(at_hand - gone).mean() < 4
    assert np.abs(at_hand - without).mean() > 20
    assert np.abs(remote - gone).mean() < 4


def test_items_with_equal_fields_are_equal(path: Path) -> None:
    assert Item("a", details={"author": "Anna"}) == Item("a", details={"author": "Anna"}) != Item("a")
