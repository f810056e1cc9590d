"""The suite of the protocols of stores, for each store: a folder, Milvus, and a store of another package."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memory_store import MemoryStore
from pixmatcher import Collection, Item, encoders, index
from pixmatcher.collection import WritableStore, open_named_store
from pixmatcher.milvus import MilvusCollection, open_milvus
from pixmatcher.records import Space
from store_suite import ReadableStoreSuite, SearchedStoreSuite, unit_vectors
from support import TinyEncoder


class TestFolder(ReadableStoreSuite):
    """A collection in a folder."""

    @pytest.fixture
    def store(self, tmp_path: Path, tiny: TinyEncoder) -> Iterator[WritableStore]:
        with Collection.create(tmp_path / "collection", [tiny]) as collection:
            yield collection


class TestMilvusLite(ReadableStoreSuite):
    """A collection in Milvus Lite."""

    @pytest.fixture
    def store(self, tmp_path: Path, tiny: TinyEncoder) -> Iterator[WritableStore]:
        with open_milvus(str(tmp_path / "milvus")) as collection:
            collection.create([tiny])
            yield collection


class TestMilvusServer(ReadableStoreSuite):
    """A collection on a server: Milvus Lite, or the one that the variable PIXMATCHER_TEST_MILVUS names (HOST:PORT)."""

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        if given := os.environ.get("PIXMATCHER_TEST_MILVUS"):
            yield given
            return
        from milvus_server import MilvusServer

        with MilvusServer(tmp_path_factory.mktemp("server")) as server:
            yield server.address

    @pytest.fixture
    def tiny(self) -> Iterator[TinyEncoder]:
        """An encoder with one space, which old versions of Milvus can keep too."""
        encoder = TinyEncoder()
        encoder.spaces = (Space("semantic", 24, text=True),)
        encode_images = encoder.encode_images
        encoder.encode_images = lambda pixels: {"semantic": encode_images(pixels)["semantic"]}
        encoders.register_encoder("tiny", lambda: encoder)
        yield encoder
        encoders.unregister_encoder("tiny")

    @pytest.fixture
    def store(self, server: str, tiny: TinyEncoder) -> Iterator[WritableStore]:
        with open_milvus(f"//{server}/test_{uuid.uuid4().hex}") as collection:
            collection.create([tiny])
            yield collection
            collection.delete()

    def test_what_was_written_just_now_is_known(self, store: MilvusCollection) -> None:
        items = [Item(f"/{number}.jpg", f"{number:064x}", "1") for number in range(3)]

        def add() -> dict[int, int]:
            ids = store.add(items, {"semantic": unit_vectors(3, 24)}, source="list:x")
            return {item_id: row["created"] for item_id, row in store._items.get(ids, ("created",)).items()}

        created = add()
        assert add() == created
        removed = next(iter(created))
        store.remove([removed])
        again = add()
        assert again.pop(removed) > created.pop(removed)
        assert again == created
        assert len(store) == 3

    def test_an_index_that_was_dropped_is_built_again(
        self, store: MilvusCollection, photos: Path, tiny: TinyEncoder
    ) -> None:
        index(photos, store)
        connection, name = store._connect(), store._address.name
        connection.call("release_collection", name)
        connection.call("drop_index", name, "vector_0")
        with open_milvus(str(store.path).removeprefix("milvus:")) as again:
            assert len(again.search(np.ones(24), space="semantic", k=5)) == 5


class TestStoreOfAnotherPackage(SearchedStoreSuite):
    """A store that a package declares as an entry point."""

    @pytest.fixture
    def store(self, tmp_path: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableStore]:
        info = tmp_path / "site" / "memory_store-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: memory-store\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[pixmatcher.stores]\nmemory = memory_store:opened_memory\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        MemoryStore.opened.clear()
        opened = open_named_store("memory:suite")
        assert isinstance(opened, MemoryStore)
        yield opened
        MemoryStore.opened.clear()
