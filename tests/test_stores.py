"""Stores of other packages: passed as objects or declared as entry points, searched, and filled by indexing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from pixmatcher import Collection, CollectionError, Filter, Hit, Item, Query, classify, index, search
from pixmatcher.collection import (
    ComparisonResult,
    Failure,
    Neighbour,
    Store,
    StoredItems,
    WritableStore,
    open_collection,
)
from pixmatcher.records import EncoderRecord, Entry, Space
from pixmatcher.searching import search_similar
from support import TinyEncoder, cli, paint, paint_many

Float32 = npt.NDArray[np.float32]


class MemoryStore:
    """A store in memory that compares a query with all embeddings. It uses nothing of `Collection`."""

    opened: ClassVar[dict[str, MemoryStore]] = {}
    """What `memory:NAME` opens, by name."""

    def __init__(self, name: str = "photos") -> None:
        self.path = Path(f"memory:{name}")
        self.encoders = (EncoderRecord(TinyEncoder.name, TinyEncoder.fingerprint, TinyEncoder.spaces),)
        self.spaces: dict[str, Space] = {space.name: space for space in TinyEncoder.spaces}
        self.items: dict[int, Item] = {}
        self.source_of: dict[int, str] = {}
        self.vectors: dict[str, dict[int, Float32]] = {name: {} for name in self.spaces}
        self.names: dict[str, str] = {}
        self.failed: dict[str, tuple[str, Failure]] = {}
        self.known_sources: list[str] = []
        self.closed = 0

    def __len__(self) -> int:
        return len(self.items)

    def search(
        self,
        vector: npt.ArrayLike,
        *,
        space: str,
        k: int = 12,
        min_score: float | None = None,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        allowed = None if filter is None or filter.labels is None else self.labels_called(filter.labels)
        scores = {
            item_id: float(stored @ np.asarray(vector, np.float32))
            for item_id, stored in self.vectors[space].items()
            if allowed is None or self.items[item_id].label in allowed
        }
        best = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))[:k]
        return [
            Hit(rank, scores[item_id], self.items[item_id])
            for rank, item_id in enumerate(best, start=1)
            if min_score is None or scores[item_id] >= min_score
        ]

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        hits = [hit for hit in self.search(vector, space=space, k=len(self)) if hit.item.label is not None]
        return [Neighbour(hit.item.label or "", hit.score, hit.item) for hit in hits[:k]]

    def embeddings(self, ids: Iterable[int], space: str) -> Float32:
        return np.array([self.vectors[space][item_id] for item_id in ids])

    def label_names(self) -> dict[str, str]:
        return dict(self.names)

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        wanted = {*texts}
        labels = {item.label for item in self.items.values() if item.label is not None}
        return {label for label in labels if label in wanted or self.names.get(label) in wanted}

    def thumbnail(self, content_hash: str) -> bytes | None:
        return None

    def close(self) -> None:
        self.closed += 1

    # Writing

    def begin_writing(self) -> None:
        pass

    def sources(self) -> list[str]:
        return self.known_sources

    def compare_sources(self, sources: Sequence[str]) -> MemoryComparison:
        self.known_sources += [source for source in sources if source not in self.known_sources]
        return MemoryComparison(self, sources)

    def set_label_names(self, names: Mapping[str, str]) -> None:
        self.names.update(names)

    def remove(self, ids: Iterable[int]) -> int:
        removed = [item_id for item_id in ids if self.items.pop(item_id, None) is not None]
        for stored in self.vectors.values():
            for item_id in removed:
                del stored[item_id]
        return len(removed)

    def update_indexes(self, *, progress: object = None) -> None:
        pass

    def put(self, item: Item, source: str, vectors: Mapping[str, Float32]) -> bool:
        """Store an item; return whether it replaced one."""
        old = next((item_id for item_id, other in self.items.items() if other.uri == item.uri), None)
        item_id = old or max(self.items, default=0) + 1
        self.items[item_id] = replace(item, id=item_id)
        self.source_of[item_id] = source
        for space, vector in vectors.items():
            self.vectors[space][item_id] = vector
        self.failed.pop(item.uri, None)
        return old is not None


class MemoryComparison:
    def __init__(self, store: MemoryStore, sources: Sequence[str]) -> None:
        self._store = store
        self._sources = list(sources)
        self._seen: dict[str, tuple[str, Entry]] = {}
        self._pending: list[tuple[str, Entry]] = []
        self._missing: list[int] = []

    def add_entries(self, source: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._seen.setdefault(entry.uri, (source, entry))

    def compare(
        self,
        *,
        unknown_paths: Sequence[str] = (),
        unknown_sources: Sequence[str] = (),
        missing: Sequence[int] = (),
        decoder_capabilities: str = "",
        retry_failed: bool = False,
    ) -> ComparisonResult:
        stored = {item.uri: item for item in self._store.items.values()}
        unchanged = 0
        for uri, (source, entry) in self._seen.items():
            if uri in stored and stored[uri].version == entry.version:
                unchanged += 1
            elif retry_failed or uri not in self._store.failed or self._store.failed[uri][1].version != entry.version:
                self._pending.append((source, entry))
        self._missing = [
            item_id
            for item_id, item in self._store.items.items()
            if item.uri not in self._seen and self._store.source_of[item_id] not in unknown_sources
        ]
        self._missing = [item_id for item_id in self._missing if self._store.source_of[item_id] in self._sources]
        return ComparisonResult(unchanged, 0, len(self._pending))

    def other_sources(self) -> list[str]:
        return [source for source in self._store.known_sources if source not in self._sources]

    def item_count(self, source: str) -> int:
        return [*self._store.source_of.values()].count(source)

    def unlisted_items(self, sources: Sequence[str]) -> Iterator[tuple[int, str]]:
        return iter(())

    def pending(self, source: str) -> Iterator[Entry]:
        return (entry for listed_by, entry in self._pending if listed_by == source)

    def missing(self) -> list[int]:
        return self._missing

    def failures(self) -> list[Failure]:
        return [failure for source, failure in self._store.failed.values() if source in self._sources]

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        return {item.content_hash for item in list(self._store.items.values())}.intersection(content_hashes)

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        arrays = {space: np.asarray(values, np.float32) for space, values in embeddings.items()}
        changed = [
            self._store.put(item, source, {space: values[row] for space, values in arrays.items()})
            for row, item in enumerate(items)
        ]
        return StoredItems(added=changed.count(False), changed=changed.count(True))

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        added = changed = 0
        for item in items:
            (same, *_) = [i for i, other in self._store.items.items() if other.content_hash == item.content_hash]
            vectors = {space: stored[same] for space, stored in self._store.vectors.items()}
            if self._store.put(item, source, vectors):
                changed += 1
            else:
                added += 1
        return StoredItems(added=added, changed=changed)

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        self._store.failed.update({failure.uri: (source, failure) for failure in failures})
        uris = {*remove}
        return self._store.remove([item_id for item_id, item in self._store.items.items() if item.uri in uris])


def opened_memory(name: str) -> MemoryStore:
    """The function of the entry point `memory`."""
    return MemoryStore.opened.setdefault(name, MemoryStore(name))


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
        "[pixmatcher.stores]\nmemory = test_stores:opened_memory\nabsent = no_such_module:Store\n"
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
