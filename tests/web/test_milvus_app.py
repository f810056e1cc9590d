"""The web app over a collection in Milvus."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import streamlit as st
from small_collections import PHOTOS
from streamlit.testing.v1 import AppTest

from pixmatcher import CollectionError, index
from pixmatcher.web import collection_list


@pytest.mark.parametrize(
    "names",
    [
        ["photos", "/data/other"],
        ["milvus:photos.milvus", "a", "milvus:/data/b"],
        ["milvus://host:19530/a", "milvus:https://[::1]:19530/b", "c"],
        ["http://host:8600/c/photos", "./milvus", "a"],
        [],
    ],
)
def test_the_variable_names_folders_and_stores(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pathsep", ":")
    assert collection_list.split_names(":".join(names)) == names
    assert collection_list.split_names(":" + "::".join(names) + ":") == names


@pytest.fixture
def reference(tmp_path: Path) -> str:
    reference = f"milvus:{tmp_path}/photos.milvus"
    index(PHOTOS, reference)
    return reference


def _pages() -> None:
    from pixmatcher.web._pages import collection, text_search

    text_search.show()
    collection.show()


def test_a_collection_in_milvus_is_shown(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (place,) = collection_list.locate_all([reference])
    assert str(place) == reference
    assert not collection_list.is_folder(place)
    with pytest.raises(CollectionError, match="is named twice"):
        collection_list.locate_all([reference, reference])
    with pytest.raises(CollectionError, match="There is no collection in milvus:nothing"):
        collection_list.locate_all(["milvus:nothing"])
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setenv(collection_list.COLLECTIONS_VARIABLE, reference)
    st.cache_resource.clear()
    try:
        app = AppTest.from_function(_pages, default_timeout=120).run()
        app.text_input(key="query_text").input("a cup of coffee").run()
        assert not app.exception
        (grid,) = app.get("bidi_component")
        tiles = json.loads(grid.proto.json)["tiles"]
        assert (tiles[0]["name"], len(tiles)) == ("coffee.jpg", 18)
        assert [metric.value for metric in app.metric][:3] == ["18", "0", "0"]
    finally:
        st.cache_resource.clear()
