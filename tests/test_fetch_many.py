"""Fetching many images at once, against real servers on loopback."""

from __future__ import annotations

import io
import itertools
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from PIL import Image

from pixmatcher.errors import FetchError
from pixmatcher.net import _addresses, _connections, _jobs, _scheduler
from pixmatcher.net._scheduler import THREAD_NAME
from pixmatcher.net.fetch_many import fetch_all
from servers import Server, certificate, serve_watched

CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def image() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def server(image: bytes) -> Iterator[Server]:
    with serve_watched(image) as server:
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make pauses short, and check that no thread or socket of a run is left."""
    monkeypatch.setattr(_jobs, "_PAUSE_SECONDS", 0.02)
    yield
    for thread in threading.enumerate():
        if thread.name == THREAD_NAME:
            thread.join(20)
            assert not thread.is_alive(), "a thread goes on after the run"


def fetch_urls(*urls: str, **options: Any) -> list[bytes | FetchError]:
    """Return the result of each URL, in the order of the URLs."""
    requests = [(number, [url]) for number, url in enumerate(urls)]
    options = {"batch_size": 10, "allow_private": True} | options
    found = dict(pair for batch in fetch_all(requests, **options) for pair in batch)
    return [found[number] for number in range(len(urls))]


def fetch_one(*urls: str, **options: Any) -> bytes | FetchError:
    """Return the result of one image that has several URLs."""
    options = {"batch_size": 10, "allow_private": True} | options
    ((key, outcome),) = [pair for batch in fetch_all([("it", urls)], **options) for pair in batch]
    assert key == "it"
    return outcome


def failure(outcome: bytes | FetchError) -> FetchError:
    assert isinstance(outcome, FetchError)
    assert outcome.__traceback__ is None  # it would keep bodies in memory
    return outcome


def resolve_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every name that ends with .example one of 127.0.0.1."""
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        return list(real("127.0.0.1" if str(host).endswith(".example") else host, *args, **options))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


# ---- Results and their lists ----


def test_all_images_arrive_in_lists_of_the_requested_size(server: Server, image: bytes) -> None:
    requests = [(f"image {number}", [f"{server.url}/image.jpg?{number}"]) for number in range(200)]
    batches = list(fetch_all(iter(requests), batch_size=30, allow_private=True))
    assert all(len(batch) <= 30 for batch in batches)
    assert {key: outcome for batch in batches for key, outcome in batch} == {key: image for key, _ in requests}
    assert set(server.requests.values()) == {1}


def test_no_requests_give_no_results() -> None:
    assert list(fetch_all([], batch_size=10)) == []


def test_fast_images_arrive_before_slow_ones(server: Server) -> None:
    urls = [f"{server.url}/trickle", *(f"{server.url}/image.jpg?{number}" for number in range(20))]
    requests = [(number, [url]) for number, url in enumerate(urls)]
    batches = list(fetch_all(requests, batch_size=20, allow_private=True, seconds=3))
    assert {key for key, _ in next(batch for batch in batches if batch)} == set(range(1, 21))
    assert [] in batches  # so that the caller has a chance to store what it has
    ((key, outcome),) = batches[-1]
    assert (key, failure(outcome).reason) == (0, "took too long")


def test_requests_are_taken_as_they_are_needed(server: Server) -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, list[str]]]:
        nonlocal taken
        for number in itertools.count():
            taken = number
            yield number, [f"{server.url}/image.jpg"]

    with closing(fetch_all(endless(), batch_size=10, allow_private=True)) as batches:
        for _ in range(5):
            assert len(next(batches)) <= 10
    assert 50 <= taken <= 1100


def test_errors_of_the_requests_are_raised(server: Server) -> None:
    def broken() -> Iterator[tuple[int, list[str]]]:
        yield 0, [f"{server.url}/trickle"]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(fetch_all(broken(), batch_size=10, allow_private=True))


# ---- Bounds ----


def test_connections_are_kept_and_no_more_than_the_limit_of_a_host(image: bytes) -> None:
    with serve_watched(image, latency=0.01) as server:
        fetch_urls(*[f"{server.url}/image.jpg"] * 50, per_host=4)
        assert server.most_at_once == 4
        assert len(server.hosts) == 4


def test_redirects_and_short_errors_keep_the_connection(server: Server) -> None:
    fetch_urls(*[f"{server.url}/to-image"] * 5, *[f"{server.url}/nothing"] * 5, per_host=1)
    assert len(server.hosts) == 1


