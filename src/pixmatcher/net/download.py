"""Download files so that a run may be stopped at any time: what was received is kept, and the next run goes on.

A file takes its place in one step, when it is whole and what it should be. Until then it lies beside that place, in
`NAME.part`, and `NAME.part.json` says what it is the beginning of.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .._locks import lock_descriptor
from .._version import __version__
from ..errors import NO_ROOM, FetchError, PixMatcherError, StorageError
from .addresses import is_public

if TYPE_CHECKING:
    import httpx

ByteProgress = Callable[[int, int | None], None]
"""Called with the bytes that are there by now, and those there will be if that is known."""

STALL_SECONDS = 30.0
_SLOWEST = 1000  # bytes a second; what is slower for STALL_SECONDS is given up
_RETRIES = 5
_BACKOFF_SECONDS = 0.5
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Version:
    """What tells one content of a URL from another: the validators that the server gave, and the length in bytes."""

    url: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """What `If-Range` takes, None if nothing guarantees that two answers have the same bytes (RFC 9110, 13.1.5)."""
        found = self.etag if self.etag and not self.etag.startswith("W/") else self.modified
        return found if found and found.isascii() else None  # what else there is cannot be sent


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file and the position where they belong. Without any, at position 0, the file begins anew."""

    version: Version
    position: int
    data: bytes


class _WrongContentError(FetchError):
    """What was received is not the file: nothing of it is worth keeping."""


class _PassingError(Exception):
    """Something that may be otherwise in a moment."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_bytes: int | None = None,
    check: Callable[[Path], None] | None = None,
    check_finds_all: bool = False,
    progress: ByteProgress | None = None,
    stall_seconds: float = STALL_SECONDS,
    token: str | None = None,
) -> bool:
    """Download `url` to `path`, going on where a call before was stopped; whether there was anything to do.

    The file must have the `size` in bytes and the `sha256` in hexadecimal, where they are given, and pass `check`,
    which is called with the path of the received file and raises a `PixMatcherError`; what is wrong is deleted. With
    `check_finds_all` it finds every wrong byte, as a hash does: then it is gone on also where the server does not vouch
    for the same bytes. A file that is at `path` already must have that size and hash too, and is left alone. Of two
    processes that download the same file, one waits for the other. See `stream` for what is tried again, what is
    refused, proxies, and `token`.

    Raises `FetchError` if the URL does not give the file, `StorageError` if the disk is full, and `PixMatcherError` if
    something is in the way or may not be written. What was received stays, except what is wrong.
    """
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    with telling_disk(path.parent):
        if _is_there(path, size, sha256):
            return False
        with locked(part) as file:
            try:
                if _is_there(path, size, sha256):
                    return False
                trusting = sha256 is not None or check_finds_all
                _receive(url, file, note, size, max_bytes, progress, stall_seconds, trusting, token)
                try:
                    _verify(url, file, size, sha256)
                    if check is not None:
                        check(part)
                except PixMatcherError:
                    file.truncate(0)
                    raise
                os.fsync(file.fileno())
                part.replace(path)
                note.unlink(missing_ok=True)
                return True
            finally:
                if not os.fstat(file.fileno()).st_size:
                    part.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """The file at `path`, made if need be, while no other process has it locked; calls `waiting` and waits if one has.

    Whoever has the lock may rename or delete the file: who waits for it then takes the next of that name.
    """
    while True:
        # A link of that name may be somebody else's, in a folder open to all.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            if not lock_descriptor(file.fileno(), wait=False):
                waiting()
                lock_descriptor(file.fileno(), wait=True)
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is what lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def telling_disk(folder: Path) -> Iterator[None]:
    """Turn what the disk of `folder` has against the block into a `PixMatcherError` of one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise StorageError(
                f"The disk of {folder} is full ({reason}): make room and run the same command again; "
                "it goes on where it stopped."
            ) from error
        place = folder if error.filename is None else os.fsdecode(error.filename)
        raise PixMatcherError(f"{place} cannot be read or written ({reason}): choose another folder.") from error


