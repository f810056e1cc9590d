"""Unpack zip files from unknown sources. Nothing is written outside the given folder, whatever the names in it are."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

from .._progress import Progress, ProgressCallback

MAX_ENTRIES = 500_000
MAX_BYTES = 4 << 30
"""Largest contents in all, unpacked. Tiny ImageNet has 120,609 entries and 240 MB."""
_MAX_LISTING = 64 << 20  # bytes that zipfile may read at once; a list of half a million entries is shorter
_BLOCK = 1 << 20
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])( *\..*)?", re.IGNORECASE)
_DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)


class _BoundedFile(io.FileIO):
    """A file that limits a single read: zipfile would read a list of entries of any length that the file claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_LISTING:
            raise zipfile.BadZipFile("its list of entries is too long")
        return super().read(size) or b""


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip file whose entries can all be unpacked safely into a folder.

    Raises `zipfile.BadZipFile` if the file or the list of its entries is damaged, if an entry is not a plain file or
    folder, would be outside the folder, over another file or on a device, or if there are more than `MAX_ENTRIES` or
    more than `MAX_BYTES` in all; `OSError` if it cannot be read. The message says why and does not name the file.
    """
    with _BoundedFile(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE_ERRORS as error:
            raise zipfile.BadZipFile(f"it is not a complete zip file: {error}") from error
        with archive:
            _check_entries(archive.infolist())
            yield archive


def check_contents(archive: zipfile.ZipFile, progress: ProgressCallback | None = None) -> None:
    """Read every entry and compare it with its checksum. Raises `zipfile.BadZipFile` if one is damaged.

    `progress` is called with the unpacked bytes that are read so far, at the stage "Checking".
    """
    with open(os.devnull, "wb") as nowhere:
        _copy(archive, archive.infolist(), lambda _: nullcontext(nowhere), "Checking", progress)


def unzip(archive: zipfile.ZipFile, folder: Path, *, below: str = "", progress: ProgressCallback | None = None) -> None:
    """Unpack the contents of the folder `below` of a zip file into `folder`.

    `archive` is from `open_zip`, and `below` ends in a slash. Existing files are never overwritten. `progress` is
    called as by `check_contents`, at the stage "Unpacking". Raises `zipfile.BadZipFile` if an entry is damaged, and
    `OSError` if the disk fails or a file exists; what was unpacked until then stays.
    """
    made: set[Path] = set()

    def target(name: str) -> IO[bytes]:
        path = folder / name.removeprefix(below)
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        return open(path, "xb")

    folder.mkdir(parents=True, exist_ok=True)
    entries = [info for info in archive.infolist() if info.filename.startswith(below)]
    for info in entries:
        if info.is_dir():
            (folder / info.filename.removeprefix(below)).mkdir(parents=True, exist_ok=True)
    _copy(archive, entries, target, "Unpacking", progress)


def _copy(
    archive: zipfile.ZipFile,
    entries: list[zipfile.ZipInfo],
    target: Callable[[str], AbstractContextManager[IO[bytes]]],
    stage: str,
    progress: ProgressCallback | None,
) -> None:
    """Write the content of each entry that is a file to the file that `target` opens for its name."""
    total, done = sum(info.file_size for info in entries), 0
    for info in entries:
        if info.is_dir():
            continue
        with target(info.filename) as file:
            try:
                with archive.open(info) as content:
                    shutil.copyfileobj(content, file, _BLOCK)
            except _DAMAGE_ERRORS as error:
                raise zipfile.BadZipFile(f"{info.filename!r} in it is damaged: {error}") from error
        done += info.file_size
        if progress is not None:
            progress(Progress(stage, done, total, "bytes"))


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise zipfile.BadZipFile(f"it has {len(entries):,} entries, more than {MAX_ENTRIES:,}")
    total = sum(info.file_size for info in entries)
    if total > MAX_BYTES:
        raise zipfile.BadZipFile(f"unpacked it would have {total:,} bytes, more than {MAX_BYTES:,}")
    names: set[str] = set()
    folders: set[str] = set()
    for info in entries:
        if reason := _problem_of(info):
            raise zipfile.BadZipFile(f"{info.orig_filename!r} in it {reason}")
        name = info.filename.rstrip("/").casefold()
        if info.is_dir():
            folders.add(name)
        elif name in names:
            raise zipfile.BadZipFile(f"{info.orig_filename!r} is in it twice")
        else:
            names.add(name)
        while (name := name.rpartition("/")[0]) not in folders and name:
            folders.add(name)
    if both := names & folders:
        raise zipfile.BadZipFile(f"{min(both)!r} in it is a file and a folder")


def _problem_of(info: zipfile.ZipInfo) -> str | None:
    """Return why an entry must not be unpacked, as the end of a sentence; None if nothing is wrong."""
    name = info.orig_filename  # zipfile cuts its other name at a zero byte
    if not name.isprintable() or "\\" in name or ":" in name:
        return "has a name that is not a plain path"
    parts = name.removesuffix("/").split("/")
    if not all(parts) or "." in parts or ".." in parts:
        return "would be outside the folder"
    if any(len(os.fsencode(part)) > 255 for part in parts) or len(os.fsencode(name)) > 1024:
        return "has a name that is too long"
    if any(_DEVICE.fullmatch(part) for part in parts):
        return "has the name of a device"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or not a plain file"
    if info.header_offset < 0:
        return "is damaged: its position is before the beginning"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not supported"
    return None