def test_no_more_connections_than_allowed_over_all_hosts(image: bytes) -> None:
    with serve_watched(image, latency=0.01) as one, serve_watched(image, latency=0.01) as two:
        urls = [f"{server.url}/image.jpg" for _ in range(20) for server in (one, two)]
        assert fetch_urls(*urls, connections=3) == [image] * 40
        assert one.most_at_once + two.most_at_once <= 6
        assert max(one.most_at_once, two.most_at_once) <= 3


def test_a_slow_host_does_not_keep_the_others_waiting(image: bytes) -> None:
    with serve_watched(image) as slow, serve_watched(image) as quick:
        urls = [f"{slow.url}/trickle"] * 100 + [f"{quick.url}/image.jpg"] * 100
        with closing(fetch_all([(u, [u]) for u in urls], batch_size=100, allow_private=True, per_host=4)) as batches:
            first = [key for batch in itertools.islice(batches, 3) for key, _ in batch]
    assert first == [f"{quick.url}/image.jpg"] * 100


def test_the_memory_of_waiting_bodies_is_limited(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scheduler, "_MAX_MEMORY", 1 << 20)
    requests = [(number, [f"{server.url}/kilobytes?200"]) for number in range(60)]
    with closing(fetch_all(requests, batch_size=1, allow_private=True, per_host=4)) as batches:
        next(batches)
        time.sleep(0.5)  # the caller is busy
        assert server.requests.total() <= 1 + 5 + 4
        assert sum(len(batch) for batch in batches) == 59


def test_bodies_that_fill_the_memory_all_arrive(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scheduler, "_MAX_MEMORY", 1 << 20)
    outcomes = fetch_urls(*[f"{server.url}/kilobytes?900"] * 20, batch_size=20)
    assert outcomes == [bytes(900 << 10)] * 20


# ---- Temporary and permanent errors ----


def test_a_temporary_error_is_retried(server: Server, image: bytes) -> None:
    urls = [f"{server.url}/flaky.jpg?times=2&status={status}" for status in (408, 425, 429, 500, 502, 503, 504)]
    assert fetch_urls(*urls) == [image] * len(urls)
    assert [server.requests[url.removeprefix(server.url)] for url in urls] == [3] * len(urls)


def test_retries_are_limited(server: Server) -> None:
    error = failure(fetch_one(f"{server.url}/flaky.jpg?times=100&status=500"))
    assert (error.reason, error.detail) == ("HTTP 500", "Internal Server Error")
    assert server.requests.total() == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_a_permanent_error_is_final(server: Server, status: int) -> None:
    error = failure(fetch_one(f"{server.url}/flaky.jpg?times=1&status={status}"))
    assert error.reason == f"HTTP {status}"
    assert server.requests.total() == 1


def test_a_server_that_asks_to_wait_is_given_that_time(server: Server, image: bytes) -> None:
    started = time.monotonic()
    assert fetch_one(f"{server.url}/flaky.jpg?times=1&after=1") == image
    assert time.monotonic() - started >= 1  # and not 0.02, as without that
    assert server.requests.total() == 2


def test_a_server_that_asks_to_wait_too_long_is_given_up(server: Server) -> None:
    urls = [f"{server.url}/flaky.jpg?times=9&status=429&after=86400&{number}" for number in range(20)]
    errors = [failure(outcome) for outcome in fetch_urls(*urls, per_host=2)]
    assert {error.reason for error in errors} == {"HTTP 429"}
    assert server.requests.total() <= 2
    assert "given up" in str(errors[-1])


def test_a_server_that_wants_fewer_requests_gets_fewer(image: bytes) -> None:
    with serve_watched(image, latency=0.01, at_most=2) as server:
        assert fetch_urls(*[f"{server.url}/image.jpg"] * 60) == [image] * 60
        assert server.most_at_once > 2  # it did ask for fewer


def test_a_connection_closed_between_two_requests_is_no_failure(
    server: Server, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scheduler, "_TRIES", 1)
    assert fetch_urls(*[f"{server.url}/close"] * 30, per_host=2) == [image] * 30


def test_a_cut_answer_is_retried(server: Server) -> None:
    assert failure(fetch_one(f"{server.url}/cut")).reason == "cannot be fetched"
    assert failure(fetch_one(f"{server.url}/hang-up")).reason == "cannot be fetched"
    assert server.requests == Counter({"/cut": 3, "/hang-up": 3})


