"""The kinds of sources that a spec can name: those of PixMatcher, and those that other packages declare.

Another package declares a kind as an entry point of the group `pixmatcher.sources`, whose name is the prefix of its
specs. It is a class or a function that takes the part of the spec after the colon and returns a `Source`:

    [project.entry-points."pixmatcher.sources"]
    camera = "my_package:CameraSource"

`pixmatcher sources` shows the first line of its docstring and, if it has one, its attribute `example`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from .._plugins import SOURCES, load_plugin, plugin_names
from .._urls import is_file_url, is_url, path_of_file_url
from ..errors import SourceError
from .protocol import Source

_log = logging.getLogger("pixmatcher.sources")


@dataclass(frozen=True)
class SourceKind:
    """A kind of source that a spec names by its prefix, `PREFIX:REST`."""

    prefix: str
    example: str
    """An argument of `pixmatcher index`."""
    description: str
    open: Callable[[str], Source]
    """Create the source from the rest of a spec."""


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


def _open_s3(rest: str) -> Source:
    from .bucket import BucketSource

    return BucketSource(f"s3:{rest}")


def _open_gs(rest: str) -> Source:
    from .bucket import BucketSource

    return BucketSource(f"gs:{rest}")


KINDS: tuple[SourceKind, ...] = (
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
        "a list of URLs, fetched: txt, csv, tsv, json, jsonl or parquet with a column url and, optionally, caption, "
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
        "arrays:embeddings.npy --uris uris.json --encoder lite -c c",
        "saved embeddings, as `pixmatcher export arrays` writes them, or of MobileNetV3 or CLIP",
        _open_arrays,
    ),
    SourceKind(
        "s3", "s3://bucket/photos -c photos", "the images in a bucket of Amazon S3, or of another such server", _open_s3
    ),
    SourceKind("gs", "gs://bucket/photos -c photos", "the images in a bucket of Google Cloud Storage", _open_gs),
)


def source_kinds() -> Iterator[SourceKind]:
    """Yield the kinds of `KINDS`, then those that other packages declare, sorted by prefix.

    A kind that cannot be imported has the reason as its description.
    """
    yield from KINDS
    built_in = {kind.prefix for kind in KINDS}
    for prefix in plugin_names(SOURCES):
        if prefix in built_in:
            continue
        example = f"{prefix}:..."
        try:
            factory = load_plugin(SOURCES, prefix, SourceError)
            description = (factory.__doc__ or "").strip().partition("\n")[0] or "a source of another package"
            example = str(getattr(factory, "example", example))
        except SourceError as error:
            description = str(error)
        yield SourceKind(prefix, example, description, partial(_open_plugin, prefix))


def open_source(spec: str) -> Source:
    """Return the source that `spec` names: `PREFIX:REST` of a kind, or the path of a folder or its URL, `file:///PATH`.

    Raises `SourceError` if it does not exist or cannot be read, or if its kind is declared by a broken package.
    """
    if is_file_url(spec) and not os.path.lexists(spec):
        return _open_folder(path_of_file_url(spec))
    prefix, colon, rest = spec.partition(":")
    if colon and not os.path.lexists(spec):
        for kind in KINDS:
            if kind.prefix == prefix:
                if not rest:
                    raise SourceError(f"{spec} has no path: write it like `pixmatcher index {kind.example}`.")
                return kind.open(_with_local_path(rest) if kind.prefix != "arrays" else rest)
        if prefix in plugin_names(SOURCES):
            return _open_plugin(prefix, rest)
    if is_url(spec) and not os.path.lexists(spec):
        raise SourceError(
            f"{spec} is a URL, not a folder: write the URLs of images to a file, one a line, and index urls:FILE.txt."
        )
    return _open_folder(spec)


def _with_local_path(rest: str) -> str:
    """Return the rest of a spec, in which the URL of a file has become its path."""
    if not is_file_url(rest):
        return rest
    url, mark, options = rest.partition("?")
    return path_of_file_url(url) + mark + options


def _open_plugin(prefix: str, rest: str) -> Source:
    """Return a source of a kind that another package declares. Raises `SourceError` if the package is broken."""
    factory = load_plugin(SOURCES, prefix, SourceError)
    if factory is None:
        raise SourceError(f"No installed package declares sources {prefix}:... any more: install the package again.")
    try:
        source = factory(rest)
    except SourceError:
        raise
    except Exception as error:  # the code of another package may raise anything
        raise SourceError(
            f"The source {prefix}:{rest} cannot be opened ({type(error).__name__}: {error}): check the name, or repair "
            "the package that declares it."
        ) from error
    check_source(source)
    if not source.spec.startswith(f"{prefix}:"):
        raise SourceError(f"The source {prefix}:{rest} has the spec {source.spec!r}: it must begin with {prefix}:.")
    _log.debug("Source %s opened by a plug-in", source.spec)
    opened: Source = source
    return opened


def check_source(source: object) -> None:
    """Raise `SourceError` if an object lacks a member of `Source`."""
    members = ("spec", "folder", "remote", "thumbnails", "scan", "open", "label_names")
    missing = [name for name in members if not hasattr(source, name)]
    if missing:
        raise SourceError(
            f"{type(source).__name__} is not a source, it has no member {missing[0]!r}: implement all members of "
            "pixmatcher.sources.Source."
        )
