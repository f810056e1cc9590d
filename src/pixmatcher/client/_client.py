"""A collection of a service, with the methods and results of a collection in a folder."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from .._progress import ProgressCallback
from .._text import as_unicode
from .._urls import UrlPath, file_url, is_url
from ..collection import (
    Changes,
    CollectionDescription,
    CollectionState,
    Failure,
    Filter,
    Hit,
    Item,
    Neighbour,
    evenly_spaced,
    query_vector,
    space_named,
)
from ..encoders.texts.tokenizer import require_unicode
from ..errors import CollectionError, InvalidImageError
from ..records import Calibration, EncoderRecord, FolderNotes, QueryKind, Space
from ..searching import (
    CategoryResult,
    Query,
    QueryPart,
    SearchOptions,
    SearchResult,
    options_as_json,
    unusable_image,
)
from . import wire
from ._connection import Connection, parse_address
from ._jobs import run_job

if TYPE_CHECKING:
    from ..images import ImageSource
    from ..indexing import IndexReport

_T = TypeVar("_T")

_TEXTS_AT_ONCE = 200
_MAX_IMAGE_BYTES = 1 << 30


class Client:
    """A collection of the HTTP service (`pixmatcher serve`), which `search` and the other functions accept.

    `with Client("http://HOST:8600/c/NAME") as photos: search(photos, "a cat")`. Queries are embedded by the service, so
    that no encoder is needed on this machine. Paths are those of the service's machine. The methods may be called from
    several threads.

    The methods are those of `Collection` for reading, with the same results and the same errors; and `CollectionError`
    if the service cannot be reached, refuses the token, or is of another version.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        """Connect to the collection that a URL such as http://HOST:8600/c/NAME names.

        The `token` is by default that of the environment variable `PIXMATCHER_TOKEN`. Raises `CollectionError` if the
        URL names no collection of a service that can be reached with this token.
        """
        address = parse_address(url)
        self.path: Path = UrlPath(address.url)
        self._connection = Connection(address, token)
        try:
            described = self._parsed(self._connection.json("GET", "/store"), _description)
        except BaseException:
            self._connection.close()
            raise
        self.encoders: tuple[EncoderRecord, ...] = described[0]
        self.encoded_since: int = described[1]
        self._rows_at_once = described[2]
        self.spaces: dict[str, Space] = {space.name: space for record in self.encoders for space in record.spaces}
        self._snapshots = threading.local()

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    def __len__(self) -> int:
        """Return the number of items."""
        return self._state_values()[1]

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids; items may be added or removed meanwhile."""
        for block in _blocks(self.ids().tolist(), self._rows_at_once):
            yield from self.items_by_id(block).values()

    def items_by_id(self, ids: Iterable[int]) -> dict[int, Item]:
        """Return the items of these ids by their id; an id that does not exist is left out."""
        found: dict[int, Item] = {}
        for block in _blocks([*map(int, ids)], self._rows_at_once):
            items = self._posted("/store/items", {"ids": block}, _list_of(wire.item_from_json))
            found |= {item.id: item for item in items}
        return found

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""
        pages = self._connection.pages("/store/ids")
        return np.concatenate([self._parsed(page, lambda page: wire.ids_from_text(page["values"])) for page in pages])

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""
        return evenly_spaced(self.ids(), count)

    def failures(self) -> list[Failure]:
        """Return the images that could not be indexed and still exist."""
        return self._listed("/store/failures", wire.failure_from_json)

    def incomplete(self) -> list[Item]:
        """Return the items of files whose end is missing; see `Item.missing`."""
        return self._listed("/store/incomplete", wire.item_from_json)

    def sources(self) -> list[str]:
        """Return the specs of the sources, in the order in which they were first indexed."""
        return self._got("/store/sources", _list_of(_text))

    def has_items_in(self, folder: str) -> bool:
        """Return whether an item is in a folder, which is an absolute path or the beginning of a URL, or below it."""
        values = {"folder": _sendable_path(folder)}
        return self._posted("/store/has-items-in", values, lambda found: wire.of_type(found["found"], bool))

    def item_folders(self) -> set[str]:
        """Return the folders that contain items directly, as absolute paths or beginnings of URLs."""
        return {*self._listed("/store/folders", _text)}

    def format_counts(self) -> dict[str, int]:
        """Return the number of items of each image format, the most frequent first."""
        return self._got("/store/formats", _counts)

    def describe(self) -> CollectionDescription:
        """Return what is in the collection, as `describe_collection` does."""
        return self._got("", lambda values: wire.description_from_json(values, self.encoders))

    # Labels

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label, the most frequent first."""
        return dict(self._listed("/store/labels", lambda row: (_text(row[0]), wire.of_type(row[1], int))))

    def label_names(self) -> dict[str, str]:
        """Return the names of labels, such as "goldfish" of "n01443537"; labels without a name are left out."""
        return dict(self._listed("/store/label-names", lambda row: (_text(row[0]), _text(row[1]))))

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that equal one of these texts, or whose name does, in full or in a part between commas."""
        found: set[str] = set()
        for block in _blocks([*map(as_unicode, texts)], _TEXTS_AT_ONCE):
            found |= {*self._posted("/store/labels-called", {"texts": block}, _list_of(_text))}
        return found

    def labels_by_id(self, ids: Iterable[int]) -> dict[int, str | None]:
        """Return the label, or None, of each of these ids that exists."""
        return {item_id: item.label for item_id, item in self.items_by_id(ids).items()}

    def calibrations(self) -> dict[str, dict[QueryKind, Calibration]]:
        """Return the collection's own calibrations of scores: name of the space -> kind of query -> calibration."""
        return self._got("/store/calibrations", _calibrations)

    # State

    @property
    def generation(self) -> int:
        """A number that rises with each change to the rows of embeddings."""
        return self._state_values()[0]

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[int]:
        """Yield the generation, and raise `CollectionError` at the end of the block if it has changed meanwhile.

        Unlike a collection in a folder, the service does not keep one state for the block.
        """
        if getattr(self._snapshots, "inside", False):
            yield self.generation
            return
        before = self.generation
        self._snapshots.inside = True
        try:
            yield before
        finally:
            self._snapshots.inside = False
        if self.generation != before:
            raise CollectionError(f"{self.path} changed while it was read", "try again when no job changes it.")

    def state(self) -> CollectionState:
        """Return the current state; `changes_since` counts the changes after it."""
        return CollectionState(*self._state_values())

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""
        values = {"state": [*astuple(state)]}
        return self._posted("/store/changes", values, lambda found: Changes(*(wire.of_type(n, int) for n in found)))

    # Embeddings and search

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """Return the embeddings of items in a space (N, dimension) float32, in the order of the ids.

        Raises `CollectionError` if an id or the space does not exist.
        """
        dimension = space_named(self.spaces, space).dimension
        rows = [np.empty((0, dimension), np.float32)]
        for block in _blocks([*map(int, ids)], self._rows_at_once):
            values = {"ids": block, "space": space}
            found = self._posted(
                "/store/embeddings", values, lambda answer: wire.vectors_from_text(answer["rows"], dimension)
            )
            if len(found) != len(block):
                raise self._connection.not_valid(ValueError(f"{len(found)} embeddings of {len(block)}"))
            rows.append(found)
        return np.concatenate(rows)

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return a small JPEG of the image with this content hash; None if none was stored."""
        if not content_hash or not all(c.isalnum() or c == "+" for c in content_hash):
            return None
        return self._file(f"/store/thumbnails/{content_hash.replace('+', '%2B')}")

    def picture(self, item: Item, side: int) -> bytes | None:
        """Return the image of an item as a file, upright and about `side` pixels wide or high; None if it has none."""
        return self._file(f"/store/pictures/{item.id}?side={max(16, min(side, 2048))}")

    def search(
        self,
        vector: npt.ArrayLike,
        *,
        space: str,
        k: int = 12,
        min_score: float | None = None,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the k items of the highest inner product with a vector (dimension,), best first, ties by id.

        Raises `CollectionError` as `Collection.search` does, and `QueryError` if k is more than the service allows.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        options = SearchOptions(k, min_score, space, filter, exact)
        values = {"vector": wire.vector_as_text(query), "options": _sendable_options(options)}
        return self._posted("/store/search", values, wire.hits_from_json)

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """Return the k nearest items that have a label, best first, or fewer if the collection has fewer.

        If these have fewer than `labels` different labels, the nearest item of each of the next labels follows.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        values = {"vector": wire.vector_as_text(query), "space": space, "k": k, "labels": labels}
        return self._posted("/store/nearest-labelled", values, wire.neighbours_from_json)

    # Whole queries

    def answer_query(self, query: Query, options: SearchOptions) -> SearchResult:
        """Return what `search` returns; the service embeds the query."""
        started = time.perf_counter()
        values = {"query": _sendable_query(query), "options": _sendable_options(options)}
        answer = self._connection.json("POST", "/store/query", values)
        return self._parsed(answer, lambda found: wire.result_from_json(found, query.name, _ms_since(started)))

    def answer_similar(self, item_id: int, options: SearchOptions) -> SearchResult:
        """Return what `search_similar` returns."""
        started = time.perf_counter()
        values = {"id": int(item_id), "options": _sendable_options(options)}
        answer = self._connection.json("POST", "/store/similar", values)
        return self._parsed(answer, lambda found: wire.result_from_json(found, item_id, _ms_since(started)))

    def answer_categories(self, query: Query, *, k: int, space: str | None) -> CategoryResult:
        """Return what `classify` returns; the service embeds the image."""
        started = time.perf_counter()
        values = {"query": _sendable_query(query), "k": k, "space": space}
        answer = self._connection.json("POST", "/store/categories", values)
        return self._parsed(answer, lambda found: wire.categories_from_json(found, query.name, _ms_since(started)))

    # Writing

    def index_sources(
        self,
        sources: Sequence[str] | None,
        *,
        retry_failed: bool = False,
        exclude: Sequence[str] | None = None,
        hidden: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> IndexReport:
        """Index sources by a job of the service, and return the report at its end; `index` does the same.

        Paths are those of the service's machine. Ctrl-C, and an exception of `progress`, stop the job; what it has
        stored stays stored. Raises the error of the job, and `CollectionError` if the token may not write.
        """
        values: dict[str, Any] = {"retry_failed": retry_failed, "exclude": exclude, "hidden": hidden}
        if sources is not None:
            values["sources"] = [_sendable_path(source) for source in sources]
        started = time.monotonic()
        found = self._ran("POST", "/sources", {k: v for k, v in values.items() if v is not None}, progress)
        report = self._parsed(found, lambda values: wire.report_from_json(values, self.path))
        listed = {failure.uri for failure in report.failures}
        if (more := self._parsed(found, lambda values: wire.of_type(values["failed"], int)) - len(listed)) > 0:
            report.failures += [failure for failure in self.failures() if failure.uri not in listed][:more]
        if report.incomplete:
            shares = {item.uri: item for item in self.incomplete()}
            report.incomplete = [shares.get(item.uri, item) for item in report.incomplete]
        report.seconds = time.monotonic() - started
        return report

    def watch_sources(
        self,
        *,
        every: float,
        on_report: Callable[[IndexReport], object] = lambda report: None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Watch the sources by a job of the service until an interrupt (Ctrl-C), which stops the job.

        `on_report` is called with the report of a run. If the service watches the collection already, that job is
        followed, and goes on after an interrupt.
        """
        runs = 0

        def report_run(found: dict[str, Any]) -> None:
            nonlocal runs
            number = self._parsed(found, lambda values: wire.of_type(values["runs"], int))
            if number != runs:
                runs = number
                on_report(self._parsed(found, lambda values: wire.report_from_json(values["last"], self.path)))

        run_job(self._connection, "POST", "/watch", {"every": every}, progress, report_run)

    def forget(self, source: str | os.PathLike[str]) -> int:
        """Remove a source, or a part of a folder, and all its items by a job of the service; return how many."""
        route = f"/sources?source={quote(_sendable_path(os.fspath(source)), safe='')}"
        found = self._ran("DELETE", route, None, None)
        return self._parsed(found, lambda values: wire.of_type(values["removed"], int))

    def count_to_forget(self, source: str | os.PathLike[str]) -> int:
        """Return how many items `forget` would remove. Raises `CollectionError` as it does."""
        values = {"source": _sendable_path(os.fspath(source))}
        return self._posted("/store/count-to-forget", values, lambda found: wire.of_type(found["count"], int))

    def folder_notes(self, source: str) -> FolderNotes:
        """Return what is kept of a folder source: its options, and what was forgotten."""
        return self._got("/sources", lambda values: wire.folder_notes_from_json(values, source))

    def _ran(self, method: str, route: str, values: Any, progress: ProgressCallback | None) -> dict[str, Any]:
        return run_job(self._connection, method, route, values, progress)

    # Requests

    def _state_values(self) -> list[int]:
        return self._got("/store", lambda values: [wire.of_type(values["state"][name], int) for name in _STATE])

    def _got(self, route: str, read: Callable[[Any], _T]) -> _T:
        return self._parsed(self._connection.json("GET", route), read)

    def _listed(self, route: str, read: Callable[[Any], _T]) -> list[_T]:
        """Return the values of all pages of a list."""
        values: list[_T] = []
        for page in self._connection.pages(route):
            values += self._parsed(page, lambda page: _list_of(read)(page["values"]))
        return values

    def _posted(self, route: str, values: Mapping[str, Any], read: Callable[[Any], _T]) -> _T:
        return self._parsed(self._connection.json("POST", route, values), read)

    def _parsed(self, answer: Any, read: Callable[[Any], _T]) -> _T:
        try:
            return read(answer)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise self._connection.not_valid(error) from error

    def _file(self, route: str) -> bytes | None:
        answer = self._connection.get(route, missing=True)
        return answer.content if answer.status == 200 and answer.content else None


_STATE = ("generation", "items", "last_id", "row_count")


def open_http(rest: str) -> Client:
    """Open what `-c http:REST` names."""
    return Client(f"http:{rest}")


def open_https(rest: str) -> Client:
    """Open what `-c https:REST` names."""
    return Client(f"https:{rest}")


def _description(values: Any) -> tuple[tuple[EncoderRecord, ...], int, int]:
    if wire.of_type(values["version"], int) > wire.VERSION:
        raise ValueError(f"it is of version {values['version']}, this client of {wire.VERSION}")
    most_rows = wire.of_type(values["most_rows"], int)
    if most_rows < 1:
        raise ValueError("it allows no rows")
    return wire.encoders_from_json(values["encoders"]), wire.of_type(values["encoded_since"], int), most_rows


def _calibrations(values: Any) -> dict[str, dict[QueryKind, Calibration]]:
    kinds: tuple[QueryKind, ...] = ("text", "image")
    return {
        _text(space): {kind: wire.calibration_from_json(found[kind]) for kind in kinds if kind in found}
        for space, found in values.items()
    }


def _counts(values: Any) -> dict[str, int]:
    return {_text(name): wire.of_type(count, int) for name, count in values}


def _list_of(read: Callable[[Any], _T]) -> Callable[[Any], list[_T]]:
    return lambda values: [read(value) for value in wire.of_type(values, list)]


def _text(value: Any) -> str:
    return wire.of_type(value, str)


def _ms_since(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def _blocks(values: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _sendable_path(path: str) -> str:
    """Return a path in valid Unicode, as JSON needs it."""
    return file_url(path) if as_unicode(path) != path and not is_url(path) else as_unicode(path)


def _sendable_options(options: SearchOptions) -> dict[str, Any]:
    values = options_as_json(options)
    if options.filter is not None and options.filter.folder is not None:
        values["filter"]["folder"] = _sendable_path(options.filter.folder)
    if options.filter is not None and options.filter.labels is not None:
        values["filter"]["labels"] = [*map(as_unicode, options.filter.labels)]
    if isinstance(values.get("space"), str):
        values["space"] = as_unicode(values["space"])
    return values


def _sendable_query(query: Query) -> dict[str, Any]:
    """Return a query in JSON, with the data of its images. Raises as `search` does for what cannot be sent."""
    for text in query.texts:
        require_unicode(text)
    return wire.query_as_json(query, _image_file)


def _image_file(part: QueryPart) -> bytes:
    """Return the bytes of the file of an image; pixels become a PNG file, which loses nothing.

    Raises `InvalidImageError` as `search` does if it cannot be read.
    """
    assert part.image is not None
    try:
        return _read_image(part.image)
    except InvalidImageError as error:
        raise unusable_image(part, error) from error


def _read_image(image: ImageSource) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, os.PathLike)):
        from ..sources.archives import open_path

        with open_path(os.fspath(image)) as file:
            return file.read(_MAX_IMAGE_BYTES)
    if hasattr(image, "read"):
        data: bytes = image.read(_MAX_IMAGE_BYTES)
        return data
    from ..images import open_image

    png = io.BytesIO()
    open_image(image).image.save(png, "PNG", compress_level=1)
    return png.getvalue()