def test_a_host_that_does_not_answer_is_given_up(server: Server, image: bytes) -> None:
    dead = [f"{CLOSED}/{number}.jpg" for number in range(500)]
    *outcomes, last = fetch_urls(*dead, f"{server.url}/image.jpg", batch_size=100)
    assert last == image
    errors = [failure(outcome) for outcome in outcomes]
    assert {error.reason for error in errors} == {"host does not answer"}
    assert all("refused" in error.detail for error in errors)
    assert sum("127.0.0.1:9 was given up" in error.detail for error in errors) > 400


def test_retries_and_hosts_that_are_given_up_are_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "pixmatcher.net"):
        fetch_urls(*[f"{CLOSED}/{number}.jpg" for number in range(20)], f"{server.url}/image.jpg")
    messages = {record.getMessage() for record in caplog.records}
    assert f"retry {CLOSED}/0.jpg: host does not answer" in messages
    assert "give up 127.0.0.1:9: host does not answer" in messages
    assert any(message.startswith("fetched 1 images, 20 failed, in ") for message in messages)


def test_a_host_that_answers_again_is_not_given_up(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_jobs, "_PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(_scheduler, "_TRIES", 5)
    with serve_watched(image) as server:
        url = server.url
    # The server is down now, and will be up again.
    port = int(url.rpartition(":")[2])
    listening = socket.socket()

    def come_back() -> None:
        listening.bind(("127.0.0.1", port))
        listening.listen(50)
        while True:
            try:
                opened, _ = listening.accept()
            except OSError:
                return
            with opened:
                opened.recv(10_000)
                opened.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(image) + image)

    timer = threading.Timer(0.5, come_back)
    timer.start()
    try:
        assert fetch_urls(*[f"{url}/image.jpg?{number}" for number in range(100)]) == [image] * 100
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        timer.join()


def test_an_unknown_host_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups: list[str] = []

    def resolve(host: str, *args: Any, **options: Any) -> list[Any]:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    errors = [failure(outcome) for outcome in fetch_urls(*[f"http://gone.example/{n}.jpg" for n in range(30)])]
    assert {(error.reason, error.detail) for error in errors} == {("host not known", "Name or service not known")}
    assert lookups == ["gone.example"]


# ---- Several URLs of one image ----


def test_the_next_url_is_tried_if_one_fails(server: Server, image: bytes) -> None:
    for bad in (
        f"{server.url}/nothing",
        f"{server.url}/page.html",
        f"{CLOSED}/a.jpg",
        "ftp://a.example/b.jpg",
        "http://",
    ):
        assert fetch_one(bad, f"{server.url}/image.jpg") == image


def test_the_first_url_that_gives_an_image_is_the_last_tried(server: Server, image: bytes) -> None:
    assert fetch_one(f"{server.url}/image.jpg", f"{server.url}/image.jpg?original") == image
    assert server.requests == Counter({"/image.jpg": 1})


def test_a_url_that_takes_too_long_leaves_time_for_the_next(server: Server, image: bytes) -> None:
    assert fetch_one(f"{server.url}/trickle", f"{server.url}/image.jpg", seconds=4) == image


def test_if_all_urls_fail_the_last_error_is_reported(server: Server) -> None:
    error = failure(fetch_one(f"{server.url}/forever", f"{server.url}/nothing"))
    assert error.reason == "HTTP 404"
    assert "\n" not in str(error)


# ---- Bad input: each URL is reported, none ends the run ----


def test_each_bad_url_is_reported_and_none_ends_the_run(server: Server, image: bytes) -> None:
    expected = {
        f"{server.url}/nothing": ("HTTP 404", "Not Found"),
        f"{server.url}/300": ("HTTP 300", "Multiple Choices"),
        f"{server.url}/forever": ("too many redirects", ""),
        f"{server.url}/to-file": ("not an http URL", ""),
        f"{server.url}/to-nowhere": ("not a URL", "redirects"),
        f"{server.url}/page.html": ("not an image", "web page"),
        f"{server.url}/empty-page": ("not an image", "web page"),
        f"{server.url}/cut": ("cannot be fetched", ""),
        f"{server.url}/no-http": ("cannot be fetched", ""),
        f"{server.url}/endless": ("too large", "1 MB"),
        f"{server.url}/large": ("too large", "1 MB"),
        f"{server.url}/trickle": ("took too long", "longer than 3 seconds"),
        f"{server.url}/trickle-header": ("took too long", "longer than 3 seconds"),
        f"{CLOSED}/image.jpg": ("host does not answer", "refused"),
        "ftp://a.example/b.jpg": ("not an http URL", ""),
        "file:///etc/hostname": ("not an http URL", ""),
        "photos/cat.jpg": ("not an http URL", ""),
        "": ("not an http URL", ""),
        "http://": ("not a URL", ""),
        "http://[::1": ("not a URL", ""),
        "http://a\nb/": ("not a URL", ""),
        "http://a:99999/": ("not a URL", ""),
        f"{server.url}/image.jpg": None,
        f"{server.url}/called-a-page.jpg": None,
    }
    outcomes = fetch_urls(*expected, seconds=3, max_bytes=1 << 20)
    for (url, expected_error), outcome in zip(expected.items(), outcomes, strict=True):
        if expected_error is None:
            assert outcome == image
        else:
            error = failure(outcome)
            assert (url, error.reason) == (url, expected_error[0])
            assert expected_error[1] in error.detail