def _is_there(path: Path, size: int | None, sha256: str | None) -> bool:
    """Whether the file was downloaded before. Raises `PixMatcherError` if it is something else."""
    if not os.path.lexists(path):
        return False
    wrong = None
    if not path.is_file():
        wrong = "is no file"
    elif size is not None and path.stat().st_size != size:
        wrong = f"has {path.stat().st_size:,} bytes instead of {size:,}"
    elif sha256 is not None:
        with path.open("rb") as file:
            if _sha256(file) != sha256:
                wrong = "has another SHA-256 than it should have"
    if wrong:
        raise PixMatcherError(f"{path} is there already but {wrong}: delete it, or choose another folder.")
    return True


def _receive(
    url: str,
    file: IO[bytes],
    note: Path,
    size: int | None,
    max_bytes: int | None,
    progress: ByteProgress | None,
    stall_seconds: float,
    trusting: bool,
    token: str | None,
) -> None:
    """Bring `file` to its full length."""
    offset = os.fstat(file.fileno()).st_size
    known = _read_note(note)
    if known is None or known.url != shown(url) or (known.length is not None and offset > known.length):
        known, offset = None, 0
    elif offset and offset == known.length:
        return  # the call before was stopped right at the end
    pieces = stream(
        url,
        known=known,
        offset=offset,
        size=size,
        max_bytes=max_bytes,
        stall_seconds=stall_seconds,
        trusting=trusting,
        token=token,
    )
    file.seek(offset)
    with contextlib.closing(pieces):
        try:
            for piece in pieces:
                if piece.position == 0 and not piece.data:
                    file.seek(0)
                    file.truncate()
                    note.write_text(json.dumps(asdict(piece.version)), encoding="utf-8")
                rest = memoryview(piece.data)
                while rest:  # no buffer: what a full disk took is what is there
                    rest = rest[file.write(rest) :]
                if progress is not None:
                    length = size if piece.version.length is None else piece.version.length
                    progress(piece.position + len(piece.data), length)
        except _WrongContentError:
            file.truncate(0)
            raise


