"""Collections and encoders that all visitors share. They are loaded once and used from many threads."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import streamlit as st

from ..collection import CATALOG_NAME, Collection, Item
from ..collection import open_collection as open_any_collection
from ..errors import CollectionError, PixMatcherError
from ..searching import EmbeddedQuery, EncoderFallback, Query, embed_query
from .collection_list import CollectionList, collection_paths, is_folder

_COLLECT_GARBAGE_SECONDS = 10
_RETRY_ENCODER_SECONDS = 60
"""An encoder that cannot be used is tried again after this time."""
_reopening = threading.Lock()
"""Held to open a collection, so that only one visitor opens an upgraded one again."""
_log = logging.getLogger("pixmatcher.web")


class CollectionMissingError(CollectionError):
    """The folder of a collection in the list, `path`, does not exist any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"The collection {path} is missing: restore its folder, or choose another collection.")
        self.path = path


@st.cache_resource(show_spinner=False)
def collection_list() -> CollectionList:
    """Return the list of collections to show. Raises `CollectionError` if a named collection is missing."""
    paths = collection_paths()
    _log.info("app started with %d collections", len(paths))
    return CollectionList(paths)


def open_collection(path: Path) -> Collection:
    """Return the open collection in a folder, or the store that a path names. It is opened once for all visitors.

    A store has the methods of a collection that the app uses. Raises `CollectionMissingError` if a folder does not
    exist any more.
    """
    if not is_folder(path):
        store = _open_once(str(path), (0, 0))
        _warm_up(str(path), (0, 0)).join()
        return store
    try:
        status = (path / CATALOG_NAME).stat()
    except OSError as error:
        raise CollectionMissingError(path) from error
    # A collection that was deleted and created again is another one; an upgraded one has other embeddings.
    identity = (status.st_dev, status.st_ino)
    with _reopening:
        collection = _open_once(str(path), identity)
        if collection.upgraded:
            _warm_up.clear(str(path), identity)
            _open_once.clear(str(path), identity)
            collection = _open_once(str(path), identity)
    _warm_up(str(path), identity).join()
    return collection


@st.cache_resource(show_spinner=False, max_entries=64, on_release=lambda collection: collection.close())
def _open_once(path: str, identity: tuple[int, int]) -> Collection:
    """Open a collection, once for all visitors; `identity` is the cache key of its file."""
    collection = cast(Collection, open_any_collection(path))
    _log.info("opened the collection %s with %d items", path, len(collection))
    return collection


@st.cache_resource(show_spinner=False, max_entries=64)
def _warm_up(path: str, identity: tuple[int, int]) -> threading.Thread:
    """Start a thread that loads encoders and indexes, so that no search has to. Searches wait for its end."""
    collection = _open_once(path, identity)

    def warm_up() -> None:
        # Errors are ignored here: the search that needs the failed part reports them.
        with contextlib.suppress(PixMatcherError):
            _embed_sample(collection, text=False)
        with contextlib.suppress(PixMatcherError):
            _embed_sample(collection, text=True)
        with contextlib.suppress(PixMatcherError):
            for space in collection.spaces.values():
                collection.search([0.0] * space.dimension, space=space.name, k=1)
        # The garbage collector blocks all visitors. Frozen objects make it faster.
        gc.collect()
        gc.freeze()

    thread = threading.Thread(target=warm_up, daemon=True)
    thread.start()
    return thread


@st.cache_resource(show_spinner=False)
def _last_garbage_collection() -> list[float]:
    """Return the time of the last garbage collection, in a list that all visitors share."""
    return [time.monotonic()]


def collect_garbage() -> None:
    """Free the memory of visitors who left, every few seconds.

    Streamlit would do it after each run of a script, and all other visitors would have to wait.
    """
    last = _last_garbage_collection()
    if time.monotonic() - last[0] > _COLLECT_GARBAGE_SECONDS:
        last[0] = time.monotonic()
        gc.collect()


def _embed_sample(collection: Collection, *, text: bool) -> EmbeddedQuery:
    from PIL import Image

    return embed_query(Query("warm") if text else Query(image=Image.new("RGB", (64, 64))), collection.encoders)


@st.cache_resource(show_spinner=False, max_entries=128, ttl=_RETRY_ENCODER_SECONDS)
def replaced_encoder(encoders: str, text: bool, _collection: Collection) -> tuple[str, EncoderFallback] | None:
    """Return the space that is searched instead of the default one, and why, if the default encoder cannot be used.

    `encoders` is the cache key: the representation of the collection's encoders.
    """
    with contextlib.suppress(PixMatcherError):  # the search reports it
        embedded = _embed_sample(_collection, text=text)
        return None if embedded.fallback is None else (embedded.space, embedded.fallback)
    return None


def labels(collection: Collection) -> list[str]:
    """Return the labels of the items, the most frequent first."""
    return _cached_labels(str(collection.path), collection.generation, collection)


@st.cache_resource(show_spinner=False, max_entries=64)
def _cached_labels(path: str, generation: int, _collection: Collection) -> list[str]:
    """Return the labels, cached for each state of the collection."""
    return list(_collection.label_counts())


def item_of(collection: Collection, item_id: int) -> Item:
    """Return the item with an id. Raises `CollectionError` if the collection does not have it."""
    if not (found := items_of(collection, [item_id])):
        raise CollectionError("This image is not in the collection any more.")
    return found[0]


def items_of(collection: Collection, ids: Sequence[int]) -> list[Item]:
    """Return the items with these ids, in this order, without those that the collection does not have."""
    items = collection.items_by_id(ids)
    return [items[item_id] for item_id in ids if item_id in items]
