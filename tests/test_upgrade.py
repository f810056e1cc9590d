"""Upgrades: other encoders for a collection, in place, while it is searched, and whatever stops the work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import (
    Calibration,
    Collection,
    CollectionError,
    CollectionLockedError,
    CollectionUpgradedError,
    EncoderError,
    Item,
    OutdatedCollectionError,
    Query,
    SearchOptions,
    SourceError,
    StorageError,
    classify,
    encoders,
    index,
    search,
    upgrade,
)
from pixmatcher.images import fit_image, open_image
from pixmatcher.maps.projection import load_projection, place_query, project
from pixmatcher.records import Space
from pixmatcher.searching import search_similar
from support import TinyEncoder, cli, fill_up, paint, paint_many, without_progress

HERE = str(Path(__file__).parent)


class NewTiny(TinyEncoder):
    """The next version of `TinyEncoder`: `visual` has other values, `semantic` another dimension, `colour` is new."""

    fingerprint = "tiny-2"
    spaces = (Space("visual", 48), Space("semantic", 12, text=True), Space("colour", 3))

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        former = super().encode_images(pixels)["visual"]
        return {"visual": -former, "semantic": former[:, :12].copy(), "colour": former[:, :3].copy()}

    def encode_texts(self, texts: list[str]) -> dict[str, np.ndarray]:  # type: ignore[override]
        return {"semantic": super().encode_texts(texts)["semantic"][:, :12]}


@pytest.fixture
def new(tiny: TinyEncoder) -> NewTiny:
    """The next version, which `release` registers."""
    return NewTiny()


def release(encoder: TinyEncoder) -> None:
    """Make an encoder the version of `tiny` that is available."""
    encoders.register_encoder("tiny", lambda: encoder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    paint_many(folder, 20)
    shutil.copy(folder / "00001.png", folder / "copy.png")
    return folder


@pytest.fixture
def indexed(photos: Path, tiny: TinyEncoder) -> Path:
    index(photos, encoders=["tiny"])
    return photos


def file_names(photos: Path) -> set[str]:
    folder = photos / ".pixmatcher"
    return {f"{part}/{path.name}" for part in ("vectors", "index") for path in (folder / part).iterdir()}


def names_of_edition(number: int, spaces: tuple[str, ...] = ("visual", "semantic", "colour")) -> set[str]:
    stems = [f"{space}.{number}" if number else space for space in spaces]
    return {f"vectors/{stem}.f16" for stem in stems} | {f"index/{s}{end}" for s in stems for end in (".faiss", ".json")}


def check(photos: Path, encoder: TinyEncoder) -> list[Item]:
    """Check that the collection is undamaged and has the embeddings of `encoder`; return its items."""
    with Collection.open(photos) as collection:
        assert collection.verify() == []
        assert [*collection.spaces.values()] == [*encoder.spaces]
        assert [record.fingerprint for record in collection.encoders] == [encoder.fingerprint]
        items = list(collection.items())
        for item in items:
            content = Path(item.uri).read_bytes()
            assert item.content_hash == hashlib.sha256(content).hexdigest()
            pixels = fit_image(open_image(content, min_side=encoder.recipe.min_side), encoder.recipe)[None]
            expected = type(encoder)().encode_images(pixels)  # `encoder` counts what the upgrade encodes
            for space, vectors in expected.items():
                np.testing.assert_allclose(collection.embeddings([item.id], space), vectors, atol=1e-3)
                assert len(collection.search(vectors[0], space=space, k=len(items))) == len(items)
            best = collection.search(expected["visual"][0], space="visual", k=1)[0]
            assert best.item.content_hash == item.content_hash
    return items


def test_a_new_version_of_the_encoder(indexed: Path, new: NewTiny) -> None:
    (indexed / "00002.png").unlink()
    index(indexed)
    before = check(indexed, TinyEncoder())
    size = sum(
        (indexed / ".pixmatcher" / "vectors" / f"{space}.f16").stat().st_size for space in ("visual", "semantic")
    )
    release(new)
    message = (
        f"{indexed / '.pixmatcher'} was made with another version of the encoder tiny: run `pixmatcher upgrade -c "
    )
    for call in (lambda: index(indexed), lambda: search(Collection.open(indexed), "a text")):
        with pytest.raises(OutdatedCollectionError) as error:
            call()
        assert str(error.value) == f"{message}{indexed / '.pixmatcher'}`."
    report = upgrade(indexed)
    assert (report.needed, report.finished, report.total) == (True, True, 20)
    assert (report.encoded, report.continued, report.removed, report.missing) == (20, 0, 0, [])
    assert new.encoded == 19  # the copy has the embedding of its original
    assert check(indexed, new) == before
    assert file_names(indexed) == names_of_edition(1)
    # The row of the removed image is not in the new files.
    assert (indexed / ".pixmatcher" / "vectors" / "visual.1.f16").stat().st_size == 20 * 48 * 2
    assert size == 21 * (48 + 24) * 2
    # Indexing goes on as usual.
    paint(indexed / "more.png", 99)
    assert index(indexed).added == 1
    assert len(check(indexed, new)) == 21


def test_a_second_upgrade_and_the_way_back(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    release(new)
    upgrade(indexed)
    with Collection.open(indexed) as collection:
        collection.remove([4])
    paint(indexed / "00003.png", 77)
    index(indexed)
    release(tiny)
    assert upgrade(indexed).finished
    check(indexed, tiny)
    assert file_names(indexed) == names_of_edition(2, ("visual", "semantic"))
    with Collection.open(indexed) as collection:
        assert collection.repair() == 0
    check(indexed, tiny)


def test_ids_labels_names_failures_sources_and_maps_stay(tmp_path: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n1", "n2"):
        for seed in range(6):
            paint(root / "train" / label / "images" / f"{label}_{seed}.JPEG", seed + 10 * (label == "n2"), kind="JPEG")
    (root / "train" / "n1" / "images" / "n1_9.JPEG").write_text("broken")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\tfirst\nn2\tsecond\n")
    spec, path = f"tiny-imagenet:{root}?split=train", tmp_path / "c"
    index(spec, path, encoders=["tiny"])

    def state() -> list[object]:
        with Collection.open(path) as collection:
            return [
                list(collection.items()),
                collection.label_names(),
                collection.label_counts(),
                collection.failures(),
                collection.sources(),
            ]

    before = state()
    with Collection.open(path) as collection:
        drawn = {space: project(collection, "pca", space=space) for space in ("visual", "semantic")}
    release(new)
    assert upgrade(path).finished
    assert state() == before
    with Collection.open(path) as collection:
        for space, old in drawn.items():
            kept = load_projection(collection, "pca", space=space)
            assert kept is not None
            np.testing.assert_array_equal(kept.points, old.points)
            assert (kept.computed, kept.stale) == (old.computed, 12)
            # Its axes are those of the former embeddings, so a query is placed by its nearest items.
            (vector,) = collection.embeddings([1], space)
            assert np.abs(kept.points).max() * 1.01 >= np.abs(place_query(kept, collection, vector)).max()
        image = root / "train" / "n2" / "images" / "n2_1.JPEG"
        assert classify(collection, Query(image=image), k=1).categories[0].name == "second"
        assert project(collection, "pca", refresh=True).stale == 0


def test_maps_of_spaces_that_disappear_are_deleted(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    release(new)
    upgrade(indexed)
    with Collection.open(indexed) as collection:
        for space in ("colour", "visual"):
            project(collection, "pca", space=space)
    release(tiny)
    upgrade(indexed)
    assert [path.name for path in (indexed / ".pixmatcher" / "maps").glob("*.map")] == ["visual-pca-20000.map"]


def test_the_target_of_an_index_stays(indexed: Path, new: NewTiny) -> None:
    from pixmatcher.vector_index import IndexTarget

    with Collection.open(indexed) as collection:
        collection.indexes.tune("visual", IndexTarget(recall=0.99))
    release(new)
    upgrade(indexed)
    with Collection.open(indexed) as collection:
        assert collection.indexes.target("visual").recall == 0.99
        assert collection.indexes.target("semantic") == IndexTarget()


def test_other_encoders(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    class Other(NewTiny):
        name = "own"
        fingerprint = "own-1"

    own = Other()
    with pytest.raises(CollectionError, match=r"`pixmatcher upgrade -c .* --encoder own`"):
        index(indexed, encoders=[own])
    report = upgrade(indexed, encoders=["tiny", own])
    assert [record.name for record in report.encoders] == ["tiny", "own"]
    with Collection.open(indexed) as collection:
        assert [*collection.spaces] == ["visual", "semantic", "visual-2", "semantic-2", "colour"]
        assert search(collection, "a text", SearchOptions(space="semantic-2"), encoders=[own]).hits
        assert collection.verify() == []
        np.testing.assert_allclose(collection.embeddings([3], "visual"), -collection.embeddings([3], "visual-2"))
    assert not upgrade(indexed, encoders=["tiny", own]).needed
    assert upgrade(indexed, encoders=[own]).finished
    check(indexed, own)
    Other.fingerprint = "own-2"
    with Collection.open(indexed) as collection, pytest.raises(OutdatedCollectionError, match=r"pixmatcher\.upgrade\("):
        search(collection, "a text", encoders=[own])


def test_calibrations_of_other_encoders_end(indexed: Path, tiny: TinyEncoder) -> None:
    """Also if both have the same fingerprint and a space of the same name."""
    same = type("Same", (TinyEncoder,), {"name": "same"})()
    found = {"text": Calibration(5.0, 1.0)}
    with Collection.open(indexed) as collection:
        collection.set_calibrations("semantic", found)  # type: ignore[arg-type]
    assert upgrade(indexed, encoders=["tiny", same]).finished
    with Collection.open(indexed) as collection:
        assert collection.calibrations() == {"semantic": found}
    assert upgrade(indexed, encoders=[same]).finished
    with Collection.open(indexed) as collection:
        assert collection.calibrations() == {}


class Own(TinyEncoder):
    name = "own"
    fingerprint = "own-1"
    spaces = (Space("own", 3),)

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"own": super().encode_images(pixels)["visual"][:, :3].copy()}


def test_embeddings_of_an_encoder_that_stays_are_copied(indexed: Path, tiny: TinyEncoder) -> None:
    own = Own()
    paint(indexed / "00004.png", 44)
    with (indexed / ".pixmatcher" / "vectors" / "semantic.f16").open("r+b") as file:
        file.seek(24 * 2 * 6)  # the row of 00006.png
        file.write(b"damaged")
    before = tiny.encoded
    (indexed / "00005.png").rename(indexed.parent / "aside.png")
    assert not upgrade(indexed, encoders=["tiny", own]).finished
    assert (tiny.encoded - before, own.encoded) == (2, 21)  # the changed and the damaged one by both
    (indexed.parent / "aside.png").rename(indexed / "00005.png")
    report = upgrade(indexed, encoders=["tiny", own])
    assert (report.finished, report.encoded, report.continued) == (True, 1, 20)
    assert (tiny.encoded - before, own.encoded) == (2, 22)
    with Collection.open(indexed) as collection:
        assert [*collection.spaces] == ["visual", "semantic", "own"]
        assert collection.verify() == []
        for item in collection.items():
            pixels = fit_image(open_image(item.uri, min_side=16), tiny.recipe)[None]
            for encoder in (TinyEncoder(), Own()):
                for space, vectors in encoder.encode_images(pixels).items():
                    np.testing.assert_allclose(collection.embeddings([item.id], space), vectors, atol=1e-3)
    # Without the new encoder nothing needs to be read.
    for path in indexed.glob("*.png"):
        path.rename(indexed.parent / path.name)
    assert upgrade(indexed, encoders=["tiny"]).finished
    assert (tiny.encoded - before, own.encoded) == (2, 22)
    for path in indexed.parent.glob("*.png"):
        path.rename(indexed / path.name)
    check(indexed, tiny)
    assert file_names(indexed) == names_of_edition(2, ("visual", "semantic"))


def test_no_embedding_can_be_copied(tmp_path: Path, tiny: TinyEncoder) -> None:
    """All images have changed, or the embeddings of all are damaged."""
    own, photos = Own(), tmp_path / "photos"
    paths = paint_many(photos, 3)
    index(photos, encoders=["tiny"])
    for seed, path in enumerate(paths):
        paint(path, 70 + seed)
    report = upgrade(photos, encoders=["tiny", own])
    assert (report.finished, report.encoded, tiny.encoded, own.encoded) == (True, 3, 6, 6)
    vectors = photos / ".pixmatcher" / "vectors" / "visual.1.f16"
    vectors.write_bytes(b"x" * vectors.stat().st_size)
    assert upgrade(photos, encoders=["tiny"]).finished
    assert tiny.encoded == 9
    check(photos, tiny)


def test_no_encoders_means_those_of_the_collection(indexed: Path, new: NewTiny) -> None:
    release(new)
    report = upgrade(indexed, encoders=[])
    assert (report.needed, report.finished) == (True, True)


def test_nothing_to_do(indexed: Path, tiny: TinyEncoder) -> None:
    before, encoded = file_names(indexed), tiny.encoded
    for options in ({}, {"encoders": []}, {"encoders": ["tiny"]}):
        report = upgrade(indexed, **options)  # type: ignore[arg-type]
        assert (report.needed, report.finished, report.encoded) == (False, True, 0)
    assert tiny.encoded == encoded
    assert file_names(indexed) == before


def test_an_empty_collection(tmp_path: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    Collection.create(tmp_path / "c", [tiny]).close()
    release(new)
    assert upgrade(tmp_path / "c").finished
    with Collection.open(tmp_path / "c") as collection:
        assert [record.fingerprint for record in collection.encoders] == ["tiny-2"]
        assert collection.verify() == []
        assert collection.search(np.ones(3), space="colour") == []
    paint_many(tmp_path / "photos", 2)
    assert index(tmp_path / "photos", tmp_path / "c").added == 2
    check(tmp_path / "c", new)


# Images that are not as they were


def test_missing_images_leave_the_upgrade_unfinished(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    aside = indexed.parent / "aside.png"
    (indexed / "00003.png").rename(aside)
    (indexed / "00001.png").unlink()  # its copy is available
    (indexed / "00005.png").write_text("no image any more")
    with Collection.open(indexed) as collection:
        ids = {item.uri: item.id for item in collection.items()}
    release(new)
    report = upgrade(indexed)
    assert (report.finished, report.encoded, report.removed) == (False, 19, 0)
    found = {Path(failure.uri).name: failure.reason for failure in report.missing}
    assert found == {"00003.png": "missing", "00005.png": "not an image"}
    release(tiny)
    with Collection.open(indexed) as collection:
        assert collection.verify() == []
        assert len(collection) == 21
        assert len(collection.search(np.ones(24), space="semantic", k=99)) == 21
        assert collection.failures() == []
    release(new)
    encoded = new.encoded
    aside.rename(indexed / "00003.png")
    paint(indexed / "00005.png", 5)
    report = upgrade(indexed)
    assert (report.finished, report.encoded, report.continued, report.missing) == (True, 2, 19, [])
    assert new.encoded == encoded + 2
    paint(indexed / "00001.png", 1)
    assert {item.uri: item.id for item in check(indexed, new)} == ids


def test_missing_images_are_removed_on_request(indexed: Path, new: NewTiny) -> None:
    (indexed / "00003.png").unlink()
    release(new)
    report = upgrade(indexed, without_missing=True)
    assert (report.finished, report.encoded, report.removed, report.total) == (True, 20, 1, 20)
    assert [Path(failure.uri).name for failure in report.missing] == ["00003.png"]
    assert len(check(indexed, new)) == 20


def test_an_unmounted_disk_removes_nothing(tmp_path: Path, photos: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    index(photos, tmp_path / "c", encoders=["tiny"])
    photos.rename(tmp_path / "elsewhere")
    release(new)
    for make_folder in (False, True):
        if make_folder:
            photos.mkdir()  # an empty mount point
        report = upgrade(tmp_path / "c", without_missing=True)
        assert (report.finished, report.encoded, report.removed, len(report.missing)) == (False, 0, 0, 21)
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection) == 21
    photos.rmdir()
    (tmp_path / "elsewhere").rename(photos)
    assert upgrade(tmp_path / "c").finished
    check(tmp_path / "c", new)


def test_a_missing_source_is_not_removed_with_single_missing_images(
    tmp_path: Path, photos: Path, tiny: TinyEncoder, new: NewTiny
) -> None:
    """Neither beside a source that can be read, nor after a run that encoded some of its images."""
    other, path = tmp_path / "other", tmp_path / "c"
    paint_many(other, 5, first=50)
    index([photos, other], path, encoders=["tiny"])
    release(new)
    (photos / "00003.png").unlink()
    other.rename(tmp_path / "aside")
    report = upgrade(path, without_missing=True)
    assert (report.finished, report.encoded, report.removed, report.total) == (False, 20, 0, 26)
    assert (len(report.missing), report.missing_sources) == (6, [str(other)])
    photos.rename(tmp_path / "photos aside")
    (tmp_path / "aside").rename(other)
    report = upgrade(path, without_missing=True)
    assert (report.finished, report.encoded, report.removed) == (False, 5, 0)
    assert report.missing_sources == [str(photos)]
    (tmp_path / "photos aside").rename(photos)
    other.rename(tmp_path / "aside")  # its images have been encoded
    report = upgrade(path, without_missing=True)
    assert (report.finished, report.encoded, report.removed, report.missing_sources) == (True, 0, 1, [])
    (tmp_path / "aside").rename(other)
    assert len(check(path, new)) == 25


def test_a_source_that_cannot_be_listed_completely_loses_nothing(
    tmp_path: Path, tiny: TinyEncoder, new: NewTiny
) -> None:
    from pixmatcher.sources import Entry
    from test_thumbnails import GivenEntries

    class Interrupted(GivenEntries):
        def scan(self) -> Iterator[Entry]:
            yield self.entries[0]
            raise SourceError("The list ends here: get it again.")

    entries = [Entry(str(paint(tmp_path / f"{seed}.png", seed)), "1") for seed in range(3)]
    given, path = GivenEntries(*entries), tmp_path / "c"
    index(given, path, encoders=["tiny"])
    release(new)
    report = upgrade(path, sources=[Interrupted(*entries)], without_missing=True)
    assert (report.finished, report.encoded, report.removed) == (False, 1, 0)
    assert {failure.detail for failure in report.missing} == {"The list ends here: get it again."}
    assert not upgrade(path, without_missing=True).finished  # without the object
    assert upgrade(path, sources=[given]).finished
    check(path, new)


def test_a_missing_source_can_be_forgotten(tmp_path: Path, photos: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    other, path = tmp_path / "other", tmp_path / "c"
    paint_many(other, 5, first=50)
    index([photos, other], path, encoders=["tiny"])
    shutil.rmtree(other)
    other.mkdir()  # an empty mount point
    release(new)
    assert upgrade(path).missing_sources == [str(other)]
    with Collection.open(path) as collection:
        assert collection.forget(other) == 5
    report = upgrade(path)
    assert (report.finished, report.encoded, report.continued) == (True, 0, 21)
    check(path, new)


def test_a_changed_image_is_encoded_as_it_is_now(indexed: Path, new: NewTiny) -> None:
    paint(indexed / "00004.png", 444, size=(64, 48))
    paint(indexed / "00006.png", 7)  # now the same as another image
    release(new)
    assert upgrade(indexed).encoded == 21
    items = {Path(item.uri).name: item for item in check(indexed, new)}
    assert (items["00004.png"].width, items["00004.png"].height) == (64, 48)
    assert index(indexed).unchanged == 21
    assert {Path(item.uri).name: item for item in check(indexed, new)} == items


def test_a_changed_copy_of_another_image_waits_for_the_next_index_run(indexed: Path, new: NewTiny) -> None:
    names = ["00001.png", "copy.png"]
    with Collection.open(indexed) as collection:
        ids = {name: item.id for item in collection.items() if (name := Path(item.uri).name) in names}
    paint(indexed / max(names, key=ids.__getitem__), 445)  # of two copies, the first one is read
    release(new)
    assert upgrade(indexed).encoded == 21
    with Collection.open(indexed) as collection:
        assert collection.verify() == []
    assert index(indexed).changed == 1
    check(indexed, new)


def test_changes_between_two_runs(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    """Images that an `index` run changes, moves, adds or removes while an upgrade is unfinished."""
    (indexed / "00003.png").rename(indexed.parent / "aside.png")
    paint(indexed / "00004.png", 44)
    release(new)
    assert not upgrade(indexed).finished
    release(tiny)
    (indexed.parent / "aside.png").rename(indexed / "00003.png")
    paint(indexed / "00005.png", 55)
    paint(indexed / "00004.png", 444)
    paint(indexed / "added.png", 66)
    (indexed / "00006.png").rename(indexed / "moved.png")
    (indexed / "00007.png").unlink()
    index(indexed)
    check(indexed, tiny)
    encoded = new.encoded
    release(new)
    report = upgrade(indexed)
    assert report.finished
    assert new.encoded - encoded == report.encoded == 4  # 00003, 00004, 00005, added
    assert len(check(indexed, new)) == 21


def test_saved_embeddings_cannot_be_encoded(tmp_path: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    np.save(tmp_path / "e.npy", np.eye(48, dtype=np.float32)[:5])
    index(f"arrays:{tmp_path / 'e.npy'}?encoder=tiny", tmp_path / "c")
    with pytest.raises(SourceError, match="holds saved embeddings, which cannot be encoded: remove it with"):
        upgrade(tmp_path / "c", encoders=[type("Own", (NewTiny,), {"name": "own"})()])
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection.search(np.ones(48), space="visual")) == 5
        assert collection.unfinished_encoders() == ()
    assert not upgrade(tmp_path / "c").needed


def test_no_upgrade_is_advised_for_a_collection_that_does_not_exist(tmp_path: Path, tiny: TinyEncoder) -> None:
    np.save(tmp_path / "e.npy", np.eye(48, dtype=np.float32)[:5])
    with pytest.raises(CollectionError, match=r"name another collection with -c\.$"):
        index(f"arrays:{tmp_path / 'e.npy'}?encoder=tiny", tmp_path / "c", encoders=["lite"])


def test_items_without_a_source_are_missing(tmp_path: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        values = {"visual": np.ones((2, 48)), "semantic": np.ones((2, 24))}
        collection.add([Item(str(tmp_path / name)) for name in "ab"], values)
    release(new)
    report = upgrade(tmp_path / "c")
    assert not report.finished
    assert [failure.detail for failure in report.missing] == ["it is not of a source"] * 2


def test_thumbnails_stay(tmp_path: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    from pixmatcher.sources import Entry
    from test_thumbnails import GivenEntries

    images = [paint(tmp_path / f"{seed}.png", seed, size=(600, 400)) for seed in range(4)]
    given = GivenEntries(*(Entry(str(path), "1") for path in images))
    path = tmp_path / "c"
    index(given, path, encoders=["tiny"])
    with Collection.open(path) as collection:
        before = {item.id: collection.thumbnail(item.content_hash) for item in collection.items()}
    assert None not in before.values()
    paint(images[3], 33, size=(600, 400))
    images[2].unlink()
    release(new)
    assert not upgrade(path, sources=[given]).finished
    paint(images[2], 2, size=(600, 400))
    assert upgrade(path, sources=[given]).encoded == 1
    with Collection.open(path) as collection:
        after = {item.id: collection.thumbnail(item.content_hash) for item in collection.items()}
    assert {number for number, jpeg in after.items() if jpeg == before[number]} == {1, 2, 3}
    assert after[4] is not None


# Readers and other writers


def test_readers_before_during_and_after(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    early, idle = Collection.open(indexed), Collection.open(indexed)
    query = np.ones(48)
    expected = early.search(query, space="visual", k=99)
    seen = []

    def look(progress: object) -> None:
        with Collection.open(indexed) as other:
            for reader in (early, other):
                assert reader.search(query, space="visual", k=99) == expected
                assert not reader.upgraded
            assert len(other.search(query, space="visual", k=5, filter=None, exact=True)) == 5
        seen.append(progress)

    release(new)
    assert upgrade(indexed, progress=look).finished
    assert len(seen) > 3
    for reader in (early, idle):
        assert reader.upgraded
        for call in (
            lambda reader=reader: reader.search(query, space="visual"),
            lambda reader=reader: reader.embeddings([1], "visual"),
            lambda reader=reader: reader.remove([1]),
            lambda reader=reader: reader.verify(),
            lambda reader=reader: reader.repair(),
        ):
            with pytest.raises(CollectionUpgradedError, match="open it again"):
                call()
        assert len(list(reader.items())) == 21
        # A query opens the collection again.
        assert search(reader, Query(image=indexed / "00003.png"), k=1).hits[0].score == pytest.approx(1, abs=1e-2)
        assert search_similar(reader, 3, k=1).hits[0].item.id == 3
        assert search(reader, "a text").space == "semantic"
        reader.close()
    check(indexed, new)


def test_the_upgrade_ends_while_a_reader_reads(indexed: Path, new: NewTiny) -> None:
    """The reader's state is the old one, and the files of that state are deleted."""
    release(new)

    def read_during_an_upgrade(reader: Collection) -> None:
        with reader.snapshot():
            assert upgrade(indexed).finished
            assert not reader.upgraded  # in this state
            reader.search(np.ones(48), space="visual")

    with Collection.open(indexed) as reader:
        with pytest.raises(CollectionUpgradedError, match="open it again"):
            read_during_an_upgrade(reader)
        assert reader.upgraded
        assert len(search(reader, "a text", k=99).hits) == 21


