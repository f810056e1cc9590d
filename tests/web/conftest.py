"""A running app over small collections."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from shelf import HOSTILE_NAMES, PHOTOS, copy_photos, label_photos, running_app

from pixmatcher import index

if find_spec("streamlit") is None:
    collect_ignore_glob = ["test_*.py"]

    def pytest_report_header() -> str:
        return "tests/web is not run: the web app needs Streamlit, and that Python 3.11"


@pytest.fixture(scope="session")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of the collections that the app shows, by name."""
    root = tmp_path_factory.mktemp("shelves")
    photos = copy_photos(root / "photos")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    odd = root / "odd"
    odd.mkdir()
    for name, photo in zip(HOSTILE_NAMES, sorted(PHOTOS.glob("*.jpg")), strict=False):
        shutil.copy(photo, odd / name)
    passing = copy_photos(root / "passing", "cat.jpg", "coffee.jpg")
    growing = copy_photos(root / "growing", "cat.jpg")
    for folder in (photos, odd, passing, growing):
        index(folder)
    label_photos(root / "labelled")
    return {name: root / name for name in ("photos", "labelled", "odd", "passing", "growing")}


@pytest.fixture(scope="session")
def app_url(shelves: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app, started as a user starts it."""
    arguments = [argument for folder in shelves.values() for argument in ("-c", str(folder))]
    with running_app(arguments, tmp_path_factory.mktemp("home")) as url:
        yield url
