"""Public data sets to index: Tiny ImageNet, and the lists of Open Images, whose images stay where they are.

Where they come from and how long they are: http://cs231n.stanford.edu/tiny-imagenet-200.zip, whose length and SHA-256
many projects have published, and https://storage.googleapis.com/openimages/web/download_v7.html. What is put into a
folder is noted there, so that the same call again finds it done, and another one does not mix two of them.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import zipfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from .._files import explain_disk_errors, replacing
from .._locks import locked_file
from .._progress import Progress, ProgressCallback, with_stage
from .._urls import without_password
from ..errors import FetchError, PixMatcherError, QueryError, SourceError
from ..net.download import download
from ..net.stream import stream
from ..net.unzip import check_contents, open_zip, unzip
from ..sources.tiny_imagenet import dataset_root


@dataclass(frozen=True)
class Dataset:
    """A data set that can be had by its name."""

    name: str
    description: str
    terms: str
    size: str
    example: str


DATASETS = (
    Dataset(
        "tiny-imagenet",
        "Tiny ImageNet: 110,000 labelled images of 64 x 64 pixels in 200 classes, and 10,000 without labels",
        "for non-commercial research and education, as ImageNet (https://image-net.org/download)",
        "248 MB, and 0.5 GB of disk unpacked",
        "pixmatcher datasets get tiny-imagenet",
    ),
    Dataset(
        "open-images",
        "Open Images V7: lists of photos on the web, with labels, authors and licences; the photos are not downloaded",
        "lists: CC BY 4.0, Google; photos: listed as CC BY 2.0, to be verified for each",
        "validation 44 MB (41,620 images), test 139 MB (125,436), train 3.4 GB (1,743,042)",
        "pixmatcher datasets get open-images --split validation --limit 1000",
    ),
)

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_IMAGENET_SIZE = 248_100_043
_TINY_IMAGENET_SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
_TINY_IMAGENET_FOLDER = "tiny-imagenet-200"
_LONGEST_ZIP = 1 << 30

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

_NOTE = ".pixmatcher.json"


def get_dataset(
    name: str,
    folder: Path | None = None,
    *,
    url: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    unpack: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Download the data set of that name into `folder`, by default one of its name; what there is to index then.

    Raises `QueryError` for a name that is none and for what does not go with it, and what the function of it raises.
    """
    given = {"--split": split, "--limit": limit, "--no-unpack": unpack}
    foreign = {"tiny-imagenet": ("--split", "--limit"), "open-images": ("--no-unpack",)}.get(name)
    if foreign is None:
        raise QueryError(f"There is no data set {name}: name one of {', '.join(d.name for d in DATASETS)}.")
    for option in foreign:
        if given[option] is not None:
            raise QueryError(f"{option} does not go with {name}: leave it out.")
    place = folder or Path(name)
    if name == "tiny-imagenet":
        return get_tiny_imagenet(place, url=url, unpack=unpack is not False, progress=progress)
    return get_open_images(place, split or "validation", limit, base_url=url, progress=progress)


def get_tiny_imagenet(
    folder: Path, *, url: str | None = None, unpack: bool = True, progress: ProgressCallback | None = None
) -> Path:
    """Download Tiny ImageNet into `folder`, made if need be, from `url` or where it comes from; where it lies then.

    That is the folder tiny-imagenet-200 or, unless it is to be unpacked, the zip file. What is there already is not
    downloaded again. The zip file of the original URL must have its length and SHA-256, any other one must be whole.
    Unpacking leaves nothing or everything, and deletes the zip file if this call has downloaded it.

    Raises what `download` raises, and `FetchError` if what the URL gives is not Tiny ImageNet or not safe to unpack.
    """
    source = url or TINY_IMAGENET_URL
    note = {"url": without_password(source)}
    unpacked, archive = folder / _TINY_IMAGENET_FOLDER, folder / _zip_name(source)
    original = source == TINY_IMAGENET_URL
    with _filling(folder, progress):
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
    return unpacked


