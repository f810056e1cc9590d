"""Downloads from a real server on loopback: cut, stalled, changed, wrong, killed, twice at once, and on a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pixmatcher.net.stream as module
from file_server import File, FileServer, serve_files
from pixmatcher import FetchError, PixMatcherError
from pixmatcher._locks import locked_file
from pixmatcher.net.download import download
from servers import certificate
from support import fill_up, wait_for_lock

BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


pytestmark = pytest.mark.usefixtures("quick_downloads")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as files:
        yield files


def serve(server: FileServer, body: bytes = BODY, **how: object) -> str:
    server.files["/file.bin"] = File(body, **how)  # type: ignore[arg-type]
    return f"{server.url}/file.bin"


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_sentence(error: pytest.ExceptionInfo[PixMatcherError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def stop_after(server: FileServer, url: str, path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a download after `count` bytes, as in a run that failed."""
    server.files["/file.bin"].cuts = [count]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_RETRIES", 0)
        with pytest.raises(FetchError, match="what was received is kept"):
            download(url, path)
    assert path.with_name(f"{path.name}.part").stat().st_size == count
    server.requests.clear()


# Downloads that succeed


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    url, path, seen = serve(server), tmp_path / "file.bin", []
    assert download(url, path, size=len(BODY), sha256=SHA256, progress=lambda p: seen.append((p.done, p.total)))
    assert path.read_bytes() == BODY
    assert listing(tmp_path) == ["file.bin"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not download(url, path, size=len(BODY), sha256=SHA256)
    assert not download(url, path)
    assert [request.encodings for request in server.requests] == ["identity"]


@pytest.mark.parametrize("body", [b"", b"x"])
def test_very_short_files(server: FileServer, tmp_path: Path, body: bytes) -> None:
    assert download(serve(server, body), tmp_path / "file.bin", size=len(body))
    assert (tmp_path / "file.bin").read_bytes() == body
    assert listing(tmp_path) == ["file.bin"]


def test_a_download_is_logged_with_its_retries(
    server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(server, cuts=[1000])
    with caplog.at_level("DEBUG", "pixmatcher.net"):
        assert download(url.replace("://", "://ann:secret@"), tmp_path / "file.bin")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == f"download {url} to {tmp_path / 'file.bin'}"
    assert messages[1].startswith(f"GET {url} from byte 0: 200, ")
    assert messages[2].startswith(f"retry {url} in ")
    assert messages[-1] == f"downloaded {tmp_path / 'file.bin'}, {len(BODY)} bytes"
    assert "secret" not in caplog.text


def test_an_unknown_length(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, length=False), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


# Interrupted downloads


@pytest.mark.parametrize(
    ("validators", "if_range"),
    [
        ({"etag": '"1"'}, '"1"'),
        ({"etag": None, "modified": DATE}, DATE),
        ({"etag": 'W/"1"', "modified": DATE}, DATE),
    ],
)
def test_a_cut_connection_continues_where_it_stopped(
    server: FileServer, tmp_path: Path, validators: dict[str, str | None], if_range: str
) -> None:
    url = serve(server, cuts=[50_000, 60_000], **validators)
    assert download(url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.ranges("/file.bin") == [None, "bytes=50000-", "bytes=110000-"]
    assert [request.if_range for request in server.requests] == [None, if_range, if_range]
    assert server.sent("/file.bin") == len(BODY)


def test_the_next_run_continues(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, path = serve(server), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    seen: list[tuple[int, int | None]] = []
    assert download(url, path, progress=lambda p: seen.append((p.done, p.total)))
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == ["bytes=70000-"]
    assert seen[0][0] > 70_000
    assert listing(tmp_path) == ["file.bin"]


def test_a_run_that_was_stopped_after_the_last_byte_requests_nothing(server: FileServer, tmp_path: Path) -> None:
    url = serve(server)
    (tmp_path / "file.bin.part").write_bytes(BODY)
    note = {"url": url, "etag": '"1"', "modified": None, "length": len(BODY)}
    (tmp_path / "file.bin.part.json").write_text(json.dumps(note))
    assert download(url, tmp_path / "file.bin", sha256=SHA256)
    assert server.requests == []
    assert listing(tmp_path) == ["file.bin"]


def test_parts_are_not_joined_without_a_validator_unless_the_check_is_exact(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, etag='W/"1"', cuts=[50_000])
    assert download(url, tmp_path / "a.bin")
    assert server.ranges("/file.bin") == [None, None]
    server.files["/file.bin"].cuts = [50_000]
    assert download(url, tmp_path / "b.bin", sha256=SHA256)
    assert server.ranges("/file.bin") == [None, None, None, "bytes=50000-"]
    server.files["/file.bin"].cuts = [50_000]
    server.requests.clear()
    assert download(url, tmp_path / "c.bin", check=lambda path: None, check_is_exact=True)
    assert server.ranges("/file.bin") == [None, "bytes=50000-"]
    assert all((tmp_path / name).read_bytes() == BODY for name in ("a.bin", "b.bin", "c.bin"))


def test_a_file_joined_from_two_versions_is_deleted(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = serve(server, BODY[::-1], etag=None), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    serve(server, etag=None)
    with pytest.raises(FetchError, match="another SHA-256"):
        download(url, path, sha256=SHA256)
    assert listing(tmp_path) == []
    assert download(url, path, sha256=SHA256)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"etag": '"1"'}, {"etag": '"2"'}),
        ({"etag": None, "modified": DATE}, {"etag": None, "modified": DATE.replace("2015", "2016")}),
    ],
)
def test_another_file_of_a_server_that_ignores_if_range(
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str | None],
    now: dict[str, str | None],
) -> None:
    url, path = serve(server, BODY[::-1], **before), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    serve(server, if_range=False, **now)
    assert download(url, path)
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == ["bytes=70000-", None]


