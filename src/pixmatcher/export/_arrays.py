"""Export embeddings as NumPy arrays."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .._text import name_as_unicode
from .._version import __version__
from ..collection import ReadableStore
from ..sources.embedding_card import CARD, CATEGORIES, URIS, SavedSpace
from ._files import item_blocks, replaced_files, saved_spaces

_log = logging.getLogger("pixmatcher.export")

_NPY: Any = np.lib.format
"""The format of .npy files; older versions of NumPy have no types for it."""
_UNIT_TOLERANCE = 1e-2
"""The largest difference of the length of a row from 1, since its values are rounded to float16."""


def export_arrays(collection: ReadableStore, folder: str | os.PathLike[str], *, space: str | None = None) -> list[Path]:
    """Write the embeddings as NumPy arrays, with the categories and uris of the rows; return the paths of the files.

    embeddings.npy (N, D) float32 holds the space that image queries use, and embeddings_SPACE.npy each other space;
    with `space`, only that space is exported. categories.npy (N,) holds the labels, "" for none; uris.json is a list;
    encoder.json names the encoder. The rows are in the order of the ids. The source `arrays:FOLDER/embeddings.npy`
    imports the export.

    Raises `CollectionError` if the space does not exist, `StorageError` if the disk is full, `PixMatcherError` if the
    files cannot be written.
    """
    saved = saved_spaces(collection, space)
    paths = [Path(folder, name) for name in (*(s.file for s in saved), CATEGORIES, URIS, CARD)]
    with collection.snapshot(), replaced_files(paths) as files:
        *embeddings, categories, uris, card = files
        rows = len(collection)
        labels = collection.label_counts()
        label_type = np.dtype(f"<U{max(1, *map(len, labels))}" if labels else "<U1")
        for file, one in zip(embeddings, saved, strict=True):
            _write_header(file, np.dtype("<f4"), (rows, one.space.dimension))
        _write_header(categories, label_type, (rows,))
        units = [True] * len(saved)
        separator = b"[\n"
        for items in item_blocks(collection):
            ids = [item.id for item in items]
            for number, (file, one) in enumerate(zip(embeddings, saved, strict=True)):
                block = collection.embeddings(ids, one.space.name).astype("<f4", copy=False)
                units[number] &= _are_units(block)
                file.write(block.data)
            categories.write(np.array([item.label or "" for item in items], label_type).tobytes())
            for item in items:
                uris.write(separator + json.dumps(name_as_unicode(item.uri)).encode())
                separator = b",\n"
        uris.write(b"\n]\n" if rows else b"[]\n")
        described = [_card_entry(one, unit) for one, unit in zip(saved, units, strict=True)]
        about = {
            **described[0],
            "rows": rows,
            "further": described[1:],
            "label_names": {label: name for label, name in collection.label_names().items() if label in labels},
            "pixmatcher": __version__,
        }
        card.write(json.dumps(about, indent=2).encode() + b"\n")
    _log.info("%d embeddings exported to %s", rows, folder)
    return paths


def _card_entry(saved: SavedSpace, unit_length: bool) -> dict[str, Any]:
    """Return the entry of a file in the card of the export."""
    return {
        "file": saved.file,
        "encoder": saved.encoder,
        "fingerprint": saved.fingerprint,
        "space": saved.space.name,
        "dimension": saved.space.dimension,
        "text": saved.space.text,
        "unit_length": unit_length,
    }


def _write_header(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    header = {"descr": _NPY.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    _NPY.write_array_header_1_0(file, header)


def _are_units(rows: npt.NDArray[np.float32]) -> bool:
    return bool((np.abs(np.linalg.norm(rows, axis=1) - 1) < _UNIT_TOLERANCE).all())
