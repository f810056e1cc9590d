"""Export items and embeddings as a Parquet file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from .._text import name_as_unicode
from ..collection import ReadableStore
from ..errors import PixMatcherError
from ._files import item_blocks, replaced_files, saved_spaces

_log = logging.getLogger("pixmatcher.export")

_FILE_NAME = "images.parquet"
_COLUMNS = {
    "id": "int64",
    "uri": "string",
    "label": "string",
    "caption": "string",
    "width": "int64",
    "height": "int64",
    "format": "string",
    "bytes": "int64",
    "content_hash": "string",
    "modified": "string",
    "taken": "string",
    "missing": "float64",
    "added": "string",
    "details": "string",
}
"""The columns of an item and their Arrow types; the name of the label and the embeddings follow."""


def export_parquet(collection: ReadableStore, path: str | os.PathLike[str], *, space: str | None = None) -> list[Path]:
    """Write the items and their embeddings as one Parquet file; return a list with its path.

    The file is `path` if that ends in .parquet, otherwise images.parquet in the folder `path`. Each space, or only
    `space`, is a column of fixed-size lists of float32.

    Raises `CollectionError` if the space does not exist, `StorageError` if the disk is full, `PixMatcherError` if the
    file cannot be written or pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise PixMatcherError("Parquet files need pyarrow: run `pip install 'pixmatcher[parquet]'`.") from error
    saved = saved_spaces(collection, space)
    columns = [(name, getattr(pyarrow, kind)()) for name, kind in {**_COLUMNS, "label_name": "string"}.items()]
    columns += [(one.space.name, pyarrow.list_(pyarrow.float32(), one.space.dimension)) for one in saved]
    schema = pyarrow.schema(columns)
    target = Path(path)
    target = target if target.suffix.lower() == ".parquet" else target / _FILE_NAME
    with collection.snapshot(), replaced_files([target]) as (file,):
        label_names = collection.label_names()
        with parquet.ParquetWriter(file, schema) as writer:
            for items in item_blocks(collection):
                values_of = [
                    (*(getattr(item, name) for name in _COLUMNS), label_names.get(item.label or "")) for item in items
                ]
                arrays = [
                    pyarrow.array([_plain(value) for value in values], schema.field(number).type)
                    for number, values in enumerate(zip(*values_of, strict=True))
                ]
                for one in saved:
                    block = collection.embeddings([item.id for item in items], one.space.name)
                    arrays.append(pyarrow.FixedSizeListArray.from_arrays(block.reshape(-1), one.space.dimension))
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    _log.info("Items and embeddings exported to %s", target)
    return [target]


def _plain(value: object) -> object:
    """Return a value for a column: details as JSON, and the path of a file that is not valid Unicode as its URL."""
    if isinstance(value, Mapping):
        return json.dumps(dict(value)) if value else None
    return name_as_unicode(value) if isinstance(value, str) else value
