"""The texts on a map."""

from __future__ import annotations

from ..collection import ReadableStore
from .projection import Projection

_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}


def map_title(projection: Projection, collection: ReadableStore) -> tuple[str, str]:
    """Return the title of a map in two lines: what it shows, and how it was computed."""
    folder = collection.path.parent if collection.path.name == ".pixmatcher" else collection.path
    count = len(projection.ids)
    images = f"{count:,} image" + ("s" if count != 1 else "")
    if count < projection.items:
        images = f"{count:,} of {projection.items:,} images"
    made = f"{_METHOD_NAMES[projection.method]} of the space {projection.space}, {projection.computed[:10]}"
    return f"{images} of {folder.name or folder}", made + stale_text(projection, before="; since then ")


def stale_text(projection: Projection, *, before: str = "") -> str:
    """Return the changes of the collection since the map was computed, in words; "" without changes."""
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (projection.added, "added"),
            (projection.removed, "removed"),
            (projection.changed, "changed"),
        )
        if count
    ]
    return before + ", ".join(parts) if parts else ""
