"""A folder of image files, with the folders below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from functools import cached_property
from stat import S_ISDIR, S_ISREG
from typing import IO

from .._files import file_version
from ..errors import SourceError
from ..images import ALLOWED_EXTENSIONS, has_image_content, open_regular_file, read_head
from ..records import CATALOG_NAME, COLLECTION_NAMES, FOLDER_NAME, MANIFEST_NAME, Entry, FolderNotes
from ._file_kinds import IMAGE_EXTENSIONS, JUNK, KIND_OF, shown_extension
from ._ignore import IGNORE_FILE, IgnoreRules, is_excluded
from ._judged import JudgedFiles
from .protocol import Unusable

# Folders with copies that other programs made (the thumbnails of Synology), and those that systems keep for themselves.
_SKIPPED = {"@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
_COLLECTION_FILES = {MANIFEST_NAME, CATALOG_NAME}
_UNLISTED = {FOLDER_NAME, IGNORE_FILE}
_MOST_IGNORE_BYTES = 1 << 18
_MOST_EXTENSIONS = 500
"""Extensions that are counted one by one; files with further ones are counted together."""


class FolderSource:
    """All image files below a folder.

    Names that begin with a dot are skipped, and what `exclude` or a file `.pixmatcherignore` leaves out. A file that
    has the extension of an image is listed unopened. A file that has the extension of something else is passed over
    unopened. Of any other file, the first bytes decide; they are read once for each version of the file.

    Links to files and folders are followed, each folder once. A link to a folder above itself is reported as a loop,
    and is not followed.
    """

    remote = thumbnails = False

    def __init__(self, path: str, *, exclude: Sequence[str] | None = None, hidden: bool | None = None) -> None:
        """`exclude` and `hidden` are those of `set_options`. Raises `SourceError` if `path` is not a folder."""
        if not path:
            raise SourceError("The name of the source is empty: name a folder of images.")
        self.spec = os.path.abspath(path)
        self.folder: str | None = self.spec
        self._top = self.spec
        if not os.path.isdir(self.spec):
            what = "is not a folder" if os.path.lexists(self.spec) else "does not exist"
            raise SourceError(f"{path} {what}: name a folder of images.")
        self._exclude: tuple[str, ...] | None = None
        self._hidden: bool | None = None
        self._kept = FolderNotes()
        self._scan: _Scan | None = None
        self._absent = False
        self._watch_rules: tuple[tuple[str, ...], IgnoreRules] | None = None
        self.set_options(exclude, hidden)

    def set_options(self, exclude: Sequence[str] | None, hidden: bool | None) -> None:
        """Choose what is listed; with None, that is as in the last run.

        `exclude` are patterns in the syntax of .gitignore, relative to the folder. They count more than those of files
        `.pixmatcherignore`. `hidden` says whether names that begin with a dot are listed too.
        """
        if isinstance(exclude, str):
            exclude = [exclude]
        if exclude is not None:
            self._exclude = tuple(pattern for pattern in exclude if pattern.strip())
        if hidden is not None:
            self._hidden = hidden

    def restore(self, notes: FolderNotes) -> None:
        """Continue from the notes of the last run. Options that were given to this object replace theirs."""
        self._kept = notes

    def folder_notes(self) -> FolderNotes:
        """Return what the next run needs to know, after `scan`."""
        return self._options() if self._scan is None else self._scan.update(self._options())

    def scan(self) -> Iterator[Entry | Unusable]:
        try:
            os.scandir(self._top).close()
        except OSError as error:
            raise SourceError(f"{self._top} cannot be read ({error.strerror}): check its permissions.") from error
        self._scan = _Scan(self._top, self._options())
        self._absent = False
        yield from self._scan.run()

    def passed_over(self) -> Iterator[tuple[str, str]]:
        """List the folder, and yield the kind and the path of each file and folder that is passed over.

        The kinds are those of `FolderNotes.passed_over`.
        """
        named = list[tuple[str, str]]()
        scan = _Scan(self._top, self._options(), named)
        for _ in scan.run():
            yield from named
            named.clear()
        yield from named

    @property
    def leaves_out(self) -> bool:
        """Whether the last `scan` left out something that an earlier run may have listed."""
        if self._scan is None:
            return False
        return "excluded" in self._scan.counts or (self._kept.hidden and self._hidden is False)

    @property
    def absent_folders(self) -> tuple[str, ...]:
        """Places where the last `scan` found nothing, but a disk may have been: empty folders, links to nowhere."""
        if self._absent:
            return (self.spec,)
        return () if self._scan is None else (*self._scan.empty, *sorted(self._scan.unmounted))

    def note_absent(self) -> None:
        """Note that all of the folder may be absent, though `scan` could list it."""
        self._absent = True

    def may_list(self, path: str) -> bool:
        """Return whether `scan` may list something else after a change of the file or folder at `path`.

        It is not sure where files `.pixmatcherignore` or the contents of files decide.
        """
        base = os.path.join(self.spec, "")
        if not path.startswith(base):
            return path == self.spec
        options = self._options()
        for name in path[len(base) :].split("/"):
            if name in _SKIPPED or name == FOLDER_NAME or _is_metadata(name):
                return False
            if name.startswith(".") and not options.hidden and name != IGNORE_FILE:
                return False
        extension = os.path.splitext(path)[1].lower()
        if (extension in KIND_OF or os.path.basename(path).lower() in JUNK) and not os.path.isdir(path):
            return False
        if self._watch_rules is None or self._watch_rules[0] != options.exclude:
            self._watch_rules = (options.exclude, IgnoreRules.parse(self.spec, options.exclude))
        rules, place = self._watch_rules[1], path
        is_folder = bool(rules.patterns) and os.path.isdir(path)
        while len(place) > len(base):
            if place[len(base) :] in options.forgotten or is_excluded((rules,), place, is_folder or place != path):
                return False
            place = os.path.dirname(place)
        return True

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return open_regular_file(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}

    def _options(self) -> FolderNotes:
        """Return the notes of the last run with the options of this one."""
        exclude = self._kept.exclude if self._exclude is None else self._exclude
        return replace(self._kept, exclude=exclude, hidden=self._kept.hidden if self._hidden is None else self._hidden)


class _Scan:
    """One listing of a folder, and what it found beside images."""

    def __init__(self, top: str, notes: FolderNotes, named: list[tuple[str, str]] | None = None) -> None:
        """If `named` is a list, kind and path of each file that is passed over are appended to it."""
        self._top = top
        self._base = os.path.join(top, "")
        self._named = named
        self._hidden = notes.hidden
        self._forgotten = {self._base + path for path in notes.forgotten}
        self._before = JudgedFiles(notes.judged)
        self._judged = JudgedFiles()
        self._visited: set[tuple[int, int]] = set()
        rules = IgnoreRules.parse(top, notes.exclude)
        self._rules = (rules,) if rules.patterns else ()
        self._links: list[tuple[str, tuple[IgnoreRules, ...]]] = []
        self.counts: dict[str, dict[str, int]] = {}
        """How many files were passed over: kind -> extension -> number."""
        self.empty: list[str] = []
        self.mounts: list[str] = []
        self.unmounted = {self._base + path for path in notes.mounts}
        """Folders that were the mount points of disks in an earlier run, and are not now."""

    def update(self, notes: FolderNotes) -> FolderNotes:
        """Return the notes with what this listing found."""
        mounts = sorted(path[len(self._base) :] for path in {*self.mounts, *self.unmounted})
        return replace(notes, mounts=tuple(mounts), passed_over=self.counts, judged=self._judged_bytes)

    @cached_property
    def _judged_bytes(self) -> bytes:
        return self._judged.kept()

    def run(self) -> Iterator[Entry | Unusable]:
        """Yield the images, and what cannot be read."""
        yield from self._walk(self._top, self._rules)
        # Links come last, so that an image is listed in its real folder if the source contains that folder.
        for link, rules in self._links:
            yield from self._walk(link, rules)

    def _walk(self, top: str, rules: tuple[IgnoreRules, ...]) -> Iterator[Entry | Unusable]:
        """Yield the images below a folder; links to folders are noted. Of the rules, the first count most."""
        folders: list[tuple[str, tuple[IgnoreRules, ...], int | None]] = [(top, rules, None)]
        while folders:
            folder, rules, disk = folders.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in self._visited:
                    continue
                self._visited.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    children = sorted(listing, key=lambda child: child.name)
                names = {child.name for child in children}
                if IGNORE_FILE in names:
                    rules = self._with_rules_of(folder, rules)
            except OSError as error:
                if folder in self.unmounted:  # it is not known whether its disk is there
                    self.unmounted.discard(folder)
                    self.mounts.append(folder)
                yield Unusable(folder, "folder cannot be read", _message(error), contents_unknown=True)
                continue
            if disk is not None and status.st_dev != disk:
                self.mounts.append(folder)
                self.unmounted.discard(folder)
            skipped = _SKIPPED
            if names.issuperset(_COLLECTION_FILES):
                skipped = _SKIPPED | COLLECTION_NAMES
            if folder != self._top and not any(_is_content(name, self._hidden) for name in names):
                self.empty.append(folder)
            below = []
            for child in children:
                name = child.name
                if name in skipped or (name.startswith(".") and self._is_hidden(child)):
                    continue
                try:
                    is_folder = child.is_dir(follow_symlinks=False)
                    if (rules or self._forgotten) and self._is_left_out(child, rules, is_folder):
                        continue
                    if is_folder:
                        below.append((child.path, rules, status.st_dev))
                        continue
                    found = self._check_file(child, rules)
                except OSError as error:
                    found = Unusable(child.path, "cannot be read", _message(error), contents_unknown=True)
                if found is not None:
                    yield found
            folders.extend(reversed(below))

    def _with_rules_of(self, folder: str, rules: tuple[IgnoreRules, ...]) -> tuple[IgnoreRules, ...]:
        """Return the rules of a folder that has an ignore file. Raises `OSError` if that cannot be read."""
        data = read_head(os.path.join(folder, IGNORE_FILE), _MOST_IGNORE_BYTES + 1)
        if len(data) > _MOST_IGNORE_BYTES:
            raise OSError(errno.EFBIG, f"its {IGNORE_FILE} has more than {_MOST_IGNORE_BYTES:,} bytes")
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
        own = IgnoreRules.parse(folder, text.split("\n"))
        given = len(self._rules)
        return (*rules[:given], own, *rules[given:])

    def _is_hidden(self, child: os.DirEntry[str]) -> bool:
        """Return whether a file or folder whose name begins with a dot is skipped, and count it."""
        name = child.name
        if name in _UNLISTED or _is_metadata(name):
            return True
        if not self._hidden:
            self._leave_out("hidden", child.path)
        return not self._hidden

    def _is_left_out(self, child: os.DirEntry[str], rules: tuple[IgnoreRules, ...], is_folder: bool) -> bool:
        """Return whether rules leave out a file or folder, or it was forgotten; count it then."""
        path = child.path
        forgotten = path in self._forgotten
        if not forgotten and not is_excluded(rules, path, is_folder or (child.is_symlink() and os.path.isdir(path))):
            return False
        if forgotten and is_folder:
            status = child.stat()
            self._visited.add((status.st_dev, status.st_ino))  # nor by a link to it
        self._leave_out("excluded", path)
        return True

    def _check_file(self, child: os.DirEntry[str], rules: tuple[IgnoreRules, ...]) -> Entry | Unusable | None:
        extension = os.path.splitext(child.name)[1].lower()
        likely = extension in ALLOWED_EXTENSIONS
        if not likely and extension in KIND_OF and child.is_file(follow_symlinks=False):
            self._pass_over(child, extension)
            return None
        try:
            status = child.stat()
        except FileNotFoundError:
            if child.is_symlink():
                self.empty.append(child.path)
                return Unusable(child.path, "dangling link", "its target does not exist") if likely else None
            return Unusable(child.path, "missing", "it was deleted during the scan") if likely else None
        except OSError as error:
            # The target of a link may be a folder, so the link is reported whatever its extension.
            if error.errno == errno.ELOOP:
                return Unusable(child.path, "symlink loop", _message(error))
            name = child.path[len(self._base) :]
            if self._before.was_image(name):
                self._judged.add(name, "", True)
                raise
            if child.is_symlink() or likely:
                raise
            return None
        if S_ISDIR(status.st_mode):
            if _is_above(status, child.path):
                return Unusable(child.path, "symlink loop", "it points to a folder above itself")
            self._links.append((child.path, rules))
            return None
        if not S_ISREG(status.st_mode):
            return Unusable(child.path, "not a regular file") if likely else None
        version = file_version(status)
        if not likely and (extension in KIND_OF or not self._is_image(child.path, status.st_size, version)):
            self._pass_over(child, extension)
            return None
        return Entry(child.path, version, as_date(status.st_mtime))

    def _is_image(self, path: str, size: int, version: str) -> bool:
        """Return whether the content of a file is an image; open the file if that is not known from an earlier run."""
        if size == 0:
            return False
        name = path[len(self._base) :]
        image = self._before.judgement(name, version)
        if image is None:
            try:
                image = has_image_content(read_head(path))
            except OSError:
                # An image that cannot be read any more is listed, so that it is reported and its item stays.
                image = self._before.was_image(name)
        self._judged.add(name, version, image)
        return image

    def _pass_over(self, child: os.DirEntry[str], extension: str) -> None:
        if child.name.lower() not in JUNK:
            kind = "image" if extension in IMAGE_EXTENSIONS else KIND_OF.get(extension, "other")
            self._count(kind, shown_extension(extension), child.path)

    def _leave_out(self, kind: str, path: str) -> None:
        """Count a file or folder that options leave out; what was mounted there does not matter any more."""
        self._count(kind, "", path)
        if self.unmounted:
            self.unmounted = {place for place in self.unmounted if place != path and not place.startswith(f"{path}/")}

    def _count(self, kind: str, extension: str, path: str) -> None:
        counts = self.counts.setdefault(kind, {})
        if extension not in counts and len(counts) >= _MOST_EXTENSIONS:
            extension = ""
        counts[extension] = counts.get(extension, 0) + 1
        if self._named is not None:
            self._named.append((kind, path))


def _is_content(name: str, hidden: bool) -> bool:
    """Return whether a name in a folder is more than what systems and people leave in an empty one.

    `hidden` says whether names that begin with a dot are listed. A collection shows that the disk is mounted.
    """
    if name.startswith("."):
        return name == FOLDER_NAME or (hidden and not _is_metadata(name))
    return name not in _SKIPPED and name.lower() not in JUNK


def _is_metadata(name: str) -> bool:
    """Return whether a file has metadata of macOS: .DS_Store, or ._NAME beside a file NAME."""
    return name == ".DS_Store" or name.startswith("._")


def _is_above(folder: os.stat_result, path: str) -> bool:
    """Return whether `folder` is one of the folders above `path`."""
    above = os.path.dirname(path)
    while True:
        if os.path.samestat(os.stat(above), folder):
            return True
        parent = os.path.dirname(above)
        if parent == above:
            return False
        above = parent


def as_date(seconds: float) -> str | None:
    """Return a time in seconds since 1970 as an ISO 8601 date, or None for a year outside its range."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _message(error: OSError) -> str:
    """Return the message of an error of the system."""
    return error.strerror or str(error)
