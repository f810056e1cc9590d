"""Collections of earlier versions can be read, and the first write updates their schema."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, EncoderError, index, search, upgrade
from pixmatcher.collection._migrations import MIGRATIONS, SCHEMA_VERSION
from pixmatcher.collection._sqlite_errors import ResultCode, result_code
from pixmatcher.maps.projection import load_projection
from pixmatcher.searching import search_similar
from support import bound_by_permissions, cli, paint_many

SAVED = Path(__file__).parent / "data" / "collection-0.1.0.zip"
"""Made by version 0.1.0, before schemas were numbered: three images, one broken file, and a map by PCA. With it comes
the same catalog as it was before items had details."""


@pytest.fixture(params=["with details", "without details"])
def photos(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of images with its collection of version 0.1.0 or an earlier state."""
    with zipfile.ZipFile(SAVED) as saved:
        saved.extractall(tmp_path)
    if request.param == "without details":
        shutil.copy(tmp_path / "catalog-without-details.sqlite", tmp_path / "photos" / ".pixmatcher" / "catalog.sqlite")
    return tmp_path / "photos"


def version_of(photos: Path) -> int:
    with contextlib.closing(sqlite3.connect(photos / ".pixmatcher" / "catalog.sqlite")) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def columns_of(photos: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(photos / ".pixmatcher" / "catalog.sqlite")) as connection:
        return {name for _, name, *_ in connection.execute("PRAGMA table_info (items)")}


def names_like(photos: Path, item_id: int) -> list[str]:
    """Return the images most similar to an item, by the stored embeddings."""
    with Collection.open(photos) as collection:
        return [os.path.relpath(hit.item.uri, photos) for hit in search_similar(collection, item_id).hits]


def test_an_old_collection_can_be_read_and_reading_does_not_change_it(photos: Path) -> None:
    with Collection.open(photos) as collection:
        assert [os.path.relpath(item.uri, photos) for item in collection.items()] == [
            "blue.webp",
            "red.png",
            "sub/green.jpg",
        ]
        assert {(item.width, item.height, item.format) for item in collection.items()} == {
            (80, 60, "WEBP"),
            (80, 60, "PNG"),
            (80, 60, "JPEG"),
        }
        assert [item.details for item in collection.items()] == [{}] * 3
        assert [failure.reason for failure in collection.failures()] == ["not an image"]
        assert collection.sources() == [str(photos)]
        assert collection.verify() == []
        assert collection.incomplete() == []
        assert {space: collection.indexes.kind(space) for space in collection.spaces} == {
            "visual": "exact",
            "semantic": "exact",
        }
    assert names_like(photos, 2)[0] == "red.png"
    assert sorted(names_like(photos, 2)) == ["blue.webp", "red.png", "sub/green.jpg"]
    assert version_of(photos) == 0


def test_a_saved_map_is_read(photos: Path) -> None:
    with Collection.open(photos) as collection:
        kept = load_projection(collection, "pca")
    assert kept is not None
    assert kept.stale == 0
    np.testing.assert_allclose(kept.points[0], [0.05142159, -0.21104482], atol=1e-6)


def test_the_first_write_changes_the_schema_in_place(photos: Path) -> None:
    before = names_like(photos, 2)
    with Collection.open(photos) as collection:
        collection.set_label_names({"a": "A"})
    assert version_of(photos) == SCHEMA_VERSION
    assert "details" in columns_of(photos)
    assert names_like(photos, 2) == before
    with Collection.open(photos) as collection:
        assert collection.verify() == []
    assert cli("verify", "-c", photos).returncode == 0


def test_an_old_collection_is_upgraded_and_indexed(photos: Path) -> None:
    with pytest.raises(EncoderError, match="pixmatcher upgrade"):
        index(photos)
    assert upgrade(photos).encoded == 3
    report = index(photos)
    assert (report.unchanged, report.added, report.changed, report.removed) == (3, 0, 0, 0)
    assert [failure.uri for failure in report.failures] == [str(photos / "broken.jpg")]
    with Collection.open(photos) as collection:
        assert [hit.item.id for hit in search(collection, "a red square").hits]
        assert collection.verify() == []