def _read_note(note: Path) -> Version | None:
    """The version that the received part is the beginning of, None if that is not known."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        version = Version(**found)
    except (OSError, ValueError, TypeError):
        return None
    texts = (version.etag, version.modified)
    whole = isinstance(version.url, str) and all(text is None or isinstance(text, str) for text in texts)
    return version if whole and (version.length is None or isinstance(version.length, int)) else None


def _verify(url: str, file: IO[bytes], size: int | None, sha256: str | None) -> None:
    """Raise `FetchError` if the received file is not what it should be."""
    if misfit := _misfit(os.fstat(file.fileno()).st_size, size, None):
        raise FetchError(f"{shown(url)} {misfit}.")
    file.seek(0)
    if sha256 is not None and _sha256(file) != sha256:
        raise FetchError(
            f"{shown(url)} gave a file of another SHA-256 than it should have, and it was deleted: try again, or give "
            "another URL."
        )


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _misfit(length: int, size: int | None, max_bytes: int | None) -> str | None:
    """What is wrong with the length of a file, the predicate of a sentence; None if it is right."""
    if size is not None and length != size:
        return f"gives {length:,} bytes instead of {size:,}, so it is not what was asked for: give another URL"
    if max_bytes is not None and length > max_bytes:
        return f"gives more than {max_bytes:,} bytes, so it is not what was asked for: give another URL"
    return None


def shown(url: str) -> str:
    """The URL as it may be shown and stored, without a name and a password."""
    before, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}"


# Reading from a URL


def stream(
    url: str,
    *,
    known: Version | None = None,
    offset: int = 0,
    size: int | None = None,
    max_bytes: int | None = None,
    stall_seconds: float = STALL_SECONDS,
    trusting: bool = False,
    token: str | None = None,
    answered: Callable[[Mapping[str, str]], None] | None = None,
) -> Generator[Piece, None, None]:
    """Read what lies at `url`, an http or https URL, in pieces, from `offset` on if it still is the version `known`.

    Cut connections, time-outs and statuses that may pass are tried again with growing pauses, as long as something more
    is received: from where it stopped if the server can do that and vouches for the same bytes (or if the caller is
    `trusting`, because it checks them), otherwise from the beginning. A server that gives less than 1 KB/s for
    `stall_seconds` is given up.

    Certificates are checked and the proxies of the environment used. Redirects are followed up to five times, but not
    from https to http, and from a public address not to a private one; a private one that the user gives is as good as
    any other. Web pages, compressed answers, another length than `size`, and more than `max_bytes` are refused.
    A bearer `token` is sent to the scheme, host and port of `url`, and to no other that a redirect leads to.
    `answered` is called with the headers of every answer that is no redirect, their names in lower case.

    Raises `FetchError` if it is not to be had, which is `transient` where the network is to blame; its `reason` is such
    as `HTTP 404` where the server refused.
    """
    import httpx

    from .connections import MAY_PASS, is_web_page

    furthest, failures, reached = offset, 0, False
    longest = min((limit for limit in (size, max_bytes) if limit is not None), default=sys.maxsize)
    with _client(stall_seconds) as client, _StallWatch(stall_seconds) as watch:
        while True:
            try:
                headers = _range_headers(known, offset, trusting)
                with contextlib.closing(_answer(client, url, headers, watch, token)) as response:
                    reached = True
                    if answered is not None:
                        answered(response.headers)
                    if response.status_code in MAY_PASS:
                        raise _PassingError(f"it answered {response.status_code} {response.reason_phrase}")
                    if known is None or not headers or not _goes_on(response, known, offset):
                        asked, offset = bool(headers), 0
                        if asked and response.status_code in (206, 416):
                            raise _PassingError("it has another file now")
                        known = _new_version(response, url, size, max_bytes)
                    for data in response.iter_raw():
                        if offset == 0:
                            # Before the caller lets go of what it has: a login page may be gone the next time.
                            if is_web_page(response.headers.get("Content-Type", ""), data):
                                raise FetchError(
                                    f"{shown(url)} gives a web page instead of a file: check the URL and the network."
                                )
                            yield Piece(known, 0, b"")
                        if offset + len(data) > longest:
                            misfit = _misfit(offset + len(data), size, max_bytes)
                            raise _WrongContentError(f"{shown(url)} {misfit}.")
                        yield Piece(known, offset, data)
                        offset += len(data)
                        watch.received += len(data)
                        if offset > furthest:
                            furthest, failures = offset, 0
                expected = size if known.length is None else known.length
                if not watch.stalled and expected in (None, offset):
                    if offset == 0:
                        yield Piece(known, 0, b"")  # an empty file
                    return
                reason = "the connection was cut"
            except _PassingError as error:
                reason = str(error)
            except httpx.TimeoutException:
                reason = "it does not answer"
            except httpx.TransportError as error:
                reason = str(error) or "the connection was cut"
                if not reached and isinstance(error, (httpx.ConnectError, httpx.ProxyError)):
                    failures = _RETRIES  # a wrong name or port will not be right in a moment
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise FetchError(f"{shown(url)} cannot be downloaded ({error}): check the URL.") from error
            failures += 1
            if watch.stalled:
                reason = f"it sent next to nothing for {stall_seconds:g} seconds"
            elif failures <= _RETRIES:
                time.sleep(_BACKOFF_SECONDS * 2 ** (failures - 1))
                continue
            raise FetchError(
                f"{shown(url)} cannot be downloaded ({reason}): check the URL and the network, and run the same "
                "command again; what was received is kept.",
                "cannot be downloaded",
                reason,
                transient=True,
            )


class _StallWatch:
    """Ends the connections of a download that does not get on: no time limit of httpx is for a server that trickles."""

    _TICKS = 5  # so many slow parts of the time one after the other: a process that was stopped has had only one

    def __init__(self, seconds: float) -> None:
        self.received = 0
        self.stalled = False
        self._tick = seconds / self._TICKS
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpx calls at every step of a request; new sockets are noted."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.stalled:
                self._shut()

    def _watch(self) -> None:
        slow = before = 0
        while not self._over.wait(self._tick):
            slow = slow + 1 if self.received - before < _SLOWEST * self._tick else 0
            before = self.received
            if slow == self._TICKS:
                self.stalled = True
                self._shut()
                return

    def _shut(self) -> None:
        for opened in list(self._sockets):
            with contextlib.suppress(OSError):  # closed by now
                opened.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _client(seconds: float) -> Iterator[httpx.Client]:
    import httpx

    timeout = httpx.Timeout(seconds, connect=min(10.0, seconds))
    headers = {"User-Agent": f"pixmatcher/{__version__}", "Accept-Encoding": "identity"}
    try:
        client = httpx.Client(trust_env=True, verify=True, timeout=timeout, headers=headers)
    except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, no URL, no such file
        raise FetchError(f"The environment's proxy or certificates cannot be used ({error}): mend that.") from error
    with client:
        yield client


def _answer(
    client: httpx.Client, url: str, headers: Mapping[str, str], watch: _StallWatch, token: str | None
) -> httpx.Response:
    """The answer, its body not read yet, at the end of the redirects."""
    from .connections import MAX_REDIRECTS, parse_url

    first = target = parse_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        own = {"Authorization": f"Bearer {token}"} if token and _origin(target) == _origin(first) else {}
        request = client.build_request("GET", target, headers={**headers, **own}, extensions={"trace": watch.trace})
        response = client.send(request, stream=True)
        if not response.has_redirect_location:
            return response
        response.close()
        before, target = target, parse_url(str(target.join(response.headers["Location"])))
        if before.scheme == "https" and target.scheme == "http":
            raise FetchError(f"{shown(url)} leads to {shown(str(target))}, which is not encrypted: give another URL.")
        if _is_private(target) and not _is_private(first):
            raise FetchError(
                f"{shown(url)} leads to {shown(str(target))}, a private or reserved address, which is refused: give "
                "that URL itself if it is the right one."
            )
    raise FetchError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times: give the final URL.")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port  # the port is None where it is the scheme's own


def _is_private(url: httpx.URL) -> bool:
    try:
        found = socket.getaddrinfo(url.host, None, type=socket.SOCK_STREAM)
    except OSError:  # a name that only the proxy knows, or nobody
        return False
    return not all(is_public(str(sockaddr[0])) for *_, sockaddr in found)


def _range_headers(known: Version | None, offset: int, trusting: bool) -> dict[str, str]:
    """What asks for the bytes from `offset` on; nothing where they might be those of another version."""
    if known is None or offset == 0 or not (known.validator or trusting):
        return {}
    return {"Range": f"bytes={offset}-"} | ({"If-Range": known.validator} if known.validator else {})


def _goes_on(response: httpx.Response, known: Version, offset: int) -> bool:
    """Whether the answer is the rest of the version `known`, from `offset` on."""
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (
        response.status_code == 206
        and told is not None
        and int(told[1]) == offset
        and (told[2] == "*" or known.length in (None, int(told[2])))
        # There are servers that know Range and not If-Range.
        and response.headers.get("ETag", known.etag) == known.etag
        and response.headers.get("Last-Modified", known.modified) == known.modified
    )


def _new_version(response: httpx.Response, url: str, size: int | None, max_bytes: int | None) -> Version:
    """What the answer tells of the file that it brings. Raises `FetchError` if it brings none, or another one."""
    if response.status_code != 200:
        status = response.status_code
        raise FetchError(f"{shown(url)} answered {status} {response.reason_phrase}: check the URL.", f"HTTP {status}")
    headers = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError(f"{shown(url)} only gives the file compressed in another way: give another URL.")
    told = headers.get("Content-Length", "")
    length = int(told) if told.isdecimal() and "Transfer-Encoding" not in headers else None
    if length is not None and (misfit := _misfit(length, size, max_bytes)):
        raise FetchError(f"{shown(url)} {misfit}.")
    return Version(shown(url), headers.get("ETag"), headers.get("Last-Modified"), length)
