"""What every store must do: tests of the protocols, which a test class of each store inherits.

A class has the fixture `store`, which returns a new store for the encoder of the fixture `tiny`. `SearchedStoreSuite`
is for stores that can be indexed and searched, `ReadableStoreSuite` for those that can also be listed. The results of a
store are held against those of a collection in a folder, with an exact search.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, CollectionError, Filter, Query, classify, index, search
from pixmatcher._text import as_unicode
from pixmatcher.collection import ForgetsSources, KeepsFolderNotes, ReadableStore, Store, WritableStore
from pixmatcher.indexing import IndexReport
from pixmatcher.records import Entry
from pixmatcher.searching import SearchOptions, search_similar
from support import TinyEncoder, paint, paint_many

HARMFUL = (
    '" or id > 0 or label == "',
    "it's",
    "back\\slash\\",
    "tab\tand\nnew\rline",
    "nul\0x\x1a\x7f",
    "é 猫 🐈",
    "%_*{a}",
    "",
)
"""Labels that would change a condition in which they were not quoted."""


FOLDERS = ("a", "a/b", "ab", 'quote" or id > 0', "c\\d", "line\nbreak", os.fsdecode(b"\xff"))
"""Names of folders, in part those that would change a condition."""


class ListedSource:
    """A source of painted images with the given labels and captions; `entries` can change between two runs."""

    folder = None
    remote = False
    thumbnails = True

    def __init__(self, labels: Mapping[str, str | None], place: str = "list://x/") -> None:
        self.spec = "list:labels"
        self.entries = {f"{place}{name}": Entry(f"{place}{name}", "1", label=label) for name, label in labels.items()}
        self.names: dict[str, str] = {}

    def scan(self) -> Iterator[Entry]:
        yield from self.entries.values()

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        fields = np.random.default_rng([*os.fsencode(uri)]).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(fields).resize((40, 30), Image.Resampling.NEAREST).save(file, "PNG")
        file.seek(0)
        return file

    def label_names(self) -> Mapping[str, str]:
        return self.names


def unit_vectors(count: int, dimension: int, seed: int = 1) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def first_space(store: Store) -> str:
    return next(iter(store.spaces))


def counts(report: IndexReport) -> tuple[int, int, int, int, int]:
    return report.added, report.changed, report.moved, report.removed, report.unchanged


class SearchedStoreSuite:
    """For a store that can be indexed and searched: `WritableStore`."""

    @pytest.fixture
    def photos(self, tmp_path: Path) -> Path:
        paint_many(tmp_path / "photos", 12)
        return tmp_path / "photos"

    @pytest.fixture
    def local(self, tmp_path: Path, tiny: TinyEncoder) -> Iterator[Collection]:
        """A collection in a folder, to compare results with."""
        with Collection.create(tmp_path / "local", [tiny]) as collection:
            yield collection

    def assert_same_hits(
        self,
        store: WritableStore,
        local: Collection,
        *,
        k: int = 5,
        filter: Filter | None = None,
        seeds: range = range(4),
    ) -> None:
        """Compare the hits of random queries, in each space, with those of an exact search in a folder."""
        for space in local.spaces.values():
            for seed in seeds:
                (vector,) = unit_vectors(1, space.dimension, seed)
                expected = local.search(vector, space=space.name, k=k, filter=filter, exact=True)
                found = store.search(vector, space=space.name, k=k, filter=filter, exact=True)
                assert [hit.rank for hit in found] == [*range(1, len(found) + 1)]
                scores = [hit.score for hit in found]
                assert scores == pytest.approx([hit.score for hit in expected], abs=2e-3)
                # Which of several items with the score of the last one is a hit, is a matter of the ids.
                lowest = scores[-1] + 4e-3 if scores else 0
                assert {h.item.uri for h in found if h.score > lowest} == {
                    h.item.uri for h in expected if h.score > lowest
                }
                nearest = {hit.item.uri: hit.score for hit in expected}
                for hit in found:
                    assert hit.score == pytest.approx(nearest.get(hit.item.uri, hit.score), abs=2e-3)

    def test_it_has_the_methods(self, store: WritableStore) -> None:
        assert isinstance(store, WritableStore)
        assert len(store) == 0
        assert str(store.path)

    def test_images_are_indexed_once(self, store: WritableStore, photos: Path, tiny: TinyEncoder) -> None:
        (photos / "broken.jpg").write_bytes(b"no image")
        report = index(photos, store)
        assert counts(report) == (12, 0, 0, 0, 0)
        assert report.total == len(store) == 12
        assert [Path(failure.uri).name for failure in report.failures] == ["broken.jpg"]
        encoded = tiny.encoded
        report = index(None, store)
        assert counts(report) == (0, 0, 0, 0, 12)
        assert [Path(failure.uri).name for failure in report.failures] == ["broken.jpg"]
        assert tiny.encoded == encoded

    def test_an_image_that_is_repaired_is_no_failure_any_more(
        self, store: WritableStore, photos: Path, tiny: TinyEncoder
    ) -> None:
        (photos / "broken.png").write_bytes(b"no image")
        index(photos, store)
        paint(photos / "broken.png", 99)
        report = index(photos, store)
        assert (report.added, report.failures) == (1, [])
        (photos / "worse.png").write_bytes(b"no image")
        assert len(index(photos, store).failures) == 1
        (photos / "worse.png").unlink()
        assert index(photos, store).failures == []

    def test_changed_new_deleted_and_copied_images(self, store: WritableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        (photos / "00000.png").unlink()
        paint(photos / "00001.png", 77)
        paint(photos / "new.png", 78)
        (photos / "copy.png").write_bytes((photos / "00002.png").read_bytes())
        encoded = tiny.encoded
        report = index(None, store)
        assert counts(report) == (2, 1, 0, 1, 10)
        assert (report.total, len(store), tiny.encoded - encoded) == (13, 13, 2)
        space = first_space(store)
        (vector,) = unit_vectors(1, store.spaces[space].dimension)
        hits = store.search(vector, space=space, k=13)
        same = [hit for hit in hits if Path(hit.item.uri).name in ("00002.png", "copy.png")]
        assert same[0].score == same[1].score
        assert same[0].rank == same[1].rank - 1
        assert same[0].item.id < same[1].item.id

    def test_hits_are_those_of_an_exact_search(
        self, store: WritableStore, local: Collection, photos: Path, tiny: TinyEncoder
    ) -> None:
        paint_many(photos, 60, first=100)
        index(photos, store)
        index(photos, local)
        for k in (1, 7, 72, 200):
            self.assert_same_hits(store, local, k=k)
        for query in (Query(image=str(photos / "00003.png")), Query("a sentence")):
            if query.image is not None and "visual" not in store.spaces:
                continue
            expected, found = search(local, query, k=4), search(store, query, k=4)
            assert [hit.item.uri for hit in found.hits] == [hit.item.uri for hit in expected.hits]
            assert found.space == expected.space

    def test_similar_images_and_embeddings(
        self, store: WritableStore, local: Collection, photos: Path, tiny: TinyEncoder
    ) -> None:
        index(photos, store)
        index(photos, local)
        space = first_space(store)
        (vector,) = unit_vectors(1, store.spaces[space].dimension)
        hits = store.search(vector, space=space, k=12)
        own = {item.uri: item.id for item in local.items()}
        ids = [hit.item.id for hit in hits][::-1]
        embeddings = store.embeddings(ids, space)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(
            embeddings, local.embeddings([own[hit.item.uri] for hit in hits[::-1]], space), atol=1e-3
        )
        for hit in hits[:4]:
            expected = search_similar(local, own[hit.item.uri], SearchOptions(k=3, space=space))
            found = search_similar(store, hit.item.id, SearchOptions(k=3, space=space))
            assert [each.item.uri for each in found.hits] == [each.item.uri for each in expected.hits]

    def test_a_lowest_score(self, store: WritableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        space = first_space(store)
        (vector,) = unit_vectors(1, store.spaces[space].dimension)
        hits = store.search(vector, space=space, k=12)
        assert store.search(vector, space=space, k=12, min_score=hits[3].score) == hits[:4]
        assert store.search(vector, space=space, k=12, min_score=hits[0].score + 1) == []

    def test_labels_of_all_kinds_are_filters(self, store: WritableStore, tiny: TinyEncoder) -> None:
        source = ListedSource({f"{number}": label for number, label in enumerate(HARMFUL)} | {"none": None})
        index(source, store)
        space = first_space(store)
        (vector,) = unit_vectors(1, store.spaces[space].dimension)
        for number, label in enumerate(HARMFUL):
            assert store.labels_called([label]) == {label}
            hits = store.search(vector, space=space, k=20, filter=Filter(labels=(label,)))
            assert [(hit.item.uri, hit.item.label) for hit in hits] == [(f"list://x/{number}", label)]
        assert store.labels_called(["no such label"]) == set()
        assert store.search(vector, space=space, filter=Filter(labels=("no such label",))) == []

    def test_names_of_labels_and_categories(self, store: WritableStore, tiny: TinyEncoder) -> None:
        source = ListedSource({f"{number}": f"n{number % 3}" for number in range(9)})
        index(source, store)
        found = classify(store, Query(image=source.open("list://x/4").read()), k=3)
        assert found.categories[0].label == "n1"
        store.set_label_names({"n1": "a cat, a tiger"})
        store.set_label_names({"n2": "a dog"})
        assert store.label_names() == {"n1": "a cat, a tiger", "n2": "a dog"}

    def test_new_labels_need_no_encoding(self, store: WritableStore, tiny: TinyEncoder) -> None:
        source = ListedSource({f"{number}": "old" for number in range(4)})
        index(source, store)
        encoded = tiny.encoded
        uri = "list://x/1"
        source.entries[uri] = Entry(uri, "1", label="new", caption="a caption", details={"author": "A"})
        if isinstance(store, ReadableStore):
            report = index(source, store)
            assert (report.changed, report.unchanged) == (1, 3)
            (item,) = [item for item in store.items() if item.label == "new"]
            assert (item.uri, item.caption, dict(item.details)) == (uri, "a caption", {"author": "A"})
        assert tiny.encoded == encoded

    def test_wrong_calls(self, store: WritableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        space = first_space(store)
        dimension = store.spaces[space].dimension
        if not isinstance(store, ReadableStore):
            pytest.skip("a store that can only be indexed and searched may check less")
        with pytest.raises(CollectionError, match="does not exist"):
            store.search(np.zeros(dimension), space="nowhere")
        with pytest.raises(CollectionError, match="does not fit"):
            store.search(np.zeros(dimension + 1), space=space)
        with pytest.raises(CollectionError, match="1 or more"):
            store.search(np.zeros(dimension), space=space, k=0)
        with pytest.raises(CollectionError, match="No image of this collection has the id 12345"):
            store.embeddings([12345], space)

    def test_removed_items_are_not_found(self, store: WritableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        space = first_space(store)
        (vector,) = unit_vectors(1, store.spaces[space].dimension)
        hits = store.search(vector, space=space, k=12)
        assert store.remove([hits[0].item.id, hits[1].item.id, 12345]) == 2
        assert [hit.item.uri for hit in store.search(vector, space=space, k=12)] == [hit.item.uri for hit in hits[2:]]
        assert len(store) == 10


class ReadableStoreSuite(SearchedStoreSuite):
    """For a store that can also be listed: `ReadableStore`, and the optional protocols that it has."""

    def test_it_has_the_methods(self, store: WritableStore) -> None:
        super().test_it_has_the_methods(store)
        assert isinstance(store, ReadableStore)

    @pytest.fixture
    def both(
        self, store: WritableStore, local: Collection, tmp_path: Path, tiny: TinyEncoder
    ) -> tuple[WritableStore, Collection]:
        """The store and a collection in a folder with the same items: of several folders, sizes and dates."""
        root = tmp_path / "photos"
        for number, folder in enumerate(
            ("a", "a/b", "ab", 'quote" or id > 0', "c\\d", "line\nbreak", os.fsdecode(b"\xff"))
        ):
            for place in range(3):
                seed = 10 * number + place
                path = paint(root / folder / f"{seed}.png", seed, size=(40 + seed, 30 + 10 * place))
                os.utime(path, (86400 * 400 * seed, 86400 * 400 * seed))
        paint(root / os.fsdecode(b"caf\xe9.png"), 500)
        index(root, store)
        index(root, local)
        return store, local

    def test_filters_are_those_of_a_folder(self, both: tuple[WritableStore, Collection], tmp_path: Path) -> None:
        store, local = both
        root = tmp_path / "photos"
        filters = [
            *(
                Filter(folder=str(root / name))
                for name in ("a", "ab", 'quote" or id > 0', "c\\d", "line\nbreak", "none")
            ),
            *(
                Filter(folder=name)
                for name in (str(root), "/", str(root / os.fsdecode(b"\xff")), "https://a/b", "x\0y")
            ),
            Filter(after="1985"),
            Filter(before="1985-06"),
            Filter(after="1980-01-01", before="2000-01-01T12:00"),
            Filter(min_width=60),
            Filter(min_height=40, min_width=0),
            Filter(folder=str(root / "a"), after="1971", min_width=41),
            Filter(labels=("none",)),
        ]
        for filter in filters:
            self.assert_same_hits(store, local, k=50, filter=filter, seeds=range(2))

    def test_items_are_those_of_a_folder(self, both: tuple[ReadableStore, Collection]) -> None:
        store, local = both
        found, expected = ({item.uri: item for item in each.items()} for each in (store, local))
        assert found.keys() == expected.keys()
        fields = (
            "content_hash",
            "version",
            "bytes",
            "width",
            "height",
            "format",
            "label",
            "modified",
            "taken",
            "missing",
        )
        for uri, item in expected.items():
            for field in fields:
                assert getattr(found[uri], field) == getattr(item, field), (uri, field)
            assert found[uri].added
        ids = store.ids()
        assert ids.dtype == np.int64
        assert ids.tolist() == sorted(item.id for item in found.values()) == [item.id for item in store.items()]
        some = ids[::3].tolist()
        assert store.items_by_id([*some, 12345]) == {item.id: item for item in found.values() if item.id in some}
        assert store.labels_by_id([*some, 12345]) == dict.fromkeys(some)
        assert store.failures() == local.failures() == []
        assert store.incomplete() == []

    def test_moved_images_are_not_encoded_again(self, store: ReadableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        encoded = tiny.encoded
        (photos / "below").mkdir()
        for name in ("00004.png", "00007.png"):
            (photos / name).rename(photos / "below" / name)
        (photos / "00001.png").rename(photos / "00000.png")
        report = index(None, store)
        assert (*counts(report), report.total, tiny.encoded) == (0, 0, 3, 0, 8, 11, encoded)
        names = {str(Path(item.uri).relative_to(photos)) for item in store.items()}
        kept = {f"{number:05}.png" for number in range(12)} - {"00001.png", "00004.png", "00007.png"}
        assert names == kept | {"below/00004.png", "below/00007.png"}
        assert counts(index(None, store)) == (0, 0, 0, 0, 11)

    def test_a_label_that_is_not_unicode_is_found(self, store: ReadableStore, tiny: TinyEncoder) -> None:
        index(ListedSource({"1": "a\udcff", "2": "b"}), store)
        (vector,) = unit_vectors(1, store.spaces[first_space(store)].dimension)
        for label in ("a\udcff", as_unicode("a\udcff")):
            assert store.labels_called([label]) == {as_unicode("a\udcff")}
            hits = store.search(vector, space=first_space(store), filter=Filter(labels=(label,)))
            assert [hit.item.uri for hit in hits] == ["list://x/1"]

    def test_labels_are_counted(self, store: ReadableStore, tiny: TinyEncoder) -> None:
        labels = {f"{number}": ["cat", "dog", None][number % 3] for number in range(8)}
        index(ListedSource(labels), store)
        assert store.label_counts() == {"cat": 3, "dog": 3}
        index(ListedSource({**labels, "9": "dog"}), store)
        assert [*store.label_counts().items()] == [("dog", 4), ("cat", 3)]

    def test_neighbours_have_a_label(self, store: ReadableStore, local: Collection, tiny: TinyEncoder) -> None:
        labels = {f"{number}": None if number % 5 == 0 else f"label {number % 7}" for number in range(40)}
        index(ListedSource(labels), store)
        index(ListedSource(labels), local)
        space = first_space(store)
        for k, wanted in ((1, 1), (3, 7), (10, 9), (100, 3)):
            (vector,) = unit_vectors(1, store.spaces[space].dimension, k)
            found = store.nearest_labelled(vector, space=space, k=k, labels=wanted)
            expected = local.nearest_labelled(vector, space=space, k=k, labels=wanted)
            assert [(each.label, each.item and each.item.uri) for each in found] == [
                (each.label, each.item and each.item.uri) for each in expected
            ]
            assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=2e-3)

    def test_changes_are_counted(self, store: ReadableStore, photos: Path, tiny: TinyEncoder) -> None:
        index(photos, store)
        before = store.state()
        assert before.items == 12
        assert tuple(store.changes_since(before)) == (0, 0, 0)
        (photos / "00000.png").unlink()
        paint(photos / "00001.png", 77)
        paint(photos / "new.png", 78)
        paint(photos / "new2.png", 79)
        index(photos, store)
        assert tuple(store.changes_since(before)) == (2, 1, 1)
        assert store.state().generation > before.generation
        with store.snapshot() as generation:
            assert generation == store.state().generation

    def test_thumbnails_are_kept(self, store: ReadableStore, tiny: TinyEncoder) -> None:
        source = ListedSource({f"{number}": None for number in range(3)})
        index(source, store)
        (item, *_) = store.items()
        jpeg = store.thumbnail(item.content_hash)
        assert jpeg is not None
        assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
        assert store.thumbnail("0" * 64) is None

    def test_options_of_folders_are_kept(self, store: ReadableStore, photos: Path, tiny: TinyEncoder) -> None:
        if not isinstance(store, KeepsFolderNotes):
            pytest.skip("keeps no notes of folders")
        index(photos, store, exclude=["0000[0-3].png", os.fsdecode(b"\xff*")], hidden=True)
        paint(photos / ".hidden.png", 40)
        report = index(None, store)
        assert (report.added, report.total) == (1, 9)
        notes = store.folder_notes(str(photos))
        assert (notes.exclude, notes.hidden) == (("0000[0-3].png", os.fsdecode(b"\xff*")), True)

    def test_a_part_of_a_folder_is_forgotten(self, store: ReadableStore, photos: Path, tiny: TinyEncoder) -> None:
        if not isinstance(store, ForgetsSources):
            pytest.skip("forgets no sources")
        paint_many(photos / "below", 3, first=50)
        paint_many(photos / "below2", 2, first=60)
        index(photos, store)
        assert store.count_to_forget(str(photos / "below")) == 3
        assert store.forget(str(photos / "below")) == 3
        assert counts(index(None, store)) == (0, 0, 0, 0, 14)
        with pytest.raises(CollectionError, match="is not a source of"):
            store.forget("/nowhere")
        assert store.forget(str(photos)) == 14
        assert (len(store), store.sources()) == (0, [])