def test_repair_and_removal_change_the_schema_too(photos: Path) -> None:
    with Collection.open(photos) as collection:
        assert collection.repair() == 0
        assert version_of(photos) == SCHEMA_VERSION
        assert collection.remove([1]) == 1
        assert len(collection) == 2


def test_a_read_only_collection_is_read_without_migration(photos: Path, open_folder: Path) -> None:
    target = Path(shutil.copytree(photos, open_folder / "photos"))
    for folder, _, files in os.walk(target):
        for name in files:
            os.chmod(os.path.join(folder, name), 0o444)
        os.chmod(folder, 0o555)
    done = cli("info", "-c", target, preexec_fn=bound_by_permissions())
    assert done.returncode == 0, done.stderr
    assert "images      3" in done.stdout
    done = cli("search", "a red square", "-c", target, preexec_fn=bound_by_permissions())
    assert done.returncode == 2
    assert f"run `pixmatcher upgrade -c {target / '.pixmatcher'}`" in done.stderr


def test_readers_continue_while_the_schema_changes(photos: Path) -> None:
    with Collection.open(photos) as reader, Collection.open(photos) as writer:
        first = [item.uri for item in reader.items()]
        writer.begin_writing()
        assert [item.uri for item in reader.items()] == first
        assert len(reader.search(np.ones(384), space="visual")) == 3


def test_two_migrations_at_once_run_only_once(photos: Path) -> None:
    from pixmatcher.collection._catalog import Catalog

    catalogs = [Catalog(photos / ".pixmatcher" / "catalog.sqlite", photos) for _ in range(4)]
    threads = [threading.Thread(target=catalog.prepare_to_write) for catalog in catalogs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [catalog.number("PRAGMA user_version") for catalog in catalogs] == [SCHEMA_VERSION] * 4
    for catalog in catalogs:
        catalog.close()


def test_a_migration_that_fails_leaves_the_old_schema(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DROP TABLE failures")
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("pixmatcher.collection._migrations.MIGRATIONS", (*MIGRATIONS, fail))
    monkeypatch.setattr("pixmatcher.collection._migrations.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    before = columns_of(photos)
    with Collection.open(photos) as collection:
        with pytest.raises(CollectionError, match="make room"):
            collection.begin_writing()
        assert len(collection.failures()) == 1
    assert (version_of(photos), columns_of(photos)) == (0, before)


def test_a_newer_schema_is_refused_in_one_sentence(photos: Path) -> None:
    with contextlib.closing(sqlite3.connect(photos / ".pixmatcher" / "catalog.sqlite")) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(CollectionError, match=r"newer than the \d+ .*: upgrade with `pip install"):
        Collection.open(photos)
    done = cli("search", "a red square", "-c", photos)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_new_collection_has_the_newest_schema(tmp_path: Path, tiny: object) -> None:
    paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", encoders=["tiny"])
    assert version_of(tmp_path / "photos") == SCHEMA_VERSION


def test_errors_of_sqlite_are_recognised_with_and_without_their_code(tmp_path: Path) -> None:
    """Python 3.10 gives messages only; an error made here has no code, as there."""
    path = tmp_path / "file"
    with pytest.raises(sqlite3.OperationalError) as missing:
        sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    errors = [(missing.value, ResultCode.CANTOPEN)]
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE a (b)")
        connection.execute("BEGIN EXCLUSIVE")
        with (
            contextlib.closing(sqlite3.connect(path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError) as busy,
        ):
            other.execute("INSERT INTO a VALUES (1)")
        connection.execute("ROLLBACK")
        errors.append((busy.value, ResultCode.BUSY))
        with pytest.raises(sqlite3.OperationalError) as no_table:
            connection.execute("SELECT * FROM c")
        errors.append((no_table.value, ResultCode.ERROR))
        connection.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as full:
            connection.execute("INSERT INTO a VALUES (zeroblob(100000))")
        errors.append((full.value, ResultCode.FULL))
        connection.execute("PRAGMA query_only = 1")
        with pytest.raises(sqlite3.OperationalError) as readonly:
            connection.execute("INSERT INTO a VALUES (1)")
        errors.append((readonly.value, ResultCode.READONLY))
    for error, code in errors:
        assert result_code(error) is code
        assert result_code(sqlite3.OperationalError(str(error))) is code
    assert result_code(sqlite3.DatabaseError("file is not a database")) is ResultCode.UNKNOWN
