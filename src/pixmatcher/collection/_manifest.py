"""`collection.json`: the format version of a collection, its encoders and their spaces."""

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
from ..records import DescribesEncoder, EncoderRecord, Space
from ._names import MANIFEST_NAME, start_again

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The content of `collection.json`."""

    encoders: tuple[EncoderRecord, ...]
    created: str
    format: int = FORMAT_VERSION

    @classmethod
    def of(cls, encoders: Sequence[DescribesEncoder]) -> Manifest:
        """Return a new manifest for these encoders. Raises `CollectionError` if their spaces cannot be used."""
        records = tuple(EncoderRecord(e.name, e.fingerprint, tuple(e.spaces)) for e in encoders)
        spaces = [space for record in records for space in record.spaces]
        if not _are_usable(spaces):
            raise CollectionError(
                "The spaces of a collection need different names, made of a-z, 0-9, _ and -, "
                f"and dimensions above 0, not {spaces}."
            )
        return cls(records, datetime.now(timezone.utc).isoformat(timespec="seconds"))

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
            encoders = tuple(
                EncoderRecord(str(e["name"]), str(e["fingerprint"]), tuple(Space(**space) for space in e["spaces"]))
                for e in values["encoders"]
            )
            if not _are_usable([space for encoder in encoders for space in encoder.spaces]):
                raise ValueError("spaces without name or dimension")
            return cls(encoders, str(values["created"]), version)
        except OSError as error:
            raise read_error(file, error) from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CollectionError(f"{file} is damaged", start_again(path)) from error

    def text(self) -> str:
        """Return the manifest as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def _are_usable(spaces: Sequence[Space]) -> bool:
    """Return whether the spaces have different names that can be file names, and dimensions above 0."""
    names = {space.name for space in spaces if isinstance(space.name, str) and re.fullmatch("[a-z0-9_-]+", space.name)}
    dimensions = [space.dimension for space in spaces if type(space.dimension) is int and space.dimension > 0]
    return bool(spaces) and len(names) == len(dimensions) == len(spaces)
