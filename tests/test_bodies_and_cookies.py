"""Bodies that servers send compressed though not asked to, and cookies that they set on the way to an image."""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixmatcher.errors import FetchError
from pixmatcher.net._content_codings import CodingError, decoded_body
from pixmatcher.net.fetch import fetch
from pixmatcher.net.fetch_many import fetch_all
from servers import Server, serve_watched


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server(image: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on loopback, where every name that ends with .example leads."""
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        return list(real("127.0.0.1" if str(host).endswith(".example") else host, *args, **options))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with serve_watched(image) as server:
        yield server


def serve_encoded(server: Server, body: bytes, coding: str | None, kind: str = "image/png") -> str:
    server.encoded["/encoded/a.png"] = body
    server.headers["/encoded/a.png"] = {"Content-Type": kind} | ({"Content-Encoding": coding} if coding else {})
    return f"{server.url}/encoded/a.png"


def fetch_both(url: str, **options: Any) -> bytes:
    """Return what both ways to fetch an image return."""
    first = fetch(url, allow_private=True, **options)
    ((_, second),) = [
        pair for batch in fetch_all([(0, [url])], batch_size=1, allow_private=True, **options) for pair in batch
    ]
    assert first == second
    return first


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(data) + encoder.flush()


CODED = {
    "gzip": ("gzip", gzip.compress),
    "gzip without a header": (None, gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip of several members": ("gzip", lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:])),
    "gzip with bytes after it": ("gzip", lambda data: gzip.compress(data) + bytes(20)),
    "gzip twice, one of them in the header": ("gzip", lambda data: gzip.compress(gzip.compress(data))),
    "brotli": ("br", brotli.compress),
    "brotli without a header": (None, brotli.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its header": ("deflate", raw_deflate),
    "gzip, then brotli": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
    "a header, but not compressed": ("gzip", lambda data: data),
    "brotli in the header, but not compressed": ("BR", lambda data: data),
    "an unknown header": ("utf-8", lambda data: data),
    "identity": ("identity", lambda data: data),
}


@pytest.mark.parametrize("name", CODED)
def test_a_compressed_body_is_decoded(server: Server, image: bytes, name: str) -> None:
    coding, encode = CODED[name]
    assert fetch_both(serve_encoded(server, encode(image), coding)) == image


@pytest.mark.parametrize(
    ("coding", "encode"), [("gzip", gzip.compress), ("br", brotli.compress), (None, gzip.compress)]
)
def test_a_small_body_with_a_large_content_is_refused(server: Server, coding: str | None, encode: Any) -> None:
    url = serve_encoded(server, encode(bytes(64 << 20)), coding)
    with pytest.raises(FetchError, match="is longer than 1 MB") as caught:
        fetch(url, allow_private=True, max_bytes=1 << 20)
    assert caught.value.reason == "too large"
    ((_, outcome),) = next(b for b in fetch_all([(0, [url])], batch_size=1, allow_private=True, max_bytes=1 << 20) if b)
    assert isinstance(outcome, FetchError)
    assert outcome.reason == "too large"


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("br", brotli.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        (None, gzip.compress),
    ],
)
def test_a_damaged_body_is_one_sentence(server: Server, image: bytes, coding: str | None, encode: Any) -> None:
    url = serve_encoded(server, encode(image)[:-30], coding)
    with pytest.raises(FetchError, match=r"its \w+ data is .*: download it and give the file\.$") as caught:
        fetch(url, allow_private=True)
    assert caught.value.reason == "damaged"


def test_a_compressed_web_page_is_one(server: Server) -> None:
    url = serve_encoded(server, gzip.compress(b"<!doctype html><p>Log in."), "gzip", "image/png")
    with pytest.raises(FetchError, match="is a web page"):
        fetch(url, allow_private=True)


@given(
    st.binary(max_size=300), st.sampled_from(["", "gzip", "br", "deflate", "br, gzip", "gzip, gzip, gzip, gzip", ",,x"])
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_decoded_or_refused(data: bytes, codings: str) -> None:
    stored: list[int] = []
    for body in (data, gzip.compress(data)[: len(data) + 9], brotli.compress(data) + data):
        with contextlib.suppress(CodingError):
            decoded_body(body, codings, stored.append)


# Cookies


def test_a_cookie_that_a_redirect_to_the_same_url_sets_is_sent(server: Server, image: bytes) -> None:
    assert fetch_both(f"{server.url}/cookie-wall") == image


def test_every_image_begins_without_cookies(server: Server, image: bytes) -> None:
    urls = [f"{server.url}/set-cookie?cookie=a%3D1&to=/cookies", *[f"{server.url}/cookies?{n}" for n in range(3)]]
    requests = [(number, [url]) for number, url in enumerate(urls)]
    found = dict(p for batch in fetch_all(requests, batch_size=4, allow_private=True, per_host=1) for p in batch)
    assert found == {0: b"a=1", 1: b"none", 2: b"none", 3: b"none"}
    # Neither does the next URL of the same image.
    gone = f"{server.url}/set-cookie?cookie=a%3D1&to=/gone"
    ((_, outcome),) = next(
        b for b in fetch_all([(0, [gone, f"{server.url}/cookies"])], batch_size=1, allow_private=True) if b
    )
    assert outcome == b"none"


@pytest.mark.parametrize(
    ("first", "cookie", "then", "sent"),
    [
        ("one.example", "a=1", "one.example", "a=1"),
        ("one.example", "a=1", "two.example", "none"),
        ("one.example", "a=1", "www.one.example", "none"),
        ("one.example", "a=1; Domain=one.example", "www.one.example", "a=1"),
        ("www.one.example", "a=1; Domain=one.example", "cdn.one.example", "a=1"),
        ("one.example", "a=1; Domain=two.example", "two.example", "none"),
        ("one.example", "a=1; Domain=example", "two.example", "none"),
        ("one.example", "a=1; Secure", "one.example", "none"),
        ("one.example", "a=1; Path=/other", "one.example", "none"),
        ("one.example", "a=1; Max-Age=0", "one.example", "none"),
        ("one.example", "a=" + "x" * 9000, "one.example", "none"),
        ("127.0.0.1", "a=1", "127.0.0.1", "a=1"),
    ],
)
def test_only_the_hosts_of_a_cookie_get_it(server: Server, first: str, cookie: str, then: str, sent: str) -> None:
    target = server.url.replace("127.0.0.1", then) + "/cookies"
    start = server.url.replace("127.0.0.1", first) + f"/set-cookie?cookie={quote(cookie)}&to={quote(target)}"
    assert fetch_both(start) == sent.encode()
