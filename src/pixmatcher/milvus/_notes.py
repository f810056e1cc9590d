"""What a collection keeps besides its items: values of JSON, each with a kind and a key, and thumbnails.

A field of Milvus holds up to 65,535 bytes, so a long value is divided among several rows, which are written at once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ._expressions import quoted, shown_name, stored_name
from ._tables import Row, Table, id_of

MANIFEST, STATE, LABEL_NAMES, INDEX = "manifest", "state", "label names", "index"
SOURCE, FAILURE, CALIBRATION = "source", "failure", "calibration"
THUMBNAIL = "thumbnail"
_PART = 60_000
_FIELDS = ("kind", "key", "part", "parts", "value")


class Notes:
    """Values by their kind and key. The last value of a key counts."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def put(self, kind: str, values: Mapping[str, Any], *, awaited: bool = True) -> None:
        """Store values of JSON by their keys. `awaited` says that the next read must see them."""
        self.put_texts(kind, {key: json.dumps(value) for key, value in values.items()}, awaited=awaited)

    def put_texts(self, kind: str, texts: Mapping[str, str], *, awaited: bool = True) -> None:
        """Store texts in ASCII by their keys."""
        rows = [row for key, text in texts.items() for row in _rows_of(kind, key, text)]
        size = max((len(row["value"]) for row in rows), default=0) + 200
        self.table.put(rows, row_bytes=size, awaited=awaited)

    def get(self, kind: str, key: str = "") -> Any:
        """Return the value of a key; None if there is none."""
        text = self.get_text(kind, key)
        return None if text is None else json.loads(text)

    def get_text(self, kind: str, key: str) -> str | None:
        """Return the text of a key; None if there is none."""
        first_id = id_of(kind, key, "0")
        first = self.table.get([first_id], _FIELDS).get(first_id)
        if first is None:
            return None
        others = [id_of(kind, key, str(part)) for part in range(1, first["parts"])]
        found = self.table.get(others, _FIELDS, row_bytes=_PART) if others else {}
        return _joined([first, *(found[each] for each in others if each in found)])

    def all(self, kind: str) -> Iterator[tuple[str, Any]]:
        """Yield key and value of all values of a kind, in no particular order."""
        divided: dict[str, list[Row]] = {}
        for row in self.table.rows(_FIELDS, f"kind == {quoted(kind)}", whole=False):
            if row["parts"] == 1:
                yield shown_name(row["key"]), json.loads(row["value"])
            else:
                divided.setdefault(row["key"], []).append(row)
        for key, rows in divided.items():
            text = _joined(sorted(rows, key=lambda row: int(row["part"])))
            if text is not None:
                yield shown_name(key), json.loads(text)

    def delete(self, kind: str, keys: Iterable[str]) -> None:
        """Delete the values of these keys."""
        found = self.table.get([id_of(kind, key, "0") for key in keys], ("key", "parts"))
        ids = [id_of(kind, shown_name(row["key"]), str(part)) for row in found.values() for part in range(row["parts"])]
        if ids:
            self.table.delete(ids)


class Thumbnails:
    """Small JPEG files by the content hash of their images."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def put(self, thumbnails: Mapping[str, bytes]) -> None:
        """Store thumbnails."""
        texts = {key: base64.b64encode(jpeg).decode("ascii") for key, jpeg in thumbnails.items()}
        self._notes.put_texts(THUMBNAIL, texts)

    def get(self, content_hash: str) -> bytes | None:
        """Return the thumbnail of an image; None if there is none or it is damaged."""
        text = self._notes.get_text(THUMBNAIL, content_hash)
        try:
            return None if text is None else base64.b64decode(text, validate=True)
        except ValueError:
            return None

    def delete(self, content_hashes: Iterable[str]) -> None:
        """Delete thumbnails."""
        self._notes.delete(THUMBNAIL, content_hashes)


def _rows_of(kind: str, key: str, text: str) -> Iterator[dict[str, Any]]:
    parts = [text[start : start + _PART] for start in range(0, len(text), _PART)] or [""]
    for number, part in enumerate(parts):
        yield {
            "id": id_of(kind, key, str(number)),
            "kind": kind,
            "key": stored_name(key),
            "part": number,
            "parts": len(parts),
            "value": part,
            "unused": [0.0, 1.0],
        }


def _joined(rows: Sequence[Row]) -> str | None:
    """Return the text of all its parts, in their order; None if one is missing."""
    if [row["part"] for row in rows] != [*range(rows[0]["parts"])]:
        return None
    return "".join(row["value"] for row in rows)
