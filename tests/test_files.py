"""Writing and hashing files, errors of the disk, and what is a URL."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from pixmatcher._files import explain_disk_errors, replacing, replacing_both, sha256_of, temporary_path
from pixmatcher._urls import file_url, is_file_url, is_url, path_of_file_url, without_password
from pixmatcher.errors import PixMatcherError, QueryError, StorageError


@pytest.mark.parametrize("length", [0, 5, (1 << 20) + 1])
def test_the_hash_of_a_file_and_of_the_rest_of_an_open_file(tmp_path: Path, length: int) -> None:
    data, path = bytes(length), tmp_path / "file"
    path.write_bytes(b"head" + data)
    assert sha256_of(path) == hashlib.sha256(b"head" + data).hexdigest()
    with path.open("rb") as file:
        file.seek(4)
        assert sha256_of(file) == hashlib.sha256(data).hexdigest()


def test_a_file_is_replaced_only_if_the_block_succeeds(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing_both(path, other) as (file, _):
            file.write(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_bytes() == b"old"
    assert not other.exists()
    assert not temporary_path(path).exists()
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_disk_errors_become_one_sentence(tmp_path: Path) -> None:
    def raise_(error: OSError) -> None:
        with explain_disk_errors(tmp_path):
            raise error

    with pytest.raises(StorageError, match=r"The disk of .+ is full \(No space left\): make room"):
        raise_(OSError(errno.ENOSPC, "No space left"))
    with pytest.raises(PixMatcherError, match=f"{tmp_path} cannot be read or written"):
        raise_(OSError(errno.EIO, "Input/output error"))
    with pytest.raises(PixMatcherError, match=r"^/a/b cannot be read or written \(Permission denied\): choose"):
        raise_(PermissionError(errno.EACCES, "Permission denied", "/a/b"))


@pytest.mark.parametrize("text", ["https://example.org/a.jpg", "FTP://example.org", "git+ssh://h", "a1.b-c://"])
def test_texts_that_are_urls(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize("text", ["", "a cat://", "photos/a.jpg", "://", "1a://b", "C:\\photos", "mailto:a@b.example"])
def test_texts_that_are_not_urls(text: str) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://ann:secret@h.example:8/a@b", "https://h.example:8/a@b"),
        ("https://h.example/a", "https://h.example/a"),
        ("https://ann@h.example", "https://h.example"),
    ],
)
def test_a_url_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "path", [b"/a b/100%25?#[x].jpg", b"/\xff/\xc3\xa9.jpg", b"/\n", "/\u732b+;,~.jpg".encode(), b"/"]
)
def test_the_url_of_a_file_names_the_same_file(path: bytes) -> None:
    url = file_url(os.fsdecode(path))
    assert url.startswith("file:///")
    assert url.isascii()
    assert url.isprintable()
    assert is_file_url(url)
    assert os.fsencode(path_of_file_url(url)) == path


def test_the_url_of_a_relative_path_is_below_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of_file_url(file_url("a.jpg")) == str(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "url", ["file:///a%20b.jpg", "file:/a%20b.jpg", "FILE://localhost/a b.jpg", "file://127.0.0.1/a%20b.jpg"]
)
def test_urls_of_files_in_other_forms(url: str) -> None:
    assert is_file_url(url)
    assert path_of_file_url(url) == "/a b.jpg"


@pytest.mark.parametrize("url", ["file://server/share/a.jpg", "file://", "file:///a%00.jpg"])
def test_urls_that_name_no_file_of_this_machine(url: str) -> None:
    with pytest.raises(QueryError):
        path_of_file_url(url)
