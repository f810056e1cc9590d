"""Fetching from URLs, against a real server on loopback."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from pixmatcher._urls import is_url
from pixmatcher.errors import FetchError
from pixmatcher.net._addresses import is_public
from pixmatcher.net.fetch import fetch
from servers import serve


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(image: bytes) -> Iterator[str]:
    with serve(image) as url:
        yield url


def test_fetch_returns_the_content(server: str, image: bytes) -> None:
    assert fetch(f"{server}/image.jpg", allow_private=True) == image
    assert fetch(f"{server}/image.jpg?size=large", allow_private=True) == image
    assert fetch(f"{server}/to-image", allow_private=True) == image


def test_a_name_and_password_in_the_url_are_sent(server: str) -> None:
    url = server.replace("://", "://ann:s%20cret@") + "/authorization"
    assert fetch(url, allow_private=True) == b"Basic " + b64encode(b"ann:s cret")
    assert fetch(f"{server}/authorization", allow_private=True) == b""


def test_requests_are_logged_without_the_password(server: str, caplog: pytest.LogCaptureFixture) -> None:
    url = server.replace("://", "://ann:s%20cret@")
    with caplog.at_level("DEBUG", "pixmatcher.net"):
        fetch(f"{url}/to-image", allow_private=True)
        with pytest.raises(FetchError, match="404"):
            fetch(f"{url}/missing", allow_private=True)
    redirect, image, missing = (record.getMessage() for record in caplog.records)
    assert redirect.startswith(f"GET {server}/to-image: redirect to {server}/")
    assert re.search(r"\.jpg: \d+ bytes, \d+\.\d\d s$", image)
    assert missing.startswith(f"GET {server}/missing: HTTP 404, ")
    assert "cret" not in caplog.text


def test_the_server_gets_the_name_of_its_host(server: str) -> None:
    by_name = server.replace("127.0.0.1", "localhost")
    assert fetch(f"{by_name}/host", allow_private=True).decode() == by_name.removeprefix("http://")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"])
def test_private_hosts_are_refused_before_anything_is_sent(server: str, host: str) -> None:
    port = server.rpartition(":")[2]
    with pytest.raises(FetchError, match="private or reserved"):
        fetch(f"http://{host}:{port}/image.jpg")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make the resolver give these addresses for the host photos.example, in this order."""
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        found = addresses if host == "photos.example" else [host]
        return [info for address in found for info in real(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_host_with_one_private_address_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "8.8.8.8", "127.0.0.1")
    with pytest.raises(FetchError, match="private or reserved"):
        fetch(server.replace("127.0.0.1", "photos.example") + "/image.jpg")


def test_after_an_address_that_refuses_the_next_is_tried(
    server: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "::1", "127.0.0.1")  # the server listens on the second only
    assert fetch(server.replace("127.0.0.1", "photos.example") + "/image.jpg", allow_private=True) == image


@pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2, and a full queue that drops connections")
def test_after_an_address_that_never_answers_the_next_is_tried(
    server: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.rpartition(":")[2])
    resolve_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    with socket.socket() as silent, socket.socket() as waiting:
        silent.bind(("127.0.0.2", port))
        silent.listen(0)
        waiting.connect(("127.0.0.2", port))  # and now its queue is full
        url = server.replace("127.0.0.1", "photos.example") + "/image.jpg"
        assert fetch(url, allow_private=True, timeout=8) == image


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("10.0.0.1", False),
        ("172.16.3.4", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:7f00:1::", False),
        ("2606:4700::1", True),
        ("192.0.0.192", False),
        ("168.63.129.16", False),
        ("::ffff:192.0.0.192", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b:1::a00:1", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("5f00::1", False),
        ("3fff::1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("path", "message", "reason"),
    [
        ("/nothing", "answered 404", "HTTP 404"),
        ("/300", "answered 300 Multiple Choices", "HTTP 300"),
        ("/301", "answered 301 Moved Permanently", "HTTP 301"),
        ("/304", "answered 304 Not Modified", "HTTP 304"),
        ("/forever", "redirects more than", "too many redirects"),
        ("/to-file", "only http and https", "not an http URL"),
        ("/page.html", "is a web page, not an image", "not an image"),
        ("/large", "longer than 25 MB", "too large"),
        ("/cut", "cannot be fetched", "cannot be fetched"),
    ],
)
def test_bad_answers_are_one_sentence(server: str, path: str, message: str, reason: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        fetch(server + path, allow_private=True)
    assert "\n" not in str(caught.value)
    assert caught.value.reason == reason


@pytest.mark.parametrize("path", ["/trickle", "/trickle-header"])
def test_a_server_that_trickles_is_given_up(server: str, path: str) -> None:
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 0\.5 seconds"):
        fetch(server + path, allow_private=True, timeout=0.5)
    assert time.monotonic() - started < 50  # it would trickle on for a minute and more


def test_a_resolver_that_hangs_is_given_up_and_lets_the_process_end() -> None:
    code = """
import socket, time
socket.getaddrinfo = lambda *args, **options: time.sleep(600)
from pixmatcher.net.fetch import fetch
fetch("http://photos.example/a.jpg", timeout=0.5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "FetchError: http://photos.example/a.jpg took longer than 0.5 seconds" in done.stderr


def test_an_endless_answer_is_cut(server: str) -> None:
    with pytest.raises(FetchError, match="longer than 1 MB"):
        fetch(f"{server}/endless", allow_private=True, max_bytes=1 << 20)


@pytest.mark.parametrize("url", ["ftp://example.org/a.jpg", "file:///etc/hostname", "gopher://example.org/"])
def test_other_schemes_are_refused(url: str) -> None:
    with pytest.raises(FetchError, match="only http and https"):
        fetch(url, allow_private=True)


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://exa mple/", "https:///path", "http://a:99999/"])
def test_invalid_urls_are_one_sentence(url: str) -> None:
    with pytest.raises(FetchError):
        fetch(url, allow_private=True)


def test_an_unreachable_server_is_one_sentence() -> None:
    with pytest.raises(FetchError, match="cannot be fetched"):
        fetch("http://127.0.0.1:9/", allow_private=True)


def test_what_is_a_url() -> None:
    assert is_url("https://example.org/a.jpg")
    assert is_url("FTP://example.org")
    assert not is_url("a cat://")
    assert not is_url("photos/a.jpg")
    assert not is_url("://")