def test_an_image_without_a_url_is_reported(server: Server, image: bytes) -> None:
    requests = [("none", []), ("one", [f"{server.url}/image.jpg"])]
    found = dict(pair for batch in fetch_all(requests, batch_size=10, allow_private=True) for pair in batch)
    assert failure(found["none"]).reason == "not a URL"
    assert found["one"] == image


def test_private_addresses_are_refused_unless_allowed(server: Server, image: bytes) -> None:
    url = f"{server.url}/image.jpg"
    (error,) = fetch_urls(url, allow_private=False)
    assert failure(error).reason == "private address"
    assert "--allow-private-hosts" in str(error)
    assert not server.hosts
    assert fetch_urls(url) == [image]


def test_a_redirect_to_a_private_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the loopback server counts as public here.
    monkeypatch.setattr(_connections, "is_public", lambda text: text == "127.0.0.1" or _addresses.is_public(text))
    error = failure(fetch_one(f"{server.url}/to-private", allow_private=False))
    assert (error.reason, error.detail) == ("private address", "10.0.0.1; --allow-private-hosts allows it")
    assert server.requests == Counter({"/to-private": 1})


def test_a_name_that_changes_its_address_is_looked_up_once(
    server: Server, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host name must not be public for the check and private for the connection."""
    real = socket.getaddrinfo
    answers = iter(["127.0.0.1"])

    def resolve(host: Any, *args: Any, **options: Any) -> list[Any]:
        return list(real(next(answers, "10.0.0.1") if host == "turns.example" else host, *args, **options))

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(_connections, "is_public", lambda text: text == "127.0.0.1")
    url = server.url.replace("127.0.0.1", "turns.example") + "/image.jpg"
    assert fetch_urls(*[url] * 10, allow_private=False) == [image] * 10


# ---- TLS ----


@pytest.fixture
def tls_server(image: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    resolve_to_loopback(monkeypatch)
    with serve_watched(image, tls=True) as server:
        yield server


def test_a_connection_serves_only_the_host_that_it_was_made_for(
    tls_server: Server, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(cafile=certificate())
    monkeypatch.setattr(_connections, "_ssl_context", lambda: context)
    hosts = ["one.example", "two.example"] * 10
    urls = [tls_server.url.replace("127.0.0.1", host) + "/image.jpg" for host in hosts]
    assert fetch_urls(*urls, per_host=1) == [image] * 20
    assert sorted(tls_server.hosts) == [["one.example"] * 11, ["two.example"] * 11]  # TLS and ten requests each


def test_an_untrusted_certificate_is_reported(tls_server: Server) -> None:
    error = failure(fetch_one(tls_server.url.replace("127.0.0.1", "one.example") + "/image.jpg"))
    assert error.reason == "cannot be fetched"
    assert "certificate verify failed" in error.detail
    assert len(tls_server.hosts) == 1  # it is not tried again
    assert not tls_server.requests


# ---- The end ----


def test_closing_ends_all_requests(server: Server) -> None:
    requests = [(number, [f"{server.url}/trickle"]) for number in range(50)]
    with closing(fetch_all(requests, batch_size=10, allow_private=True, seconds=600)) as batches:
        assert next(batches) == []
    # The fixture waits for the threads: they end although the server would trickle on.


@pytest.mark.parametrize("trouble", ["trickle", "resolver"])
def test_an_interrupt_ends_the_process(server: Server, trouble: str) -> None:
    code = f"""
import socket, sys, time
from pixmatcher.net.fetch_many import fetch_all
if {trouble == "resolver"}:
    socket.getaddrinfo = lambda *args, **options: time.sleep(600)
requests = [(n, ["{server.url}/trickle"]) for n in range(50)]
for batch in fetch_all(requests, batch_size=10, allow_private=True, seconds=600):
    print("waiting", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert errors.strip().endswith(b"KeyboardInterrupt")
