"""Sources by name: the kinds that a spec can name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import SourceError
from .protocol import Source


@dataclass(frozen=True)
class SourceKind:
    """A kind of source that a spec names by its prefix, `PREFIX:REST`."""

    prefix: str
    example: str
    """What to type behind `pixmatcher index`."""
    description: str
    open: Callable[[str], Source]
    """Makes the source of the rest of a spec."""


def _open_folder(rest: str) -> Source:
    from .folder import FolderSource

    return FolderSource(rest)


def _open_tiny_imagenet(rest: str) -> Source:
    from .tiny_imagenet import TinyImageNetSource

    return TinyImageNetSource(rest)


def _open_open_images(rest: str) -> Source:
    from .open_images import OpenImagesSource

    return OpenImagesSource(rest)


def _open_urls(rest: str) -> Source:
    from .urls import UrlListSource

    return UrlListSource(rest)


def _open_webdataset(rest: str) -> Source:
    from .webdataset import WebDatasetSource

    return WebDatasetSource(rest)


def _open_arrays(rest: str) -> Source:
    from .arrays import ArraysSource

    return ArraysSource(rest)


KINDS = (
    SourceKind("folder", "~/Pictures", "a folder of image files, with the folders below it", _open_folder),
    SourceKind(
        "tiny-imagenet",
        "'tiny-imagenet:tiny-imagenet-200.zip?split=val' -c tiny",
        "Tiny ImageNet, unpacked or the zip file as it is; split train (the default), val, test or all",
        _open_tiny_imagenet,
    ),
    SourceKind(
        "open-images",
        "'open-images:open-images-v7?split=validation' -c open",
        "Open Images, fetched: the folder of its csv files, or its image list alone; split train, validation or test",
        _open_open_images,
    ),
    SourceKind(
        "urls",
        "'urls:photos.csv?url=link&caption=title' -c photos",
        "a list of URLs, fetched: txt, csv, tsv, json, jsonl or parquet with a column url and, if you like, caption, "
        "label, id; each can be chosen; ?base=https://host/folder/ goes before names without host",
        _open_urls,
    ),
    SourceKind(
        "webdataset",
        "'webdataset:laion/{00000..00012}.tar' -c laion",
        "tar files of images with captions, as img2dataset writes them: one, several ({a..b}, *) or a folder of them",
        _open_webdataset,
    ),
    SourceKind(
        "arrays",
        "arrays:embeddings.npy --categories categories.npy --uris uris.json --encoder lite -c saved",
        "saved embeddings, as `pixmatcher export arrays` writes them, or of MobileNetV3 or CLIP",
        _open_arrays,
    ),
)


def open_source(spec: str) -> Source:
    """The source that `spec` names: `KIND:REST` for one of `KINDS`, or the path of a folder.

    Raises `SourceError` if there is none.
    """
    prefix, colon, rest = spec.partition(":")
    if colon and not os.path.lexists(spec):
        for kind in KINDS:
            if kind.prefix == prefix:
                if not rest:
                    raise SourceError(f"{spec} names no place: write it like `pixmatcher index {kind.example}`.")
                return kind.open(rest)
    return _open_folder(spec)
