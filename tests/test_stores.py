"""Stores of other packages: passed as objects or declared as entry points, searched, and filled by indexing."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from memory_store import MemoryStore
from pixmatcher import Collection, CollectionError, Hit, Query, classify, index, search
from pixmatcher.collection import (
    Store,
    WritableStore,
    open_collection,
)
from pixmatcher.searching import search_similar
from support import TinyEncoder, cli, paint, paint_many


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint_many(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Entry points of an installed package: `memory`, and three that are broken."""
    info = tmp_path / "site" / "memory_store-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pixmatcher.stores]\nmemory = memory_store:opened_memory\nabsent = no_such_module:Store\n"
        "failing = test_stores:failing_store\nother = test_stores:other_store\nreader = test_stores:reading_store\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "test_stores", sys.modules[__name__])
    MemoryStore.opened.clear()
    yield
    MemoryStore.opened.clear()


def failing_store(rest: str) -> MemoryStore:
    raise ConnectionError("no server there")


def other_store(rest: str) -> object:
    return SimpleNamespace(path=Path(rest), encoders=(), spaces={}, close=lambda: None)


def reading_store(rest: str) -> object:
    names = (
        "search",
        "nearest_labelled",
        "embeddings",
        "label_names",
        "labels_called",
        "thumbnail",
        "close",
        "__len__",
    )
    inner = MemoryStore(rest)
    members = {
        name: (lambda self, *args, name=name, **options: getattr(inner, name)(*args, **options)) for name in names
    }
    return type("Reader", (), {**members, "path": inner.path, "encoders": inner.encoders, "spaces": inner.spaces})()


def uris(hits: Sequence[Hit]) -> list[str]:
    return [hit.item.uri for hit in hits]


def test_collections_and_others_are_stores(photos: Path, tiny: TinyEncoder) -> None:
    index(photos, encoders=["tiny"])
    with Collection.open(photos) as collection:
        assert isinstance(collection, WritableStore)
    assert isinstance(MemoryStore(), WritableStore)
    assert isinstance(reading_store("x"), Store)
    assert not isinstance(reading_store("x"), WritableStore)


def test_a_store_is_indexed_and_searched_as_a_collection_is(photos: Path, tiny: TinyEncoder) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    store = MemoryStore()
    report = index(photos, store)
    assert (report.added, report.total, len(report.failures)) == (6, 6, 1)
    assert store.closed == 0
    index(photos, photos.parent / "folder", encoders=["tiny"])
    with Collection.open(photos.parent / "folder") as collection:
        for query in (Query(image=str(photos / "00003.png")), Query("a sentence")):
            expected = search(collection, query, k=4)
            found = search(store, query, k=4)
            assert uris(found.hits) == uris(expected.hits)
            np.testing.assert_allclose(
                [hit.score for hit in found.hits], [hit.score for hit in expected.hits], atol=2e-3
            )
            assert found.space == expected.space
        own = {item.uri: item.id for item in collection.items()}
        for item_id, item in store.items.items():
            expected = search_similar(collection, own[item.uri], k=3)
            assert uris(search_similar(store, item_id, k=3).hits) == uris(expected.hits)


def test_a_store_is_refreshed(photos: Path, tiny: TinyEncoder) -> None:
    store = MemoryStore()
    index(photos, store)
    assert index(photos, store).unchanged == 6
    (photos / "00000.png").unlink()
    paint(photos / "00001.png", 77)
    paint(photos / "new.png", 78)
    (photos / "copy.png").write_bytes((photos / "00002.png").read_bytes())
    report = index(None, store)
    assert (report.removed, report.changed, report.added, report.unchanged, report.total) == (1, 1, 2, 4, 7)


def test_categories_of_a_store(photos: Path, tiny: TinyEncoder) -> None:
    store = MemoryStore()
    index(photos, store)
    with pytest.raises(CollectionError, match="No image in memory:photos has a label"):
        classify(store, Query(image=str(photos / "00001.png")))
    store.items = {item_id: replace(item, label=f"label {item_id % 2}") for item_id, item in store.items.items()}
    store.set_label_names({"label 1": "the odd ones"})
    found = classify(store, Query(image=str(photos / "00000.png")))
    assert found.categories[0].name == "the odd ones"


@pytest.mark.usefixtures("installed")
def test_an_entry_point_opens_a_store(photos: Path, tiny: TinyEncoder) -> None:
    report = index(photos, "memory:holiday 2026/x")
    assert report.added == 6
    store = open_collection("memory:holiday 2026/x")
    assert store is MemoryStore.opened["holiday 2026/x"]
    assert MemoryStore.opened["holiday 2026/x"].closed == 1
    assert len(search(store, "a sentence").hits) == 6


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "unknown:x",
            r"no installed package declares a store 'unknown' \(declared: absent, failing, http, https, memory, ",
        ),
        ("absent:x", "memory-store declares 'absent' .* cannot be imported .*: repair or uninstall the package"),
        ("failing:x", r"The store 'failing' cannot open 'x' \(ConnectionError: no server there\)"),
        ("other:x", "lacks __len__, embeddings, label_names, labels_called, nearest_labelled, search, thumbnail"),
    ],
)
def test_a_missing_or_broken_store_is_one_sentence(reference: str, message: str) -> None:
    with pytest.raises(CollectionError, match=message) as error:
        open_collection(reference)
    assert "\n" not in str(error.value)


def test_a_new_folder_whose_name_looks_like_a_store(
    photos: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CollectionError, match=r"or write \./photos:2026 for a folder of that name\.$"):
        open_collection("photos:2026")
    index(photos, "photos:2026", encoders=["tiny"])
    with open_collection("photos:2026") as collection:
        assert len(collection)


@pytest.mark.usefixtures("installed")
def test_a_store_that_can_only_be_searched_is_not_indexed(photos: Path) -> None:
    with pytest.raises(CollectionError, match="reader:x can only be searched"):
        index(photos, "reader:x")


@pytest.mark.usefixtures("installed")
def test_a_folder_wins_over_a_store_of_its_name(
    tmp_path: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint_many(tmp_path / "memory:x", 2)
    index("memory:x", encoders=["tiny"])
    for reference in ("memory:x", tmp_path / "memory:x"):
        with Collection.open(reference) as collection:
            assert len(collection) == 2
        opened = open_collection(reference)
        assert isinstance(opened, Collection)
        opened.close()
    assert not MemoryStore.opened


def test_folders_are_opened_as_before(photos: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    index(photos, encoders=["tiny"])
    monkeypatch.chdir(photos)
    for reference in (None, photos, str(photos), photos / ".pixmatcher"):
        opened = open_collection(reference)
        assert isinstance(opened, Collection)
        assert len(opened) == 6
        opened.close()
    with pytest.raises(CollectionError, match="There is no collection in"):
        open_collection(photos.parent / "elsewhere")
    assert cli("info", "-c", photos).returncode == 0
