"""What the service serves, to whom, and within which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
    seconds: float = 30.0
    """The longest time for a request: to be read, to wait and to be answered."""
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
