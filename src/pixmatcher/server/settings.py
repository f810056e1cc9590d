"""What the service serves, to whom, and within which limits."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..collection import Collection, UsedByProcesses, open_collection
from ..errors import QueryError
from ..records import FOLDER_NAME

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus-client finds the folder in which the workers count together."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for. A request beyond a limit gets an answer that names the limit."""

    body_bytes: int = 32 << 20
    """The most bytes of the body of a request, with all its images."""
    image_pixels: int = 128_000_000
    """The most pixels of an image of a query."""
    results: int = 1000
    """The most results of a search, and the most items of a page."""
    batch: int = 256
    """The most queries of a batch, and the most inputs of a request for embeddings."""
    parts: int = 16
    """The most texts and images of one query."""
    json_values: int = 200_000
    """The most values in the JSON of a request, counted by its commas: many small values cost more than large ones."""
    seconds: float = 30.0
    """The longest time for a request: to be read, to wait and to be answered."""
    header_bytes: int = 32 << 10
    """The most bytes of the first line and the headers of a request."""
    header_seconds: float = 10.0
    """The longest time for the headers of a request to arrive."""
    idle_seconds: float = 75.0
    """How long a connection without a request stays open."""
    stall_seconds: float = 30.0
    """How long a client may take no part of an answer that waits for it."""
    connections: int = 512
    """The most connections at once of each process."""
    stop_seconds: float = 30.0
    """How long a service that stops waits for the answers that are under way."""
    waiting: int = 128
    """The most queries that wait for an encoder; with more, clients are asked to try again later."""


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a service."""

    collections: Mapping[str, str]
    """The collections by the name that they have in URLs: folders, or NAME:REST of an installed package."""
    token_file: Path | None = None
    """The file of the hashes of tokens; without it, every client may read and write."""
    limits: Limits = field(default_factory=Limits)
    allow_urls: bool = False
    """Whether the service fetches the URLs that clients give."""
    allow_private: bool = False
    """Whether these URLs may have private and loopback addresses."""
    origins: tuple[str, ...] = ()
    """The web sites whose scripts may use the service (CORS)."""
    hosts: tuple[str, ...] = ()
    """The host names under which the service may be called; empty for all."""
    source_folders: tuple[Path, ...] = ()
    """The folders that clients may index, with the folders below them. Sources that a collection has may be indexed."""
    state_folder: Path | None = None
    """The folder for the records of jobs; by default, a folder in the user's folder for state."""
    workers: int = 1
    """The number of processes that answer requests."""

    def as_json(self) -> str:
        """Return the settings for another process."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> ServerSettings:
        """Return the settings that `as_json` returned in another process."""
        values = json.loads(text)
        for name in (each.name for each in fields(cls)):
            if isinstance(values[name], list):
                values[name] = tuple(values[name])
        for name in ("token_file", "state_folder"):
            values[name] = None if values[name] is None else Path(values[name])
        values["source_folders"] = tuple(map(Path, values["source_folders"]))
        return cls(**values | {"limits": Limits(**values["limits"])})


_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


def locate_collections(references: Sequence[str], workers: int = 1) -> dict[str, str]:
    """Return the collections by the names that they have in URLs.

    A reference is what `open_collection` takes, or NAME=REFERENCE. Without a name, it is that of the folder of the
    images; a number is added to a name that is taken. Without references, it is the nearest collection in or above the
    current folder. Each collection is opened once. Raises `CollectionError` if one cannot be opened, and `QueryError`
    if a given name is used twice, or if so many `workers` cannot use a collection.
    """
    found: dict[str, str] = {}
    unnamed: list[tuple[str, str]] = []
    for reference in references or (None,):
        match = None if reference is None or os.path.exists(reference) else _NAMED.fullmatch(reference)
        place = reference if match is None else match[2]
        store = open_collection(place)
        try:
            # A relative path would be another one after a change of the current folder.
            absolute = os.path.abspath(store.path) if isinstance(store, Collection) else str(place)
            if workers > 1 and isinstance(store, UsedByProcesses) and store.one_process:
                raise QueryError(
                    f"Only one process can use {store.path}: add --workers 1, or keep the collection in a Milvus "
                    "server (milvus://HOST:19530/NAME)."
                )
        finally:
            store.close()
        if match is None:
            unnamed.append((_url_name(absolute), absolute))
        elif match[1] in found:
            raise QueryError(f"Two collections have the name {match[1]}: give each another name.")
        else:
            found[match[1]] = absolute
    for name, absolute in unnamed:
        free, number = name, 2
        while free in found:
            free, number = f"{name}-{number}", number + 1
        found[free] = absolute
    return found


def _url_name(reference: str) -> str:
    """Return a name for the path of a URL: that of a folder, or of its parent folder if it is `.pixmatcher`."""
    path = Path(reference)
    name = path.parent.name if path.name == FOLDER_NAME else path.name.rpartition(":")[2]
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name).strip("-._") or "collection"
