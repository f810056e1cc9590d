"""Fixtures for the tests of the service: a small collection, and clients of the application in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pixmatcher import Collection, Item, load_encoder, open_image
from pixmatcher.images import fit_image
from pixmatcher.server import ServerSettings, create_app

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
LABELS = {"cat.jpg": "n1", "horse.jpg": "n1", "coffee.jpg": "n2", "rocket.jpg": "n3"}

AppClient = Callable[..., TestClient]


def create_labelled(folder: Path) -> Path:
    """Create a collection of the example photos, some with labels, by the encoder `lite`; return its folder."""
    encoder = load_encoder()
    with Collection.create(folder, [encoder]) as collection:
        for path in sorted(PHOTOS.glob("*.jpg")):
            opened = open_image(path)
            item = Item(
                str(path),
                content_hash=path.name,
                label=LABELS.get(path.name),
                width=opened.width,
                height=opened.height,
            )
            collection.add([item], encoder.encode_images(fit_image(opened, encoder.recipe)[None]))
        collection.set_label_names({"n1": "animal, beast", "n2": "drink", "n3": "vehicle"})
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a collection of the example photos; tests do not change it."""
    return create_labelled(tmp_path_factory.mktemp("served") / "photos")


@pytest.fixture
def app_client(photos: Path) -> Iterator[AppClient]:
    """A function that returns a client of a service of the collection `photos`; its arguments are settings."""
    with ExitStack() as stack:

        def start(**settings: Any) -> TestClient:
            settings.setdefault("collections", {"photos": str(photos)})
            app = create_app(ServerSettings(**settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(app_client: AppClient) -> TestClient:
    """A client of a service with the usual settings."""
    return app_client()