SEARCHER = """
# Searches all the time, with one collection object and with new ones; prints how often each edition answered.
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from support import TinyEncoder
from test_upgrade import NewTiny
from pixmatcher import Collection, CollectionUpgradedError
answers = {}
held = Collection.open(sys.argv[2])
while b"tiny-2" not in answers or answers[b"tiny-2"] < 20:
    for opened in (held, Collection.open(sys.argv[2])):
        fingerprint = opened.encoders[0].fingerprint.encode()
        encoder = {b"tiny-1": TinyEncoder, b"tiny-2": NewTiny}[fingerprint]()
        pixels = np.full((1, 16, 16, 3), 200, np.uint8)
        vector = encoder.encode_images(pixels)["visual"][0]
        try:
            hits = opened.search(vector, space="visual", k=200)
            (own,) = opened.embeddings([hits[0].item.id], "visual")
        except CollectionUpgradedError:
            assert fingerprint == b"tiny-1"
            held.close()
            held = Collection.open(sys.argv[2])
            continue
        # The same item is nearest with either encoder: its embedding was made by the one that the collection records.
        assert abs(own @ vector - hits[0].score) < 1e-3
        assert len(hits) == 121 and hits[0].item.id == int(sys.argv[3]), hits[0]
        if not answers:
            print("ready", flush=True)
        answers[fingerprint] = answers.get(fingerprint, 0) + 1
        if opened is not held:
            opened.close()
print(sorted(answers), flush=True)
"""


