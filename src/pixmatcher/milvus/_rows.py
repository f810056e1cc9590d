"""Items as rows of Milvus, and the schema of these.

The fields that filters and lists need are fields of their own; the others are one field of JSON.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from .._text import as_unicode
from ..collection import Item
from ..records import Space
from ._expressions import shown_name, stored_name
from ._tables import Row, id_of

TEXT_FIELDS = {
    "uri": 16_384,
    "content_hash": 256,
    "version": 4096,
    "label": 4096,
    "format": 256,
    "date": 64,
    "rest": 65_535,
}
"""The fields of texts, and how many bytes each holds."""
NUMBER_FIELDS = ("source", "width", "height", "created", "written", "checksum")
TRUTH_FIELDS = ("labelled", "incomplete")
ITEM_FIELDS = ("uri", "content_hash", "version", "label", "labelled", "format", "width", "height", "created", "rest")
"""The fields that `item_of` reads."""
_REST = ("bytes", "caption", "modified", "taken", "missing")


def vector_field(spaces: Mapping[str, Space], space: str) -> str:
    """Return the field of the embeddings of a space. Names of spaces may contain what Milvus does not allow."""
    return f"vector_{[*spaces].index(space)}"


def source_number(spec: str | None) -> int:
    """Return the number of a source in the rows of its items; 0 for items without a source."""
    return id_of("source", spec) if spec else 0


def row_of(
    item: Item, *, source: int, created: int, written: int, vectors: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, Any]:
    """Return the row of an item; `vectors` are the values of the fields of its embeddings.

    `created` and `written` are nanoseconds since 1970: when an item of this uri was first and last stored.
    """
    rest: dict[str, Any] = {name: value for name in _REST if (value := getattr(item, name)) is not None}
    if item.caption is not None:
        rest["caption"] = as_unicode(item.caption)
    if item.details:
        rest["details"] = dict(item.details)
    return {
        "id": id_of("item", item.uri),
        "uri": stored_name(item.uri),
        "content_hash": item.content_hash,
        "version": as_unicode(item.version),
        "label": as_unicode(item.label or ""),
        "labelled": item.label is not None,
        "format": as_unicode(item.format or ""),
        "date": as_unicode(item.taken or item.modified or ""),
        "width": -1 if item.width is None else item.width,
        "height": -1 if item.height is None else item.height,
        "incomplete": item.missing is not None,
        # Single surrogates, which details may contain, become escapes of JSON.
        "rest": as_unicode(json.dumps(rest, ensure_ascii=False)),
        "source": source,
        "created": created,
        "written": written,
        "checksum": checksum(vectors),
        **vectors,
    }


def item_of(row: Row) -> Item:
    """Return the item of a row."""
    rest: dict[str, Any] = json.loads(row["rest"])
    return Item(
        uri=shown_name(row["uri"]),
        content_hash=row["content_hash"],
        version=row["version"],
        width=None if row["width"] < 0 else row["width"],
        height=None if row["height"] < 0 else row["height"],
        format=row["format"] or None,
        label=row["label"] if row["labelled"] else None,
        added=datetime.fromtimestamp(row["created"] // 10**9, timezone.utc).isoformat(timespec="seconds"),
        id=row["id"],
        **rest,
    )


def too_long(row: Row) -> str | None:
    """Return the field of a row whose text is longer than Milvus holds; None if there is none."""
    return next((name for name, most in TEXT_FIELDS.items() if len(row[name].encode()) > most), None)


def checksum(vectors: Mapping[str, npt.ArrayLike]) -> int:
    """Return the CRC-32 of the embeddings of an item, over its fields in the order of their names."""
    value = 0
    for name in sorted(vectors):
        value = zlib.crc32(np.ascontiguousarray(vectors[name], "<f4").tobytes(), value)
    return value


def row_bytes(spaces: Mapping[str, Space]) -> int:
    """Return about the size of a row with its embeddings."""
    return 4 * sum(space.dimension for space in spaces.values()) + 1000


def vector_fields(spaces: Mapping[str, Space]) -> list[str]:
    """Return the fields of all embeddings."""
    return [vector_field(spaces, name) for name in spaces]
