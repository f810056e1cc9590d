"""Open Images V7: download its lists of images and labels; the images stay where they are.

Source: https://storage.googleapis.com/openimages/web/download_v7.html.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

from .._files import replacing
from .._progress import Progress, ProgressCallback, with_stage
from .._urls import without_password
from ..errors import FetchError, PixMatcherError, SourceError
from ..net.download import download
from ..net.stream import stream
from ._folder import locked_folder, read_note, write_note

_log = logging.getLogger("pixmatcher.datasets")

OPEN_IMAGES_URL = "https://storage.googleapis.com/openimages"
_OPEN_IMAGES = {
    "train": (
        "2018_04/train/train-images-boxable-with-rotation.csv",
        "v7/oidv7-train-annotations-human-imagelabels.csv",
    ),
    "validation": (
        "2018_04/validation/validation-images-with-rotation.csv",
        "v7/oidv7-val-annotations-human-imagelabels.csv",
    ),
    "test": (
        "2018_04/test/test-images-with-rotation.csv",
        "v7/oidv7-test-annotations-human-imagelabels.csv",
    ),
}
_CLASS_NAMES = "v7/oidv7-class-descriptions.csv"
_LONGEST_LIST = 16 << 30
_LONGEST_LINE = 1 << 20


def get_open_images(
    folder: Path,
    split: str = "validation",
    limit: int | None = None,
    *,
    base_url: str | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Download the lists of a split of Open Images (images, labels, names of labels) into `folder`, and return it.

    The folder is created if it does not exist. With a `limit`, the list of images ends after that many images, and only
    their labels are kept; header and rows are those of the original, in its order. Without it, the lists are downloaded
    unchanged.

    Raises as `download`, `SourceError` for an unknown split, and `PixMatcherError` if the folder has other lists of the
    split, which would be lost.
    """
    if split not in _OPEN_IMAGES:
        raise SourceError(f"Open Images has no split {split}: choose one of {', '.join(_OPEN_IMAGES)}.")
    base = (base_url or OPEN_IMAGES_URL).rstrip("/")
    images, labels = (f"{base}/{name}" for name in _OPEN_IMAGES[split])
    with locked_folder(folder, progress):
        note, path = {"url": without_password(base), "limit": limit, "done": True}, folder / f".pixmatcher-{split}.json"
        if read_note(path) == note:
            return folder
        _remove_outdated(folder, split, note, read_note(path))
        write_note(path, note | {"done": False})
        _download_list(f"{base}/{_CLASS_NAMES}", folder, progress)
        if limit is None:
            _download_list(images, folder, progress)
            _download_list(labels, folder, progress)
        else:
            ids: set[bytes] = set()
            _copy_rows(images, folder, ids, limit, progress)
            _copy_rows(labels, folder, ids, None, progress)
        write_note(path, note)
    _log.info("Lists of the split %s of Open Images are in %s", split, folder)
    return folder


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _remove_outdated(folder: Path, split: str, note: Mapping[str, object], before: Mapping[str, object] | None) -> None:
    """Delete lists with another limit. Raises `PixMatcherError` if there are lists that may be complete."""
    paths = [folder / _file_name(name) for name in _OPEN_IMAGES[split]]
    ours = before is not None and before.get("limit") is not None
    same = before is not None and all(before.get(key) == note[key] for key in ("url", "limit"))
    if ours and not same:
        for path in paths:
            path.unlink(missing_ok=True)
    elif not same and (before is not None or note["limit"] is not None) and any(map(os.path.lexists, paths)):
        raise PixMatcherError(
            f"{folder} already has other lists of the split {split}: delete them, or choose another folder with --to."
        )


def _download_list(url: str, folder: Path, progress: ProgressCallback | None) -> None:
    """Download a list unchanged."""
    name = _file_name(url)
    check = partial(_check_list, url)
    download(url, folder / name, max_bytes=_LONGEST_LIST, check=check, progress=with_stage(progress, name))


def _check_list(url: str, path: Path) -> None:
    with path.open("rb") as file:
        start = file.readline(_LONGEST_LINE)
    # The names of the classes have had no header in some versions.
    if b"ImageID" not in start and b"LabelName" not in start and not start.startswith(b"/m/"):
        raise _not_a_list(url)


def _not_a_list(url: str) -> FetchError:
    return FetchError(f"{without_password(url)} did not return a list of Open Images: check the URL.")


class _ChangedError(Exception):
    """The list at the URL has changed during the download."""


def _copy_rows(url: str, folder: Path, ids: set[bytes], limit: int | None, progress: ProgressCallback | None) -> None:
    """Copy the header of a list and the rows of the images `ids`; with a `limit`, its first images, which become `ids`.

    Other rows are not stored. With a `limit`, reading ends after the last row that is copied.
    """
    name = _file_name(url)
    for _ in range(3):
        with contextlib.suppress(_ChangedError), contextlib.closing(_lines(url, with_stage(progress, name))) as lines:
            rows = _rows(lines)
            header, names = next(rows, (b"", []))
            names = [field.removeprefix(b"\xef\xbb\xbf").strip() for field in names]
            if b"ImageID" not in names:
                raise _not_a_list(url)
            column = names.index(b"ImageID")
            if limit is not None:
                ids.clear()
            with replacing(folder / name) as file:
                file.write(header)
                for row, fields in rows:
                    image = fields[column] if column < len(fields) else b""
                    if limit is None:
                        if image in ids:
                            file.write(row)
                    elif image and image not in ids:
                        ids.add(image)
                        file.write(row)
                        if len(ids) == limit:
                            break
                if not ids:
                    raise _not_a_list(url)
            return
    raise FetchError(f"{without_password(url)} changed while it was read: run the same command again.")


def _lines(url: str, progress: ProgressCallback | None) -> Generator[bytes, None, None]:
    """Yield the lines of a text at a URL. Raises `_ChangedError` if the download had to start again."""
    rest = b""
    with contextlib.closing(stream(url, max_bytes=_LONGEST_LIST)) as pieces:
        for number, piece in enumerate(pieces):
            if number and not piece.data:
                _log.debug("%s changed during the download", without_password(url))
                raise _ChangedError
            *lines, rest = (rest + piece.data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise _not_a_list(url)
            for line in lines:
                yield line + b"\n"
            if progress is not None:
                done = piece.position + len(piece.data)
                progress(Progress("Downloading", done, piece.version.length, "bytes"))
    if rest:
        yield rest


def _rows(lines: Iterator[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield the rows of a CSV file unchanged, with their fields; a row with broken quotes has no fields."""
    for line in lines:
        if b'"' in line:
            yield _quoted_row(line, lines)
        else:
            yield line, line.rstrip(b"\r\n").split(b",")


def _quoted_row(line: bytes, lines: Iterator[bytes]) -> tuple[bytes, list[bytes]]:
    """Return the row that begins with `line`, and continues in the next `lines` if a quoted field does."""
    row = []

    def decoded() -> Iterator[str]:
        for part in chain([line], lines):
            row.append(part)
            yield part.decode("utf-8", "surrogateescape")

    try:
        fields = next(csv.reader(decoded()))
    except csv.Error:
        fields = []
    return b"".join(row), [field.encode("utf-8", "surrogateescape") for field in fields]