def test_a_validator_that_cannot_be_sent_is_not_used(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, etag='"caf\u00e9"', cuts=[50_000]), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_a_server_without_range_support_begins_again(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, ranges=False, cuts=[50_000, 40_000]), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.sent("/file.bin") == len(BODY) + 90_000


def test_a_server_that_always_cuts_and_always_begins_again_is_given_up(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, ranges=False, cuts=[50_000] * 50)
    with pytest.raises(FetchError, match="cannot be downloaded"):
        download(url, tmp_path / "file.bin")
    assert len(server.requests) == 6


def test_another_file_begins_again(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, path = serve(server), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    other = random.Random(2).randbytes(200_000)
    serve(server, other, etag='"2"')
    assert download(url, path)
    assert path.read_bytes() == other
    assert server.ranges("/file.bin") == ["bytes=70000-"]


def test_another_file_between_two_attempts_begins_again(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, etags=['"1"', '"2"'], cuts=[50_000]), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.sent("/file.bin") == len(BODY) + 50_000


def test_the_part_of_another_url_is_not_continued(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = serve(server), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    server.files["/other.bin"] = File(BODY[::-1])
    assert download(f"{server.url}/other.bin", path)
    assert path.read_bytes() == BODY[::-1]
    assert server.ranges("/other.bin") == [None]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"url": 1}', '{"url": 1, "etag": 2, "modified": 3, "length": "4"}'])
def test_a_part_of_unknown_origin_is_not_continued(server: FileServer, tmp_path: Path, note: str) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    (tmp_path / "file.bin.part.json").write_text(note)
    assert download(serve(server), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


@pytest.mark.parametrize("received", [len(BODY), len(BODY) + 5])
def test_a_range_beyond_the_end_begins_again(server: FileServer, tmp_path: Path, received: int) -> None:
    url = serve(server)
    (tmp_path / "file.bin.part").write_bytes(b"x" * received)
    (tmp_path / "file.bin.part.json").write_text(
        json.dumps({"url": url, "etag": '"1"', "modified": None, "length": None})
    )
    assert download(url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.ranges("/file.bin") == [f"bytes={received}-", None]


def test_a_wrong_range_begins_again(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, wrong_range=True, cuts=[50_000]), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.ranges("/file.bin") == [None, "bytes=50000-", None]


def test_temporary_statuses_are_retried(server: FileServer, tmp_path: Path) -> None:
    assert download(serve(server, statuses=[503, 429, 500]), tmp_path / "file.bin")
    assert len(server.requests) == 4
    serve(server, statuses=[503] * 50)
    with pytest.raises(FetchError, match="it answered 503 Service Unavailable") as caught:
        download(f"{server.url}/file.bin", tmp_path / "again.bin")
    one_sentence(caught)
    assert len(server.requests) == 4 + 6
    assert listing(tmp_path) == ["file.bin"]


# What is refused


def test_other_statuses_are_reported_at_once(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"/missing answered 404 Not Found: check the URL") as caught:
        download(f"{server.url}/missing", tmp_path / "file.bin")
    one_sentence(caught)
    assert len(server.requests) == 1
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "expected", "words"),
    [
        ({}, {"size": 1_000_000}, "returns 300,000 bytes instead of 1,000,000"),
        ({}, {"size": 1000}, "returns 300,000 bytes instead of 1,000"),
        ({"length": False}, {"size": 1000}, "bytes instead of 1,000"),
        ({}, {"max_bytes": 1000}, "returns more than 1,000 bytes"),
        ({"length": False}, {"max_bytes": 1000}, "returns more than 1,000 bytes"),
        ({}, {"sha256": "0" * 64}, "another SHA-256"),
        ({"body": BODY[:-1] + b"?"}, {"size": len(BODY), "sha256": SHA256}, "another SHA-256"),
        ({"body": b"\xef\xbb\xbf \n<!DOCTYPE html><html>" + BODY}, {}, "a web page instead of a file"),
        ({"body": b"<html><body>Log in</body></html>"}, {}, "a web page instead of a file"),
        ({"body": b"<script>", "type": "text/html; charset=utf-8"}, {}, "a web page instead of a file"),
        ({"encoding": "gzip"}, {}, "compressed"),
        ({"encoding": "br"}, {}, "compressed"),
    ],
)
def test_a_wrong_file_is_refused_and_deleted(
    server: FileServer, tmp_path: Path, how: dict[str, object], expected: dict[str, object], words: str
) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        download(serve(server, **how), tmp_path / "file.bin", **expected)  # type: ignore[arg-type]
    one_sentence(caught)
    assert listing(tmp_path) == []


def test_an_endless_answer_is_not_read_to_the_end(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, length=False, hold_after=250_000)  # a reader that continues would wait forever
    with pytest.raises(FetchError, match="bytes instead of 200,000"):
        download(url, tmp_path / "file.bin", size=200_000, stall_seconds=600)
    assert listing(tmp_path) == []


def test_a_file_that_a_check_refuses_is_deleted(server: FileServer, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == BODY
        raise FetchError("No.")

    with pytest.raises(FetchError, match=r"^No\.$"):
        download(serve(server), tmp_path / "file.bin", check=check)
    assert listing(tmp_path) == []


def test_a_connection_that_ends_before_the_announced_length(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="cannot be downloaded") as caught:
        download(serve(server, more_length=10), tmp_path / "file.bin")
    one_sentence(caught)
    assert not (tmp_path / "file.bin").exists()


def test_a_login_page_does_not_delete_what_was_received(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = serve(server), tmp_path / "file.bin"
    stop_after(server, url, path, 70_000, monkeypatch)
    file = server.files["/file.bin"]
    serve(server, b"<!doctype html>Log in", etag=None)
    with pytest.raises(FetchError, match="a web page instead of a file"):
        download(url, path)
    server.files["/file.bin"] = file
    server.requests.clear()
    assert download(url, path)
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == ["bytes=70000-"]


@pytest.mark.parametrize(
    "how", [{"silent": True}, {"trickling_headers": True}, {"pause": 0.02}, {"hold_after": 0}, {"hold_after": 40_000}]
)
def test_a_server_that_stalls_or_trickles_is_given_up(
    server: FileServer, tmp_path: Path, how: dict[str, object]
) -> None:
    url, path = serve(server, **how), tmp_path / "file.bin"
    with pytest.raises(FetchError, match="next to nothing for 1 seconds") as caught:
        download(url, path, stall_seconds=1)
    one_sentence(caught)
    part = tmp_path / "file.bin.part"
    received = part.stat().st_size if part.exists() else 0
    assert (received > 0) == ("pause" in how or how.get("hold_after") == 40_000)
    serve(server)
    server.requests.clear()
    assert download(url, path)
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin")[-1] == (f"bytes={received}-" if received else None)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.org/a.zip", "only http and https"),
        ("file:///etc/hostname", "only http and https"),
        ("a.zip", "only http and https"),
        ("", "only http and https"),
        ("http://", "has no host"),
        ("http://[::1", "check the URL"),
        ("http://exa mple/", "check the URL"),
        ("http://127.0.0.1:9/", "cannot be downloaded"),
    ],
)
def test_invalid_and_unreachable_urls_are_reported(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        download(url, tmp_path / "file.bin")
    one_sentence(caught)
    assert listing(tmp_path) == []


def test_a_password_is_not_shown(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = serve(server, cuts=[50_000]).replace("http://", "http://me:secret@")
    monkeypatch.setattr(module, "_RETRIES", 0)
    with pytest.raises(FetchError) as caught:
        download(url, tmp_path / "file.bin")
    assert "secret" not in str(caught.value)
    assert "secret" not in (tmp_path / "file.bin.part.json").read_text()
    assert download(url, tmp_path / "file.bin")
    assert server.ranges("/file.bin") == [None, "bytes=50000-"]


# Redirects and proxies


def test_which_redirects_are_followed(server: FileServer, tmp_path: Path) -> None:
    serve(server)
    server.files["/1"] = File(b"", redirect="/file.bin")
    server.files["/2"] = File(b"", redirect=f"{server.url}/1")
    server.files["/circle"] = File(b"", redirect="/circle")
    server.files["/file"] = File(b"", redirect="file:///etc/hostname")
    server.files["/nowhere"] = File(b"", redirect="http://[::1")
    assert download(f"{server.url}/2", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    for path, words in (
        ("circle", "redirects more than 5 times"),
        ("file", "only http and https"),
        ("nowhere", "check the URL"),
    ):
        with pytest.raises(FetchError, match=words) as caught:
            download(f"{server.url}/{path}", tmp_path / path)
        one_sentence(caught)
    assert listing(tmp_path) == ["file.bin"]


def test_a_public_host_does_not_lead_into_the_private_network(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is asked as a proxy, so that it answers for a public host."""
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    private = serve(server)
    server.files["http://8.8.8.8/private"] = File(b"", redirect=private)
    server.files["http://8.8.8.8/named"] = File(b"", redirect=private.replace("127.0.0.1", "localhost"))
    server.files["http://8.8.8.8/public"] = File(b"", redirect="http://8.8.4.4/file.bin")
    server.files["http://8.8.4.4/file.bin"] = File(BODY)
    for path in ("private", "named"):
        with pytest.raises(FetchError, match="a private or reserved address, which is refused") as caught:
            download(f"http://8.8.8.8/{path}", tmp_path / path)
        one_sentence(caught)
    assert server.sent("/file.bin") == 0
    assert listing(tmp_path) == []
    assert download("http://8.8.8.8/public", tmp_path / "public")
    assert (tmp_path / "public").read_bytes() == BODY


def test_the_proxy_of_the_environment_is_used(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["http://files.example/file.bin"] = File(BODY, cuts=[50_000])
    monkeypatch.setenv("HTTP_PROXY", server.url)
    assert download("http://files.example/file.bin", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    for proxy in ("socks5://127.0.0.1:9", "nonsense://127.0.0.1", "http://127.0.0.1:9"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(FetchError, match=r"proxy or the certificates|cannot be downloaded") as caught:
            download("http://files.example/file.bin", tmp_path / "other.bin")
        one_sentence(caught)


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def resolve_here(host: str, *others: Any, **options: Any) -> Any:
        return resolve("127.0.0.1" if host == "one.example" else host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_here)
    with serve_files(tls=True) as server, serve_files() as plain:
        url = serve(server)
        server.files["/plain"] = File(b"", redirect=serve(plain))
        with pytest.raises(FetchError, match="CERTIFICATE_VERIFY_FAILED") as caught:
            download(url, tmp_path / "file.bin")
        one_sentence(caught)
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate()))
        assert download(url, tmp_path / "file.bin")
        assert (tmp_path / "file.bin").read_bytes() == BODY
        with pytest.raises(FetchError, match="which is not encrypted") as caught:
            download(f"{server.url}/plain", tmp_path / "plain.bin")
        one_sentence(caught)
        assert plain.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
        with pytest.raises(FetchError, match="proxy or the certificates") as caught:
            download(url, tmp_path / "other.bin")
        one_sentence(caught)


# The place


def test_a_file_in_the_way_is_reported_and_not_changed(server: FileServer, tmp_path: Path) -> None:
    url, path = serve(server), tmp_path / "file.bin"
    path.write_bytes(b"mine")
    for expected, words in (({"size": 5}, "has 4 bytes instead of 5"), ({"sha256": SHA256}, "another SHA-256")):
        with pytest.raises(PixMatcherError, match=words) as caught:
            download(url, path, **expected)  # type: ignore[arg-type]
        one_sentence(caught)
    assert path.read_bytes() == b"mine"
    (tmp_path / "folder").mkdir()
    with pytest.raises(PixMatcherError, match="is not a file"):
        download(url, tmp_path / "folder")
    with pytest.raises(PixMatcherError, match=r"cannot be read or written \(.*\): choose another folder") as caught:
        download(url, path / "below.bin")
    one_sentence(caught)
    (tmp_path / "linked.bin.part").symlink_to(path)
    with pytest.raises(PixMatcherError, match="cannot be read or written"):
        download(url, tmp_path / "linked.bin")
    assert path.read_bytes() == b"mine"
    assert server.requests == []


# Processes

SCRIPT = """
import sys
from pathlib import Path
from pixmatcher.net.download import download
from pixmatcher.errors import PixMatcherError
print("started", flush=True)
try:
    print(download(sys.argv[1], Path(sys.argv[2])))
except PixMatcherError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(url: str, path: Path, **options: object) -> subprocess.Popen[str]:
    """Download in a new process."""
    command = [sys.executable, "-c", SCRIPT, url, os.fspath(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **pipes, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_continues(server: FileServer, tmp_path: Path, how: signal.Signals) -> None:
    url, path = serve(server, hold_after=120_000), tmp_path / "file.bin"
    with start(url, path) as process:
        server.wait_for("/file.bin", 120_000)
        while not (part := tmp_path / "file.bin.part").exists() or part.stat().st_size < 120_000:
            assert process.poll() is None
        process.send_signal(how)
        process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert not path.exists()
    server.requests.clear()
    server.files["/file.bin"].hold_after = None
    assert download(url, path)
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == ["bytes=120000-"]
    assert server.sent("/file.bin") == len(BODY) - 120_000


def test_two_processes_download_one_file_once(server: FileServer, tmp_path: Path) -> None:
    url, path = serve(server, hold_after=120_000), tmp_path / "file.bin"
    with start(url, path) as first:
        server.wait_for("/file.bin", 120_000)
        with start(url, path) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "started\n"
            wait_for_lock(second)
            server.files["/file.bin"].held.set()
            answers = [first.communicate(timeout=60)[0].split()[-1], second.communicate(timeout=60)[0].strip()]
    assert answers == ["True", "False"]
    assert path.read_bytes() == BODY
    assert listing(tmp_path) == ["file.bin"]
    assert server.ranges("/file.bin") == [None]


@pytest.mark.skipif(sys.platform != "linux", reason="reads who has a lock from /proc")
def test_a_waiting_process_continues_the_download_of_a_killed_one(server: FileServer, tmp_path: Path) -> None:
    url, path = serve(server, hold_after=120_000), tmp_path / "file.bin"
    with start(url, path) as first, start(url, path) as second:
        server.wait_for("/file.bin", 120_000)
        while (tmp_path / "file.bin.part").stat().st_size < 120_000:
            pass
        assert len(server.requests) == 1
        # The process with the lock has made the request; the other one waits.
        holder = first if holds(first, tmp_path / "file.bin.part") else second
        waiting = second if holder is first else first
        holder.kill()
        server.files["/file.bin"].held.set()
        assert waiting.communicate(timeout=60)[0].split()[-1] == "True"
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == [None, "bytes=120000-"]


def holds(process: subprocess.Popen[str], path: Path) -> bool:
    """Return whether the process has a lock on the file."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inode = str(path.stat().st_ino)
    return any(lock[1] == "FLOCK" and int(lock[4]) == process.pid and lock[5].endswith(f":{inode}") for lock in locks)


def test_a_lock_is_on_the_file_that_has_the_name_now(tmp_path: Path) -> None:
    path, waits, done = tmp_path / "file", threading.Event(), threading.Event()

    def wait() -> None:
        with locked_file(path, waits.set) as file:
            file.write(b"second")
            done.set()

    with locked_file(path) as file:
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(120)
        file.write(b"first")
        path.rename(tmp_path / "elsewhere")
        assert not done.is_set()
    thread.join(30)
    assert done.is_set()
    assert path.read_bytes() == b"second"
    assert (tmp_path / "elsewhere").read_bytes() == b"first"


LIMIT = 100_000


@pytest.mark.parametrize("how", ["small disk", "limit"])
def test_a_full_disk_keeps_what_was_received(
    server: FileServer, tmp_path: Path, small_disk: Path | None, how: str
) -> None:
    # Where no small disk can be mounted, both cases run with the limit.
    disk = small_disk if how == "small disk" and small_disk else None
    url, path = serve(server), (disk or tmp_path) / "file.bin"
    filler = None
    if disk:
        filler = fill_up(disk)
        os.truncate(filler, filler.stat().st_size - LIMIT)

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    with start(url, path, preexec_fn=None if disk else limit_files) as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error.count("\n") == 1
    assert f"StorageError: The disk of {path.parent} is full" in error
    assert "make room and run the same command again; it continues where it stopped" in error
    received = path.with_name("file.bin.part").stat().st_size
    assert 50_000 < received <= LIMIT
    if filler:
        filler.unlink()
    server.requests.clear()
    assert download(url, path)
    assert path.read_bytes() == BODY
    assert server.ranges("/file.bin") == [f"bytes={received}-"]
