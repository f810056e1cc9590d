"""Small collections for the tests of the app."""

from __future__ import annotations

import shutil
from pathlib import Path

from pixmatcher import Collection, Item, load_encoder, open_image
from pixmatcher.images import fit_image

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"

HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>.jpg",
    "**bold** :smile: :red[x] $x^2$ `code` [link](http:x).jpg",
    "\"quoted\" & 'quoted'.jpg",
    "mirror\N{RIGHT-TO-LEFT OVERRIDE}gnp.jpg",
    "two\nlines.jpg",
)
HOSTILE_LABEL = "<script>alert(2)</script> **label**"


def copy_photos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names or [path.name for path in PHOTOS.glob("*.jpg")]:
        shutil.copy(PHOTOS / name, folder)
    return folder


def label_photos(folder: Path) -> None:
    """Create a collection of photos with labels and names of labels."""
    encoder = load_encoder()
    labels = {"cat.jpg": "n1", "horse.jpg": "n1", "coffee.jpg": "n2", "rocket.jpg": "n3"}
    with Collection.create(folder, [encoder]) as collection:
        for name, label in labels.items():
            opened = open_image(PHOTOS / name)
            item = Item(
                str(PHOTOS / name),
                content_hash=name,
                label=label,
                width=opened.width,
                height=opened.height,
                details={"author": "Someone <b>Else</b>", "license": "CC0"},
            )
            collection.add([item], encoder.encode_images(fit_image(opened, encoder.recipe)[None]))
        collection.set_label_names({"n1": "animal, beast", "n2": HOSTILE_LABEL, "n3": "vehicle"})
