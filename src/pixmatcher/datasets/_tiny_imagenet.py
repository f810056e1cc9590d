"""Tiny ImageNet: download and unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip.

Its length and SHA-256 are published by many projects.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from .._progress import ProgressCallback
from .._urls import without_password
from ..errors import FetchError, PixMatcherError
from ..net.download import download
from ..net.unzip import check_contents, open_zip, unzip
from ..sources.tiny_imagenet import dataset_root
from ._folder import locked_folder, read_note, write_note

_log = logging.getLogger("pixmatcher.datasets")

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_IMAGENET_SIZE = 248_100_043
_TINY_IMAGENET_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
_TINY_IMAGENET_FOLDER = "tiny-imagenet-200"
_LONGEST_ZIP = 1 << 30
_NOTE = ".pixmatcher.json"


def get_tiny_imagenet(
    folder: Path, *, url: str | None = None, unpack: bool = True, progress: ProgressCallback | None = None
) -> Path:
    """Download Tiny ImageNet into `folder`, which is created if it does not exist, from `url` or its original URL.

    Return the path of the folder tiny-imagenet-200 or, without `unpack`, of the zip file. Existing files are not
    downloaded again. The zip file of the original URL must have the known length and SHA-256; any other one must be
    complete. Unpacking is all or nothing, and deletes the zip file if this call has downloaded it.

    Raises as `download`, and `FetchError` if the URL does not give Tiny ImageNet or the zip file is not safe to unpack.
    """
    source = url or TINY_IMAGENET_URL
    note = {"url": without_password(source)}
    unpacked, archive = folder / _TINY_IMAGENET_FOLDER, folder / _zip_name(source)
    original = source == TINY_IMAGENET_URL
    with locked_folder(folder, progress):
        if unpack and _is_unpacked(unpacked, note):
            return unpacked
        fresh = download(
            source,
            archive,
            size=_TINY_IMAGENET_SIZE if original else None,
            sha256=_TINY_IMAGENET_SHA256 if original else None,
            max_bytes=_LONGEST_ZIP,
            check=partial(_check_tiny_imagenet, source, original, progress),
            check_is_exact=True,
            progress=progress,
        )
        if not unpack:
            return archive
        try:
            _unpack(archive, unpacked, note, progress)
        except zipfile.BadZipFile as error:
            raise FetchError(
                f"{archive} cannot be unpacked ({error}): delete it and run the same command again."
            ) from None
        if fresh:
            archive.unlink()
    _log.info("%s is unpacked in %s", without_password(source), unpacked)
    return unpacked


def _zip_name(url: str) -> str:
    """Return the name on disk of the zip file of a URL."""
    name = urlsplit(url).path.rpartition("/")[2]
    return name if re.fullmatch(r"[\w-][\w.-]{0,99}\.zip", name, re.ASCII) else f"{_TINY_IMAGENET_FOLDER}.zip"


def _check_tiny_imagenet(url: str, hashed: bool, progress: ProgressCallback | None, path: Path) -> None:
    """Raise `FetchError` if a downloaded file is not Tiny ImageNet; read all of it unless its hash was compared."""
    try:
        with open_zip(path) as archive:
            _root(archive)
            if not hashed:
                check_contents(archive, progress)
    except zipfile.BadZipFile as error:
        raise FetchError(
            f"The file from {without_password(url)} cannot be used and was deleted ({error}): run the same command "
            "again, or give another URL with --url."
        ) from error


def _root(archive: zipfile.ZipFile) -> str:
    """Return the folder of the data set in a zip file. Raises `zipfile.BadZipFile` if there is none."""
    root = dataset_root(archive.namelist())
    if root is None:
        raise zipfile.BadZipFile("it is not Tiny ImageNet: it has no wnids.txt")
    return root


def _is_unpacked(folder: Path, note: Mapping[str, object]) -> bool:
    if os.path.lexists(folder) and read_note(folder / _NOTE) != note:
        raise PixMatcherError(
            f"{folder} exists already, but is not from {note['url']}: index it as it is, delete it, or choose another "
            "folder with --to."
        )
    return folder.is_dir()


def _unpack(path: Path, folder: Path, note: Mapping[str, object], progress: ProgressCallback | None) -> None:
    """Unpack the zip file at `path`. When this process is killed, `folder` is complete or does not exist."""
    unpacking = folder.with_name(f".{folder.name}.unpacking")
    try:
        if unpacking.exists():
            shutil.rmtree(unpacking)
        with open_zip(path) as archive:
            unzip(archive, unpacking, below=_root(archive), progress=progress)
        write_note(unpacking / _NOTE, note)
        os.sync()  # one call for each of so many small files would take long
        unpacking.rename(folder)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
