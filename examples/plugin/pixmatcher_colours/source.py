"""The source `album:FILE`: images that a JSON file lists, with the place where each was taken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from pixmatcher import Entry, InvalidImageError, SourceError, Unusable


class AlbumSource:
    """The photos of an album: `{"photos": [{"file": "beach.jpg", "place": "Nice", "caption": "the sea in May"}]}`.

    Files are relative to the album; `place` becomes the label of the image, `caption` its caption.

    Raises `SourceError` if the album does not exist.
    """

    example = "album:holiday.json -c holiday"  # shown by `pixmatcher sources`
    remote = False  # the images are files, not URLs to be fetched
    thumbnails = False  # the files are still there when results are shown
    folder = None  # the collection is not stored beside the images

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()
        self.spec = f"album:{self.path}"  # opens the same album again, whatever the current folder
        if not self.path.is_file():
            raise SourceError(f"The album {path} does not exist: name a JSON file.")

    def scan(self) -> Iterator[Entry | Unusable]:
        """Yield an entry for each photo, and a reason for each that cannot be used. No image is opened."""
        try:
            photos = json.loads(self.path.read_text(encoding="utf-8"))["photos"]
            listed = [(self.path.parent / photo["file"], photo.get("place"), photo.get("caption")) for photo in photos]
        except OSError as error:
            raise SourceError(f"The album {self.path} cannot be read ({error.strerror}).") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(f"{self.path} is not an album: see the documentation of AlbumSource.") from error
        for path, place, caption in listed:
            try:
                status = path.stat()
            except OSError as error:
                yield Unusable(str(path), "missing", error.strerror or "")
                continue
            # If the version is the same as at the last run, the image is not opened again.
            yield Entry(str(path), f"{status.st_size}-{status.st_mtime_ns}", label=place, caption=caption)

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """Open an image that `scan` has listed."""
        try:
            return Path(uri).open("rb")
        except OSError as error:
            raise InvalidImageError("cannot be read", error.strerror or "") from error

    def label_names(self) -> Mapping[str, str]:
        """Return readable names of labels that are codes: here none are."""
        return {}
