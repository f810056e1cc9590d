"""Exporting: the embeddings of a collection, and what is known of their images, as files for other tools.

All of it is written in blocks, out of one state of the collection, into new files that then take their places.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .._files import replacing_both
from .._version import __version__
from ..collection import Collection, Item
from ..errors import NO_ROOM, CollectionError, PixMatcherError, StorageError
from ..indexing.reading import in_batches
from ..sources.embedding_card import CARD, CATEGORIES, EMBEDDINGS, URIS, SavedSpace

_NPY: Any = np.lib.format
"""The format of .npy files; older versions of NumPy have no types for it."""
_ROWS_AT_ONCE = 2048
_PARQUET = "images.parquet"
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
    "added": "string",
    "details": "string",
}
"""What a Parquet file tells of an item, in the names of Arrow's types; the label's name and the embeddings follow."""
_UNIT_TOLERANCE = 1e-2
"""How far from 1 the length of a row may be: each of its values was rounded to float16."""


def export_arrays(collection: Collection, folder: str | os.PathLike[str], *, space: str | None = None) -> list[Path]:
    """Write the embeddings as NumPy's arrays, with the categories and uris of the rows; returns the files.

    embeddings.npy (N, D) float32 is the space that image queries use, or `space`, which is then the only one; each
    further space goes to embeddings_SPACE.npy. categories.npy (N,) are the labels, "" for none, uris.json is a list,
    and encoder.json tells what the embeddings are. The rows are in the order of the ids. `pixmatcher index arrays:`
    reads it all.

    Raises `CollectionError` if there is no such space, `StorageError` if the disk is full, `PixMatcherError` if the
    files cannot be written.
    """
    saved = _saved_spaces(collection, space)
    paths = [Path(folder, name) for name in (*(s.file for s in saved), CATEGORIES, URIS, CARD)]
    with collection.snapshot(), _writing(paths) as files:
        *embeddings, categories, uris, card = files
        rows = len(collection)
        labels = collection.label_counts()
        label_type = np.dtype(f"<U{max(1, *map(len, labels))}" if labels else "<U1")
        for file, one in zip(embeddings, saved, strict=True):
            _write_header(file, np.dtype("<f4"), (rows, one.space.dimension))
        _write_header(categories, label_type, (rows,))
        units = [True] * len(saved)
        separator = b"[\n"
        for items in _blocks(collection):
            ids = [item.id for item in items]
            for number, (file, one) in enumerate(zip(embeddings, saved, strict=True)):
                block = collection.embeddings(ids, one.space.name).astype("<f4", copy=False)
                units[number] &= _are_units(block)
                file.write(block.data)
            categories.write(np.array([item.label or "" for item in items], label_type).tobytes())
            for item in items:
                uris.write(separator + json.dumps(item.uri).encode())
                separator = b",\n"
        uris.write(b"\n]\n" if rows else b"[]\n")
        described = [_described(one, unit) for one, unit in zip(saved, units, strict=True)]
        about = {
            **described[0],
            "rows": rows,
            "further": described[1:],
            "label_names": {label: name for label, name in collection.label_names().items() if label in labels},
            "pixmatcher": __version__,
        }
        card.write(json.dumps(about, indent=2).encode() + b"\n")
    return paths


def export_parquet(collection: Collection, path: str | os.PathLike[str], *, space: str | None = None) -> list[Path]:
    """Write the items and their embeddings as one Parquet file; returns it.

    It is `path` if that ends in .parquet, or else images.parquet in the folder `path`. There is a column of fixed-size
    lists of float32 for each space, or for `space` alone.

    Raises `CollectionError` if there is no such space, `StorageError` if the disk is full, `PixMatcherError` if the
    file cannot be written or pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise PixMatcherError("Parquet files need pyarrow: run `pip install 'pixmatcher[parquet]'`.") from error
    saved = _saved_spaces(collection, space)
    columns = [(name, getattr(pyarrow, kind)()) for name, kind in {**_COLUMNS, "label_name": "string"}.items()]
    columns += [(one.space.name, pyarrow.list_(pyarrow.float32(), one.space.dimension)) for one in saved]
    schema = pyarrow.schema(columns)
    target = Path(path)
    target = target if target.suffix.lower() == ".parquet" else target / _PARQUET
    with collection.snapshot(), _writing([target]) as (file,):
        label_names = collection.label_names()
        with parquet.ParquetWriter(file, schema) as writer:
            for items in _blocks(collection):
                told = [
                    (*(getattr(item, name) for name in _COLUMNS), label_names.get(item.label or "")) for item in items
                ]
                arrays = [
                    pyarrow.array([_plain(value) for value in values], schema.field(number).type)
                    for number, values in enumerate(zip(*told, strict=True))
                ]
                for one in saved:
                    block = collection.embeddings([item.id for item in items], one.space.name)
                    arrays.append(pyarrow.FixedSizeListArray.from_arrays(block.reshape(-1), one.space.dimension))
                writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    return [target]


def _saved_spaces(collection: Collection, space: str | None) -> list[SavedSpace]:
    """The file of each space, or of the one asked for; that for images only comes first, if there is one."""
    pairs = [(record, one) for record in collection.encoders for one in record.spaces if space in (None, one.name)]
    if not pairs:
        raise CollectionError(f"There is no space {space!r} here: choose one of {', '.join(collection.spaces)}.")
    pairs.sort(key=lambda pair: pair[1].text)  # as image queries choose
    files = [EMBEDDINGS, *(f"embeddings_{one.name}.npy" for _, one in pairs[1:])]
    return [SavedSpace(file, r.name, r.fingerprint, one) for file, (r, one) in zip(files, pairs, strict=True)]


def _described(saved: SavedSpace, unit_length: bool) -> dict[str, Any]:
    return {
        "file": saved.file,
        "encoder": saved.encoder,
        "fingerprint": saved.fingerprint,
        "space": saved.space.name,
        "dimension": saved.space.dimension,
        "text": saved.space.text,
        "unit_length": unit_length,
    }


def _blocks(collection: Collection) -> Iterator[list[Item]]:
    return in_batches(collection.items(), _ROWS_AT_ONCE)


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": _NPY.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    _NPY.write_array_header_1_0(file, header)


def _are_units(rows: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(np.linalg.norm(rows, axis=1) - 1) < _UNIT_TOLERANCE).all())


def _plain(value: object) -> object:
    """A value for a column: details as JSON, and a file name that is not valid Unicode with escapes."""
    if isinstance(value, Mapping):
        return json.dumps(dict(value)) if value else None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


@contextmanager
def _writing(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """New files in one folder, which is made if need be, that take the places of these when the block ends well."""
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with replacing_both(*paths) as files:
            yield files
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise StorageError(
                f"{paths[0].parent} cannot be written ({reason}): make room and export again."
            ) from error
        raise PixMatcherError(
            f"{paths[0].parent} cannot be written ({reason}): name another place with --to."
        ) from error
