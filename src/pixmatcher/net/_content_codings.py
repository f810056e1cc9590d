"""Decode bodies that servers send compressed, though images are requested as they are (RFC 9110, 8.4)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Iterator

_BLOCK = 1 << 18
_GZIP = b"\x1f\x8b\x08"
_MOST_CODINGS = 3
_IMAGE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF.{4}WEBP|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|.{4}ftyp|\xff\x0a|"
    rb"\0\0\0\x0c(?:JXL|jP) |P[1-7]\s\d",
    re.DOTALL,
)
"""The first bytes of the usual image formats."""


class CodingError(ValueError):
    """A body that cannot be decoded; the text says why."""


def decoded_body(body: bytes, codings: str, store: Callable[[int], None]) -> bytes:
    """Return a body without its content codings: those of the header `Content-Encoding`, or gzip or brotli without it.

    A body that is an image already is returned as it is, also if the header says otherwise; codings that are not known
    are ignored, as servers write other values there. `store` is called with the number of bytes before they are stored;
    it raises if there are too many. Raises `CodingError` if the body is damaged, or brotli is not installed.
    """
    named = [name.strip().lower().removeprefix("x-") for name in codings.split(",")]
    known = [name for name in named if name in _DECODERS]
    if _IMAGE.match(body):
        return body
    for name in reversed(known[-_MOST_CODINGS:]):
        body = _decoded(body, _DECODERS[name], store)
    if body.startswith(_GZIP):
        body = _decoded(body, _gunzip, store)
    elif not known and body and not _IMAGE.match(body):
        # Brotli has no first bytes of its own, so only an image counts.
        try:
            head = next(_unbrotli(body), b"")
        except CodingError:
            return body
        if _IMAGE.match(head):
            body = _decoded(body, _unbrotli, store)
    return body


def _decoded(body: bytes, decode: Callable[[bytes], Iterator[bytes]], store: Callable[[int], None]) -> bytes:
    result = bytearray()
    for piece in decode(body):
        store(len(piece))
        result += piece
    return bytes(result)


def _gunzip(body: bytes) -> Iterator[bytes]:
    """Yield the content of a gzip file, which may have several members (RFC 1952)."""
    if not body.startswith(_GZIP):  # the header was wrong
        yield body
    while body.startswith(_GZIP):
        body = yield from _inflated(body, 16 + zlib.MAX_WBITS, "gzip")


def _undeflate(body: bytes) -> Iterator[bytes]:
    """Yield the content of zlib data; some servers send it without its header."""
    has_header = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    yield from _inflated(body, zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS, "deflate")


def _inflated(body: bytes, window: int, name: str) -> Generator[bytes, None, bytes]:
    """Yield the content of one zlib stream in blocks; return the data after it."""
    decoder = zlib.decompressobj(window)
    rest = body
    try:
        while not decoder.eof:
            piece = decoder.decompress(rest, _BLOCK)
            rest = decoder.unconsumed_tail
            if not piece and not rest and not decoder.eof:
                raise CodingError(f"its {name} data is cut short")
            yield piece
    except zlib.error as error:
        raise CodingError(f"its {name} data is damaged: {error}") from None
    return decoder.unused_data


def _unbrotli(body: bytes) -> Iterator[bytes]:
    """Yield the content of brotli data (RFC 7932) in blocks."""
    try:
        import brotli
    except ImportError:
        raise CodingError("it is compressed with brotli: run `pip install brotli`") from None
    decoder = brotli.Decompressor()
    rest = body
    try:
        while not decoder.is_finished():
            piece = decoder.process(rest, output_buffer_limit=_BLOCK)
            rest = b""
            if not piece and not decoder.is_finished():
                raise CodingError("its brotli data is cut short")
            yield piece
    except brotli.error as error:
        raise CodingError(f"its brotli data is damaged: {error}") from None


_DECODERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {"gzip": _gunzip, "deflate": _undeflate, "br": _unbrotli}
