"""`collection.json`: the format version of a collection, its encoders and their spaces.

In format 1, the encoders are those of this file. An upgraded collection has format 2: its encoders are in the catalog
(`_editions`), and version 0.1.0 refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .._files import read_error
from ..errors import CollectionError
from ..records import MANIFEST_NAME, DescribesEncoder, EncoderRecord, Space
from ._names import start_again

FORMAT_VERSION = 2
_FIRST_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """The content of `collection.json`; without encoders in format 2."""

    encoders: tuple[EncoderRecord, ...]
    created: str
    format: int = _FIRST_FORMAT

    @classmethod
    def of(cls, encoders: Sequence[DescribesEncoder]) -> Manifest:
        """Return a new manifest for these encoders. Raises `CollectionError` if their spaces cannot be used."""
        return cls(records_of(encoders), datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest of the collection in the folder `path`.

        Raises `CollectionError` if it is damaged or of a newer format.
        """
        file = path / MANIFEST_NAME
        try:
            values: dict[str, Any] = json.loads(file.read_bytes())
            version = int(values["format"])
            if version > FORMAT_VERSION:
                raise CollectionError(
                    f"{path} has the collection format {version}, newer than the {FORMAT_VERSION} that this version of "
                    "PixMatcher reads",
                    "upgrade with `pip install --upgrade pixmatcher`.",
                )
            encoders = records_from_json(values["encoders"], path) if version == _FIRST_FORMAT else ()
            return cls(encoders, str(values["created"]), version)
        except OSError as error:
            raise read_error(file, error) from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CollectionError(f"{file} is damaged", start_again(path)) from error

    def text(self) -> str:
        """Return the manifest as JSON."""
        values: dict[str, Any] = {"created": self.created, "format": self.format}
        if self.format == _FIRST_FORMAT:
            values = {"encoders": records_as_json(self.encoders), **values}
        return json.dumps(values, indent=2) + "\n"


def records_of(encoders: Sequence[DescribesEncoder]) -> tuple[EncoderRecord, ...]:
    """Return what a collection records of encoders. Raises `CollectionError` if their spaces cannot be used."""
    records = tuple(EncoderRecord(e.name, e.fingerprint, tuple(e.spaces)) for e in encoders)
    spaces = [space for record in records for space in record.spaces]
    if not _are_usable(spaces):
        raise CollectionError(
            "The spaces of a collection need different names, made of a-z, 0-9, _ and -, "
            f"and dimensions above 0, not {spaces}."
        )
    return records


def records_as_json(records: Sequence[EncoderRecord]) -> list[dict[str, Any]]:
    """Return records of encoders as values of JSON."""
    return [{"name": r.name, "fingerprint": r.fingerprint, "spaces": [asdict(s) for s in r.spaces]} for r in records]


def records_from_json(values: Any, folder: Path | str) -> tuple[EncoderRecord, ...]:
    """Return the records of encoders of the collection in `folder` from values of JSON; "" if it is in no folder.

    Raises `ValueError`, `KeyError` or `TypeError` if they are damaged.
    """
    records = tuple(
        EncoderRecord(
            str(e["name"]), str(e["fingerprint"]), tuple(Space(**space) for space in e["spaces"]), str(folder)
        )
        for e in values
    )
    if not _are_usable([space for record in records for space in record.spaces]):
        raise ValueError("spaces without name or dimension")
    return records


def _are_usable(spaces: Sequence[Space]) -> bool:
    """Return whether the spaces have different names that can be file names, and dimensions above 0."""
    names = {space.name for space in spaces if isinstance(space.name, str) and re.fullmatch("[a-z0-9_-]+", space.name)}
    dimensions = [space.dimension for space in spaces if type(space.dimension) is int and space.dimension > 0]
    return bool(spaces) and len(names) == len(dimensions) == len(spaces)