def test_another_process_searches_meanwhile(photos: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    paint_many(photos, 100, first=100)
    index(photos, encoders=["tiny"])
    with Collection.open(photos) as collection:
        vector = tiny.encode_images(np.full((1, 16, 16, 3), 200, np.uint8))["visual"][0]
        nearest = collection.search(vector, space="visual", k=1)[0].item.id
    command = [sys.executable, "-c", SEARCHER, HERE, str(photos), str(nearest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        release(new)
        assert upgrade(photos, workers=1, progress=lambda progress: time.sleep(0.01)).finished
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, without_progress(stderr)) == (0, "")
    assert stdout == "[b'tiny-1', b'tiny-2']\n"
    check(photos, new)


def test_another_writer(indexed: Path, new: NewTiny, tiny: TinyEncoder) -> None:
    release(new)
    with Collection.open(indexed) as writer:
        writer.begin_writing()
        with pytest.raises(CollectionLockedError, match=f"process {os.getpid()}"):
            upgrade(indexed)
    errors = []

    def write(progress: object) -> None:
        with Collection.open(indexed) as other, pytest.raises(CollectionLockedError) as error:
            other.begin_writing()
        errors.append(error)

    assert upgrade(indexed, progress=write).finished
    assert errors
    check(indexed, new)


def test_an_interrupt_keeps_what_is_encoded(photos: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    paint_many(photos, 60, first=100)
    index(photos, encoders=["tiny"])
    release(new)

    def stop(progress: object) -> None:
        if new.encoded >= 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upgrade(photos, progress=stop, workers=1)
    with Collection.open(photos) as collection:
        assert [record.fingerprint for record in collection.unfinished_encoders()] == ["tiny-2"]
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 81
    encoded = new.encoded
    report = upgrade(photos)
    assert report.continued >= 20
    assert new.encoded - encoded <= 81 - report.continued
    check(photos, new)


def test_an_upgrade_to_others_replaces_an_unfinished_one(indexed: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    (indexed / "00003.png").unlink()
    release(new)
    assert not upgrade(indexed).finished
    assert "vectors/colour.1.f16" in file_names(indexed)
    other = type("Other", (TinyEncoder,), {"name": "other", "fingerprint": "other-1"})()
    report = upgrade(indexed, encoders=[other])
    assert (report.finished, report.continued, report.encoded) == (False, 0, 20)
    with pytest.raises(EncoderError, match=r"an unfinished upgrade to the encoders other\. Unknown encoder"):
        upgrade(indexed)
    assert "vectors/colour.1.f16" not in file_names(indexed)
    release(tiny)
    # The encoders that it has: the unfinished upgrade ends.
    assert not upgrade(indexed, encoders=["tiny"]).needed
    assert file_names(indexed) == names_of_edition(0, ("visual", "semantic"))
    paint(indexed / "00003.png", 3)
    index(indexed)
    check(indexed, tiny)


def test_a_full_disk(photos: Path, tiny: TinyEncoder, new: NewTiny, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no small disk can be mounted")
    path = small_disk / "c"
    index(photos, path, encoders=["tiny"])
    filler = fill_up(small_disk)
    release(new)
    with pytest.raises(StorageError, match="make room and run the same command again"):
        upgrade(path)
    with Collection.open(path) as collection:
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 21
    # Room for some of the embeddings.
    os.truncate(filler, filler.stat().st_size - 40_000)
    with contextlib.suppress(StorageError):
        upgrade(path)
    filler.unlink()
    assert upgrade(path).finished or not upgrade(path).needed
    check(path, new)


# Kills

DRIVER = """
# Upgrades, and kills itself before or after the call number N of a function.
import importlib, os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_upgrade import NewTiny
from pixmatcher import encoders, upgrade
from pixmatcher.indexing import _store

folder, place, when, number = sys.argv[2:]
module, _, name = place.partition(":")
owner, last = importlib.import_module("pixmatcher." + module), name
while "." in last:
    first, _, last = last.partition(".")
    owner = getattr(owner, first)
called, calls = getattr(owner, last), 0

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def call(*arguments, **options):
    global calls
    calls += 1
    if calls == int(number) and when == "before":
        kill()
    result = called(*arguments, **options)
    if calls == int(number) and when == "after":
        kill()
    return result

setattr(owner, last, call)
encoders.register_encoder("tiny", NewTiny)
_store._FLUSH_ITEMS = 4  # many commits
print(upgrade(folder, workers=1).finished)
"""

SWITCH = "collection._reencoding:Reencoding._switch"
MOMENTS = [
    ("collection.collection:begin_next", "before", 1),
    ("collection.collection:begin_next", "after", 1),
    ("vector_index.vectors:VectorFile.write", "after", 1),
    ("vector_index.vectors:VectorFile.write", "after", 5),
    ("collection._reencoding:Reencoding.store", "after", 1),
    ("collection._reencoding:Reencoding.store", "after", 3),
    ("collection._reencoding:copy_targets", "after", 1),
    ("collection._reencoding:replacing", "before", 1),
    (SWITCH, "before", 1),  # `collection.json` has the new format
    ("collection._reencoding:make_current", "before", 1),  # inside the transaction
    (SWITCH, "after", 1),  # before the transaction commits
    ("collection._reencoding:Reencoding.finish", "after", 1),  # the catalog has switched
    ("indexing._upgrade:_build_indexes", "before", 1),
    ("collection._editions:_delete", "after", 1),
    ("collection._editions:_delete", "after", 3),
    ("vector_index:save_index", "before", 1),
    ("collection._indexes:SpaceIndexes._save_space", "after", 1),
    ("indexing._upgrade:_build_indexes", "after", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "when", "number"), MOMENTS)
def test_a_kill_leaves_the_old_or_the_new_collection(
    indexed: Path, tiny: TinyEncoder, new: NewTiny, place: str, when: str, number: int
) -> None:
    before = check(indexed, tiny)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, HERE, str(indexed), place, when, str(number)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, (done.stdout, done.stderr)
    with Collection.open(indexed) as collection:
        upgraded = collection.encoders[0].fingerprint == "tiny-2"
    switched = MOMENTS.index(("collection._reencoding:Reencoding.finish", "after", 1))
    assert upgraded == (MOMENTS.index((place, when, number)) >= switched)
    assert check(indexed, new if upgraded else tiny) == before
    with contextlib.closing(sqlite3.connect(indexed / ".pixmatcher" / "catalog.sqlite")) as connection:
        (stored,) = connection.execute("SELECT count(*) FROM reencoded").fetchone()
        (to_encode,) = connection.execute(
            "SELECT count(DISTINCT content_hash) FROM items WHERE id NOT IN (SELECT id FROM reencoded)"
        ).fetchone()
    release(new)
    encoded = new.encoded
    report = upgrade(indexed)
    assert report.finished
    assert report.needed == (not upgraded)
    assert report.continued == stored
    assert new.encoded - encoded == (0 if upgraded else to_encode)
    assert check(indexed, new) == before
    assert file_names(indexed) == names_of_edition(1)
    assert json.loads((indexed / ".pixmatcher" / "collection.json").read_text())["format"] == 2


@pytest.mark.slow
def test_kills_at_random_moments(photos: Path, tiny: TinyEncoder, new: NewTiny) -> None:
    paint_many(photos, 80, first=100)
    index(photos, encoders=["tiny"])
    before = check(photos, tiny)
    done = 0
    for attempt in range(8):
        command = [sys.executable, "-c", DRIVER, HERE, str(photos), "indexing._upgrade:_build_indexes", "after", "99"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.4 + 0.05 * attempt)
            process.kill()
        with Collection.open(photos) as collection:
            encoder = new if collection.encoders[0].fingerprint == "tiny-2" else tiny
            stored = collection.unfinished_encoders()
        assert check(photos, encoder) == before
        assert done == 0 or encoder is new or stored
        done += bool(stored)
    release(new)
    upgrade(photos)
    assert check(photos, new) == before


# Other versions


def test_an_older_version_refuses_an_upgraded_collection(indexed: Path, new: NewTiny) -> None:
    """Version 0.1.0 reads `format` first and knows only 1; it does not look at the schema."""
    release(new)
    upgrade(indexed)
    values = json.loads((indexed / ".pixmatcher" / "collection.json").read_text())
    assert values["format"] == 2
    assert "encoders" not in values


def test_rows_of_the_new_edition_are_not_in_the_old_files(indexed: Path, new: NewTiny) -> None:
    """A process of an older version that has the collection open finds no row of the catalog in the files it knows."""

    def rows() -> tuple[int, int]:
        with contextlib.closing(sqlite3.connect(indexed / ".pixmatcher" / "catalog.sqlite")) as connection:
            low, high = connection.execute("SELECT min(row), max(row) FROM items").fetchone()
            return low, high

    first = rows()
    release(new)
    upgrade(indexed)
    assert rows()[0] > first[1]


def test_a_collection_of_version_0_1_0(tmp_path: Path, tiny: TinyEncoder) -> None:
    import zipfile

    with zipfile.ZipFile(Path(HERE) / "data" / "collection-0.1.0.zip") as saved:
        saved.extractall(tmp_path)
    photos = tmp_path / "photos"
    with Collection.open(photos) as collection:
        before = [item.id for item in collection.items()]
    assert upgrade(photos, encoders=["tiny"]).finished
    with Collection.open(photos) as collection:
        assert [item.id for item in collection.items()] == before
        assert [record.name for record in collection.encoders] == ["tiny"]
        assert collection.verify() == []
        assert [failure.reason for failure in collection.failures()] == ["not an image"]


# The command line


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder of images whose collection says that another version of `lite` made it."""
    folder = tmp_path / "my photos"
    paint_many(folder, 6)
    index(folder)
    make_older(folder / ".pixmatcher")
    return folder


def make_older(collection: Path) -> None:
    manifest = collection / "collection.json"
    manifest.write_text(manifest.read_text().replace(encoders.load_encoder().fingerprint, "former"))


def test_the_command(older: Path) -> None:
    command = f"pixmatcher upgrade -c '{older / '.pixmatcher'}'"
    for arguments in (("search", "a cat", "-c", older), ("index", older)):
        done = cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"another version of the encoder lite: run `{command}`." in done.stderr
    (older / "00002.png").rename(older.parent / "aside.png")
    done = cli("upgrade", "-c", older)
    assert (done.returncode, done.stderr) == (1, "")
    assert "5 encoded, 1 missing" in done.stdout
    assert "00002.png: missing" in done.stdout
    assert f"run `{command}` again, or run `{command} --without-missing`" in done.stdout
    assert f"upgrade     to lite, not finished: run `{command}` again" in cli("info", "-c", older).stdout
    (older.parent / "aside.png").rename(older / "00002.png")
    done = cli("upgrade", "-c", older)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 encoded, 5 encoded before" in done.stdout
    assert f"The encoders are now lite ({encoders.load_encoder().fingerprint})." in done.stdout
    assert cli("verify", "-c", older).returncode == 0
    assert cli("search", "a cat", "-c", older).returncode == 0
    done = cli("upgrade", "-c", older)
    assert (done.returncode, done.stderr) == (0, "")
    assert "needs no upgrade: its encoders are lite" in done.stdout
    assert "not finished" not in cli("info", "-c", older).stdout


def test_the_command_without_missing_sources(tmp_path: Path) -> None:
    photos, path = tmp_path / "photos", tmp_path / "c"
    paint_many(photos, 3)
    index(photos, path)
    make_older(path)
    photos.rename(tmp_path / "aside")
    done = cli("upgrade", "-c", path, "--without-missing")
    assert (done.returncode, done.stderr) == (1, "")
    assert f"These sources are empty or cannot be read: {photos}. `pixmatcher forget` removes them" in done.stdout
    assert "--without-missing" not in done.stdout


def test_the_command_without_missing_images(older: Path) -> None:
    (older / "00002.png").unlink()
    done = cli("upgrade", "-c", older, "--without-missing")
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 encoded, 1 removed" in done.stdout
    with Collection.open(older) as collection:
        assert len(collection) == 5


def test_wrong_calls_are_one_line(older: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("-c", tmp_path / "none"), "There is no collection"),
        (("-c", older, "--encoder", "nothing"), "Unknown encoder"),
    ):
        done = cli("upgrade", *arguments)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
        assert words in done.stderr
    with Collection.open(older) as writer:
        writer.begin_writing()
        done = cli("upgrade", "-c", older)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is being written by process" in done.stderr


@pytest.mark.slow
def test_the_command_line_killed_and_stopped(older: Path) -> None:
    paths = paint_many(older, 60)
    # The collection must know the images; the encoder that made it is the one that is here.
    manifest = older / ".pixmatcher" / "collection.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("former", encoders.load_encoder().fingerprint))
    index(older)
    manifest.write_text(text)
    vectors = older / ".pixmatcher" / "vectors" / "visual.1.f16"
    command = [sys.executable, "-m", "pixmatcher", "upgrade", "-c", str(older)]
    for number in (signal.SIGKILL, signal.SIGINT):
        before = vectors.stat().st_size if vectors.exists() else 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and not (vectors.exists() and vectors.stat().st_size > before):
                time.sleep(0.005)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=60)
        if number == signal.SIGINT and process.returncode == 130:
            assert stderr.count("\n") == 1
            assert "run the same command again to continue" in stderr
    done = cli("upgrade", "-c", older)
    assert (done.returncode, done.stderr) == (0, "")
    with Collection.open(older) as collection:
        assert collection.verify() == []
        assert len(collection) == len(paths)
