"""Object stores, such as Amazon S3 and Google Cloud Storage: list, read and write the objects of a bucket.

The place of an object is a URL, `s3://BUCKET/KEY` or `gs://BUCKET/KEY`. Credentials, the region and the address of
another server that speaks S3 come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION,
AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; or from the role of the machine. The user chose these places, so their
addresses are not restricted.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from tempfile import TemporaryFile
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from .._urls import without_password
from ..errors import FetchError, SourceError, StorageError

_log = logging.getLogger("pixmatcher.net")

T = TypeVar("T")

_URL = re.compile(r"(s3|gs)://([^/?#@:\s]+)(?:/(.*))?", re.DOTALL)
_CONNECTIONS = 16
_MOST_BYTES = 128 << 20
"""Objects that are read ahead have so many bytes in memory at most, or are a single one."""
_RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
_TIMEOUTS: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(minutes=10), "read_timeout": "20s"}
_AWAY_SECONDS = 120.0
"""How long a store that has answered before is waited for when it answers no more."""
_ASK_SECONDS = 1.0
"""How often it is then asked whether it answers again."""
_NO_RETRIES: Any = {"max_retries": 0}
_ASKING_TIMEOUTS: Any = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=10)}
_LISTED_AT_ONCE = 1000
_REFUSALS = {"AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"}
_CREDENTIALS_OF_MACHINES = ("169.254.169.254", "metadata.google.internal", "fd00:ec2::254")
"""Where a machine of a cloud has its credentials: asked last, if none are set."""
_MOST_CHARACTERS = 200
"""The length of the texts of the package that are shown."""
_BLOCK_BYTES = 8 << 20


def is_object_url(text: str) -> bool:
    """Return whether a text begins as the URL of an object store."""
    return text.startswith(("s3://", "gs://"))


@dataclass(frozen=True)
class ObjectInfo:
    """An object as its store lists it: its key, relative to the place that is listed, and a token of its content."""

    key: str
    size: int
    tag: str
    modified: datetime


class ObjectStore:
    """The objects below a place in a bucket. Keys are relative to it. Any thread may call the methods.

    Every method raises `FetchError` of one sentence if the store refuses, or does not answer after several tries. If it
    has answered before, the methods wait until it answers again, and raise `StorageError` after two minutes.
    """

    def __init__(self, url: str) -> None:
        """Raises `SourceError` if the URL names no bucket, or if the package that is needed is not installed."""
        match = _URL.fullmatch(url)
        if match is None:
            raise SourceError(
                f"{without_password(url)} names no bucket: write it like s3://bucket/folder or gs://bucket/folder."
            )
        scheme, bucket, folder = match.groups()
        folder = (folder or "").strip("/")
        self.url = f"{scheme}://{bucket}" + (f"/{folder}" if folder else "")
        self._bucket = f"{scheme}://{bucket}"
        self._prefix = f"{folder}/" if folder else ""
        try:
            import obstore
        except ImportError:
            raise SourceError(f"{url} needs another package: run `pip install 'pixmatcher[cloud]'`.") from None
        self._api: Any = obstore
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint is not None and not _is_address(endpoint):  # the package would panic, also if it is empty
            raise SourceError(
                f"{endpoint!r} in AWS_ENDPOINT_URL is no address of a store: write it like https://host:9000."
            )
        # A server that is named by http:// has no encryption, and the user knows it.
        options: Any = {**_TIMEOUTS, "allow_http": (endpoint or "").lower().startswith("http://")}
        make = obstore.store.from_url
        with self._errors_explained():
            self._store = make(self._bucket, client_options=options, retry_config=_RETRIES)
            self._probe = make(self._bucket, client_options=options | _ASKING_TIMEOUTS, retry_config=_NO_RETRIES)
        self._has_answered = False
        self._given_up: StorageError | None = None

    def objects(self, folder: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects below a folder of the place, and of the folders below it."""
        prefix = self._prefix + (f"{folder}/" if folder else "")
        last: str | None = None
        pages: Iterator[Any] | None = None

        def next_page() -> Any:
            nonlocal pages
            if pages is None:
                pages = iter(self._api.list(self._store, prefix or None, offset=last, chunk_size=_LISTED_AT_ONCE))
            try:
                return next(pages, None)
            except BaseException:
                pages = None  # the list goes on behind the last object
                raise

        while (page := self._answer(next_page)) is not None:
            for each in page:
                last = each["path"]
                key = each["path"].removeprefix(self._prefix)
                tag = (each["e_tag"] or each["version"] or each["last_modified"].isoformat()).strip('"')
                yield ObjectInfo(key, each["size"], tag, each["last_modified"])

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the objects and folders directly in a folder of the place, sorted."""
        prefix = self._prefix + (f"{folder}/" if folder else "")
        found = self._answer(lambda: self._api.list_with_delimiter(self._store, prefix or None))
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.removeprefix(prefix).strip("/") for path in paths)

    def read(self, key: str, stop: threading.Event | None = None) -> bytes:
        """Return the content of an object. `stop` ends the waiting for a store that does not answer."""
        return self._answer(lambda: bytes(self._api.get(self._store, self._prefix + key).bytes()), key, stop)

    @contextmanager
    def open(self, key: str) -> Iterator[IO[bytes]]:
        """Download an object to a temporary file, and open it."""
        with TemporaryFile() as file:

            def download() -> None:
                file.seek(0)
                file.truncate()
                for block in self._api.get(self._store, self._prefix + key).stream(min_chunk_size=_BLOCK_BYTES):
                    file.write(block)

            self._answer(download, key)
            file.seek(0)
            yield file

    def write(self, key: str, content: IO[bytes]) -> None:
        """Store the rest of an open file as an object, which appears when it is complete."""
        start = content.tell()

        def upload() -> None:
            content.seek(start)
            self._api.put(self._store, self._prefix + key, content, chunk_size=_BLOCK_BYTES, max_concurrency=2)

        self._answer(upload, key)

    def _answer(self, ask: Callable[[], T], key: str = "", stop: threading.Event | None = None) -> T:
        """Return what `ask` returns. If the store answers no more, wait until it does, and ask again."""
        if self._given_up is not None and not self._is_reachable():
            raise self._given_up
        self._given_up = None
        while True:
            try:
                with self._errors_explained(key):
                    answer = ask()
            except FetchError as error:
                self._has_answered |= not error.transient
                if not error.transient or not self._has_answered or self._is_reachable():
                    raise
                self._wait(error, stop or threading.Event())
            else:
                self._has_answered = True
                return answer

    def _is_reachable(self) -> bool:
        """Return whether the store answers anything at all."""
        try:
            with self._errors_explained():
                self._api.head(self._probe, f"{self._prefix}pixmatcher")
        except FetchError as error:
            return not error.transient
        return True

    def _wait(self, error: FetchError, stop: threading.Event) -> None:
        """Wait until the store answers. Raises `StorageError` if that takes too long, `error` if `stop` is set."""
        _log.info("%s does not answer, and is waited for", self.url)
        end = time.monotonic() + _AWAY_SECONDS
        while not self._is_reachable():
            if time.monotonic() > end:
                self._given_up = StorageError(
                    f"{self.url} has not answered for {_AWAY_SECONDS:.0f} s ({error.detail}): run the same command "
                    "again when it answers; what is done is kept."
                )
                raise self._given_up from error
            if stop.wait(_ASK_SECONDS):
                raise error

    @contextmanager
    def _errors_explained(self, key: str = "") -> Iterator[None]:
        """Raise the errors of the package as a `FetchError`."""
        from obstore.exceptions import BaseError

        url = f"{self.url}/{key}" if key else self.url
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise _fetch_error(url, error) from error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # its module cannot be imported
                raise
            raise FetchError(
                f"{url} cannot be read or written ({error}): check the names and credentials in the environment.",
                "cannot be read",
                str(error),
            ) from error


def _is_address(text: str) -> bool:
    """Return whether a text is the URL of a server."""
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and re.fullmatch("[!-~]+", text) is not None
        )
    except ValueError:
        return False


def _fetch_error(url: str, error: Exception) -> FetchError:
    """Return an error of the package as one sentence."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = " ".join(str(error).split())
    code, message = (re.findall(f"<{name}>([^<]+)</{name}>", text) for name in ("Code", "Message"))
    detail = (message or code or [text.partition(" Debug source:")[0].rpartition(" - ")[2]])[0]
    detail = detail[:_MOST_CHARACTERS].rstrip(". ")
    if isinstance(error, FileNotFoundError) or not {"NoSuchBucket", "NoSuchKey"}.isdisjoint(code):
        sentence = f"{url} is not found ({detail}): check the name of the bucket and the object."
        return FetchError(sentence, "missing", detail)
    if name := re.search(r'(?:invalid|parse) path: .*?ath "(.*?)"', text):
        return FetchError(
            f"{url} has an object whose name cannot be used ({name[1][:_MOST_CHARACTERS]}): rename it, or name another "
            "folder; names must not contain //, /./, /../ or control characters.",
            "cannot be read",
            detail,
        )
    if any(place in text for place in _CREDENTIALS_OF_MACHINES):
        detail = "no credentials"
    elif not isinstance(error, (PermissionDeniedError, UnauthenticatedError)) and _REFUSALS.isdisjoint(code):
        return FetchError(
            f"{url} cannot be read or written ({detail}): check the network and the address of the store, and try "
            "again.",
            "cannot be read",
            detail,
            transient=True,
        )
    return FetchError(
        f"{url} is refused ({detail}): check the credentials in the environment, and what they allow.",
        "permission denied",
        detail,
    )