def get_open_images(
    folder: Path,
    split: str = "validation",
    limit: int | None = None,
    *,
    base_url: str | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Download the lists of a split of Open Images (images, labels, names of labels) into `folder`, made if need be.

    With a `limit` the list of images ends after so many, and of the labels only theirs are kept; header and rows are
    those of the original, in its order. Without, the lists are downloaded as they are. Returns the folder.

    Raises what `download` raises, `SourceError` for an unknown split, and `PixMatcherError` if other lists of the split
    are there that would be lost.
    """
    if split not in _OPEN_IMAGES:
        raise SourceError(f"Open Images has no split {split}: name one of {', '.join(_OPEN_IMAGES)}.")
    base = (base_url or OPEN_IMAGES_URL).rstrip("/")
    images, labels = (f"{base}/{name}" for name in _OPEN_IMAGES[split])
    with _filling(folder, progress):
        note, path = {"url": without_password(base), "limit": limit, "done": True}, folder / f".pixmatcher-{split}.json"
        if _read_note(path) == note:
            return folder
        _make_way(folder, split, note, _read_note(path))
        _write_note(path, note | {"done": False})
        _whole(f"{base}/{_CLASS_NAMES}", folder, progress)
        if limit is None:
            _whole(images, folder, progress)
            _whole(labels, folder, progress)
        else:
            ids: set[bytes] = set()
            _copy_rows(images, folder, ids, limit, progress)
            _copy_rows(labels, folder, ids, None, progress)
        _write_note(path, note)
    return folder


@contextlib.contextmanager
def _filling(folder: Path, progress: ProgressCallback | None) -> Iterator[None]:
    """Make the folder and keep other processes from filling it; what the disk has against that is told."""

    def waiting() -> None:
        if progress is not None:
            progress(Progress("Waiting for another process", 0, None, "steps"))

    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / ".pixmatcher.lock"
        with locked_file(lock, waiting):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


def _read_note(path: Path) -> dict[str, object] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_note(path: Path, note: Mapping[str, object]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(note).encode())


# Tiny ImageNet


def _zip_name(url: str) -> str:
    """What the zip file of the URL is called on disk."""
    name = urlsplit(url).path.rpartition("/")[2]
    return name if re.fullmatch(r"[\w-][\w.-]{0,99}\.zip", name, re.ASCII) else f"{_TINY_IMAGENET_FOLDER}.zip"


def _check_tiny_imagenet(url: str, hashed: bool, progress: ProgressCallback | None, path: Path) -> None:
    """Raise `FetchError` if a downloaded file is not what it should be, as far as its hash does not tell."""
    try:
        with open_zip(path) as archive:
            _root(archive)
            if not hashed:
                check_contents(archive, progress)
    except zipfile.BadZipFile as error:
        raise FetchError(
            f"What {without_password(url)} gave is of no use, and it was deleted ({error}): run the same command "
            "again, or give another URL with --url."
        ) from error


def _root(archive: zipfile.ZipFile) -> str:
    root = dataset_root(archive.namelist())
    if root is None:
        raise zipfile.BadZipFile("it is no Tiny ImageNet: it has no wnids.txt")
    return root


def _is_unpacked(folder: Path, note: Mapping[str, object]) -> bool:
    if os.path.lexists(folder) and _read_note(folder / _NOTE) != note:
        raise PixMatcherError(
            f"{folder} is there already, but not from {note['url']}: index it as it is, delete it, or choose another "
            "folder with --to."
        )
    return folder.is_dir()


def _unpack(path: Path, folder: Path, note: Mapping[str, object], progress: ProgressCallback | None) -> None:
    """Unpack the zip file at `path`; whenever this is killed, `folder` is there with all of it or not at all."""
    beside = folder.with_name(f".{folder.name}.unpacking")
    try:
        if beside.exists():
            shutil.rmtree(beside)
        with open_zip(path) as archive:
            unzip(archive, beside, below=_root(archive), progress=progress)
        _write_note(beside / _NOTE, note)
        os.sync()  # one by one, so many small files would take long
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# Open Images


def _file_name(url: str) -> str:
    return url.rpartition("/")[2]


def _make_way(folder: Path, split: str, note: Mapping[str, object], before: Mapping[str, object] | None) -> None:
    """Delete lists that end after another limit. Raises `PixMatcherError` if there are any that may be whole."""
    paths = [folder / _file_name(name) for name in _OPEN_IMAGES[split]]
    ours = before is not None and before.get("limit") is not None
    same = before is not None and all(before.get(key) == note[key] for key in ("url", "limit"))
    if ours and not same:
        for path in paths:
            path.unlink(missing_ok=True)
    elif not same and (before is not None or note["limit"] is not None) and any(map(os.path.lexists, paths)):
        raise PixMatcherError(
            f"{folder} has other lists of the split {split} already: delete them, or choose another folder with --to."
        )


def _whole(url: str, folder: Path, progress: ProgressCallback | None) -> None:
    """Download a list as it is."""
    name = _file_name(url)
    check = partial(_check_list, url)
    download(url, folder / name, max_bytes=_LONGEST_LIST, check=check, progress=with_stage(progress, name))


def _check_list(url: str, path: Path) -> None:
    with path.open("rb") as file:
        start = file.readline(_LONGEST_LINE)
    # The names of the classes have had no header in some versions.
    if b"ImageID" not in start and b"LabelName" not in start and not start.startswith(b"/m/"):
        raise _no_list(url)


def _no_list(url: str) -> FetchError:
    return FetchError(f"{without_password(url)} gave something else than a list of Open Images: check the URL.")


class _ChangedError(Exception):
    """There is another list at the URL now."""


def _copy_rows(url: str, folder: Path, ids: set[bytes], limit: int | None, progress: ProgressCallback | None) -> None:
    """Copy the header of a list and the rows of the images `ids`, or of its first `limit` images, which then are `ids`.

    What is not copied is not kept, and nothing is read beyond the last row that is wanted of a limit.
    """
    name = _file_name(url)
    for _ in range(3):
        with contextlib.suppress(_ChangedError), contextlib.closing(_lines(url, with_stage(progress, name))) as lines:
            rows = _rows(lines)
            header, names = next(rows, (b"", []))
            names = [field.removeprefix(b"\xef\xbb\xbf").strip() for field in names]
            if b"ImageID" not in names:
                raise _no_list(url)
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
                    raise _no_list(url)
            return
    raise FetchError(f"{without_password(url)} changes while it is read: run the same command again.")


def _lines(url: str, progress: ProgressCallback | None) -> Generator[bytes, None, None]:
    """The lines of a text at a URL. Raises `_ChangedError` if it had to be begun anew."""
    rest = b""
    with contextlib.closing(stream(url, max_bytes=_LONGEST_LIST)) as pieces:
        for number, piece in enumerate(pieces):
            if number and not piece.data:
                raise _ChangedError
            *lines, rest = (rest + piece.data).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                raise _no_list(url)
            for line in lines:
                yield line + b"\n"
            if progress is not None:
                done = piece.position + len(piece.data)
                progress(Progress("Downloading", done, piece.version.length, "bytes"))
    if rest:
        yield rest


def _rows(lines: Iterator[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    """The rows of a csv as they are, with their fields; none where quotes are broken."""
    for line in lines:
        if b'"' in line:
            yield _quoted_row(line, lines)
        else:
            yield line, line.rstrip(b"\r\n").split(b",")


def _quoted_row(line: bytes, lines: Iterator[bytes]) -> tuple[bytes, list[bytes]]:
    """The row that begins with `line`; it goes on in the next `lines` if a quoted field does."""
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