def fetch_objects(
    store: ObjectStore, requests: Iterable[tuple[T, str, int]], *, batch_size: int
) -> Generator[list[tuple[T, bytes | FetchError]], None, None]:
    """Read objects ahead, and yield them in the order in which they arrive, in lists of up to `batch_size`.

    A request is any key that identifies the object, its key in the store, and its size in bytes. Requests are taken in
    the thread of the caller, as long as less than 128 MB are in memory. An object that cannot be read is yielded as the
    `FetchError`. Close the generator to end early. Raises `StorageError` if the store answers no more.
    """
    remaining = iter(requests)
    running: dict[Future[bytes | FetchError], tuple[T, int]] = {}
    following = next(remaining, None)
    in_memory = 0
    stop = threading.Event()
    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="pixmatcher-objects") as executor:
        try:
            while running or following is not None:
                while following is not None and (not running or in_memory + following[2] <= _MOST_BYTES):
                    if len(running) >= max(batch_size, 2 * _CONNECTIONS):
                        break
                    key, name, size = following
                    running[executor.submit(_fetched, store, name, stop)] = (key, size)
                    in_memory += size
                    following = next(remaining, None)
                done = wait(running, timeout=1, return_when=FIRST_COMPLETED).done
                taken = []
                for future in [*done][:batch_size]:
                    key, size = running.pop(future)
                    in_memory -= size
                    taken.append((key, future.result()))
                yield taken
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)


def _fetched(store: ObjectStore, key: str, stop: threading.Event) -> bytes | FetchError:
    try:
        return store.read(key, stop)
    except FetchError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
