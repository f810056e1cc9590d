"""Downloads of data sets from a server on loopback: complete, interrupted, killed, hostile, and by the command line."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from file_server import File, FileServer, serve_files
from pixmatcher import FetchError, PixMatcherError, SourceError, datasets
from pixmatcher.datasets import _tiny_imagenet, get_open_images, get_tiny_imagenet
from pixmatcher.net import unzip
from support import cli, fill_up, wait_for_lock

ROOT = "tiny-imagenet-200/"


pytestmark = pytest.mark.usefixtures("quick_downloads")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as files:
        yield files


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_sentence(error: pytest.ExceptionInfo[PixMatcherError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


# Tiny ImageNet


def image(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (seed * 40 % 256, seed * 90 % 256, 50)).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(change: Callable[[zipfile.ZipFile], None] = lambda archive: None, root: str = ROOT) -> bytes:
    """Return a zip file in the layout of Tiny ImageNet with four train images, changed by `change`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if root:
            archive.writestr(root, b"")
        archive.writestr(f"{root}wnids.txt", "n01443537\nn02124075\n")
        archive.writestr(f"{root}words.txt", "n01443537\tgoldfish\nn02124075\tEgyptian cat\n")
        for number, wnid in enumerate(["n01443537", "n01443537", "n02124075", "n02124075"]):
            archive.writestr(f"{root}train/{wnid}/images/{wnid}_{number}.JPEG", image(number))
        change(archive)
    return buffer.getvalue()


def serve(server: FileServer, body: bytes, name: str = "/tiny.zip", **how: object) -> str:
    server.files[name] = File(body, **how)  # type: ignore[arg-type]
    return server.url + name


def test_tiny_imagenet_is_downloaded_unpacked_and_not_downloaded_again(server: FileServer, tmp_path: Path) -> None:
    body, seen = zipped(), []
    url, folder = serve(server, body, cuts=[700]), tmp_path / "new" / "folder"
    path = get_tiny_imagenet(folder, url=url, progress=seen.append)
    assert path == folder / "tiny-imagenet-200"
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        assert {str(p.relative_to(folder)) for p in path.rglob("*") if p.is_file()} == files | {
            f"{ROOT}.pixmatcher.json"
        }
        assert all((folder / name).read_bytes() == archive.read(name) for name in files)
    assert sorted(os.listdir(folder)) == ["tiny-imagenet-200"]
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["Downloading", "Checking", "Unpacking"]
    assert all(progress.done <= (progress.total or progress.done) for progress in seen)
    server.requests.clear()
    assert get_tiny_imagenet(folder, url=url) == path
    assert server.requests == []


def test_the_zip_file_alone(server: FileServer, tmp_path: Path) -> None:
    body = zipped()
    url = serve(server, body, "/mirror/tiny-part.zip?token=1")
    path = get_tiny_imagenet(tmp_path, url=url, unpack=False)
    assert path == tmp_path / "tiny-part.zip"
    assert path.read_bytes() == body
    assert listing(tmp_path) == ["tiny-part.zip"]
    assert get_tiny_imagenet(tmp_path, url=url, unpack=False) == path
    assert len(server.requests) == 1
    # It is unpacked without another download, and stays, because it was there before.
    assert get_tiny_imagenet(tmp_path, url=url) == tmp_path / "tiny-imagenet-200"
    assert len(server.requests) == 1
    assert path.exists()


@pytest.mark.parametrize("name", ["/", "/..zip", "/.zip", "/get.php", "/%2e%2e%2fa.zip", "/" + "a" * 200 + ".zip"])
def test_the_zip_file_has_a_plain_name(server: FileServer, tmp_path: Path, name: str) -> None:
    assert get_tiny_imagenet(tmp_path, url=serve(server, zipped(), name), unpack=False).parent == tmp_path
    assert listing(tmp_path) == ["tiny-imagenet-200.zip"]


@pytest.mark.parametrize("root", ["", "a/b/tiny-imagenet-200/"])
def test_the_data_set_can_be_anywhere_in_the_zip_file(server: FileServer, tmp_path: Path, root: str) -> None:
    body = zipped(lambda archive: archive.writestr("__MACOSX/._x", "x") if root else None, root)
    path = get_tiny_imagenet(tmp_path, url=serve(server, body))
    assert (path / "wnids.txt").is_file()
    assert sorted(os.listdir(path)) == [".pixmatcher.json", "train", "wnids.txt", "words.txt"]


def test_the_original_zip_file_must_have_the_known_length(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    server.files[_tiny_imagenet.TINY_IMAGENET_URL] = File(zipped())
    with pytest.raises(FetchError, match="instead of 248,100,043") as caught:
        get_tiny_imagenet(tmp_path)
    one_sentence(caught)
    assert listing(tmp_path) == []


def test_files_of_another_url_are_not_touched(server: FileServer, tmp_path: Path) -> None:
    path = get_tiny_imagenet(tmp_path, url=serve(server, zipped()))
    before = listing(path)
    with pytest.raises(PixMatcherError, match="exists already, but is not from") as caught:
        get_tiny_imagenet(tmp_path, url=serve(server, zipped(), "/other.zip"))
    one_sentence(caught)
    (path / ".pixmatcher.json").unlink()
    with pytest.raises(PixMatcherError, match="exists already, but is not from"):
        get_tiny_imagenet(tmp_path, url=f"{server.url}/tiny.zip")
    assert listing(path) == [name for name in before if name != ".pixmatcher.json"]
    assert len(server.requests) == 1


# Hostile zip files


def entry(name: str, content: bytes = b"x", mode: int = 0, **fields: int) -> Callable[[zipfile.ZipFile], None]:
    """Return a function that adds an entry of any name to a zip file."""

    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo("a")
        info.filename = name
        info.external_attr = mode << 16
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
        for field, value in fields.items():
            setattr(info, field, value)

    return add


def both(*changes: Callable[[zipfile.ZipFile], None]) -> Callable[[zipfile.ZipFile], None]:
    def add(archive: zipfile.ZipFile) -> None:
        for change in changes:
            change(archive)

    return add


HOSTILE = [
    (entry("../outside.txt"), "outside the folder"),
    (entry(f"{ROOT}../../outside.txt"), "outside the folder"),
    (entry(f"{ROOT}train/.."), "outside the folder"),
    (entry("/outside.txt"), "outside the folder"),
    (entry("//server/outside.txt"), "outside the folder"),
    (entry(f"{ROOT}./a"), "outside the folder"),
    (entry(f"{ROOT}a//b"), "outside the folder"),
    (entry("..\\outside.txt"), "not a plain path"),
    (entry("C:\\outside.txt"), "not a plain path"),
    (entry("C:outside.txt"), "not a plain path"),
    (entry(f"{ROOT}a:stream"), "not a plain path"),
    (entry(f"{ROOT}a\x1b[2Jb"), "not a plain path"),
    (entry(f"{ROOT}a\nb"), "not a plain path"),
    (entry(f"{ROOT}a\u202eb"), "not a plain path"),
    (entry(f"{ROOT}outside.txt\0.JPEG"), "not a plain path"),
    (entry(f"{ROOT}NUL"), "name of a device"),
    (entry(f"{ROOT}com1.txt"), "name of a device"),
    (entry(f"{ROOT}Aux/x.JPEG"), "name of a device"),
    (entry(f"{ROOT}{'a' * 256}"), "too long"),
    (entry(f"{ROOT}{'a/' * 600}a"), "too long"),
    (entry(f"{ROOT}link", b"/etc/hostname", stat.S_IFLNK | 0o777), "link or not a plain file"),
    (entry(f"{ROOT}pipe", b"", stat.S_IFIFO | 0o666), "link or not a plain file"),
    (entry(f"{ROOT}disk", b"", stat.S_IFBLK | 0o666), "link or not a plain file"),
    (both(entry(f"{ROOT}a"), entry(f"{ROOT}A")), "twice"),
    (both(entry(f"{ROOT}a"), entry(f"{ROOT}a/b")), "a file and a folder"),
    (both(entry(f"{ROOT}a/b/c"), entry(f"{ROOT}a")), "a file and a folder"),
    (both(entry(f"{ROOT}a/"), entry(f"{ROOT}a")), "a file and a folder"),
    (entry(f"{ROOT}a", flag_bits=1), "encrypted"),
    (entry(f"{ROOT}a", compress_type=zipfile.ZIP_LZMA), "compressed in a way"),
    (entry(f"{ROOT}a", compress_type=99), "compressed in a way"),
    (entry(f"{ROOT}a", CRC=1), "is damaged"),
    (entry(f"{ROOT}a", b"long" * 100, file_size=3), "is damaged"),
    (entry(f"{ROOT}a", file_size=5 << 30), "more than 4,294,967,296"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("change", "words"), HOSTILE)
@pytest.mark.parametrize("unpack", [True, False])
def test_hostile_zip_files_are_refused_and_deleted(
    server: FileServer, tmp_path: Path, change: Callable[[zipfile.ZipFile], None], words: str, unpack: bool
) -> None:
    folder = tmp_path / "below" / "folder"
    with pytest.raises(FetchError, match=words) as caught:
        get_tiny_imagenet(folder, url=serve(server, zipped(change)), unpack=unpack)
    one_sentence(caught)
    assert listing(tmp_path) == ["below", "below/folder"]


def test_zip_bombs_are_refused(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped(entry(f"{ROOT}zeros", bytes(3_000_000)))
    assert len(bomb) < 20_000
    for limit, value, words in (
        ("MAX_BYTES", 2_000_000, "more than 2,000,000"),
        ("MAX_ENTRIES", 5, "entries, more than 5"),
        ("_MAX_LISTING", 200, "list of entries is too long"),
    ):
        url = serve(server, bomb)
        with monkeypatch.context() as patch:
            patch.setattr(unzip, limit, value)
            with pytest.raises(FetchError, match=words):
                get_tiny_imagenet(tmp_path, url=url)
        assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (zipped()[:-30], "not a complete zip file"),
        (zipped()[:700], "not a complete zip file"),
        (zipped()[300:], "cannot be used"),
        (b"no zip file", "not a complete zip file"),
        (b"", "not a complete zip file"),
        (b"<html>Gone</html>", "web page"),
        (zipped(root="other/").replace(b"wnids.txt", b"names.txt"), "not Tiny ImageNet"),
    ],
)
def test_incomplete_zip_files_are_refused_and_deleted(
    server: FileServer, tmp_path: Path, body: bytes, words: str
) -> None:
    with pytest.raises(FetchError, match=words) as caught:
        get_tiny_imagenet(tmp_path, url=serve(server, body))
    one_sentence(caught)
    assert listing(tmp_path) == []


def test_an_existing_damaged_zip_file_is_reported(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, zipped())
    (tmp_path / "tiny.zip").write_bytes(zipped(entry(f"{ROOT}a", CRC=1)))
    with pytest.raises(FetchError, match=r"tiny\.zip cannot be unpacked .* delete it and run the same command again"):
        get_tiny_imagenet(tmp_path, url=url)
    assert listing(tmp_path) == ["tiny.zip"]


def many(archive: zipfile.ZipFile) -> None:
    for number in range(4000):
        archive.writestr(f"{ROOT}train/n01443537/images/{number}.JPEG", b"x")


def start(*arguments: str | os.PathLike[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pixmatcher", "datasets", "get", *map(os.fspath, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_while_unpacking_leaves_nothing_or_everything(server: FileServer, tmp_path: Path) -> None:
    body = zipped(many)
    url, beside = serve(server, body), tmp_path / ".tiny-imagenet-200.unpacking"
    with start("tiny-imagenet", "--url", url, "--to", tmp_path) as process:
        images = beside / "train" / "n01443537" / "images"
        while process.poll() is None and not (images.is_dir() and len(os.listdir(images)) > 10):
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert beside.is_dir()
    assert not (tmp_path / "tiny-imagenet-200").exists()
    server.requests.clear()
    path = get_tiny_imagenet(tmp_path, url=url)
    assert len(os.listdir(path / "train" / "n01443537" / "images")) == 4002
    assert not beside.exists()
    assert server.requests == []  # the zip file was complete


def test_a_full_disk_while_unpacking(server: FileServer, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no small disk can be mounted")
    body = zipped(entry(f"{ROOT}noise", random.Random(3).randbytes(1_200_000)))
    url = serve(server, body)
    done = cli("datasets", "get", "tiny-imagenet", "--url", url, "--to", small_disk)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"The disk of {small_disk} is full" in done.stderr
    assert listing(small_disk) == ["tiny.zip"]
    fill_up(small_disk).unlink()  # the disk is still full, and the message is the same
    again = cli("datasets", "get", "tiny-imagenet", "--url", url, "--to", small_disk)
    assert again.stderr == done.stderr


# Open Images

IMAGE_HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation\n"
)
TITLES = ["A plain title", '"A title, with a comma"', '"Two\nlines"', '"He said ""hello"""', "", "Caf\u00e9 \U0001f408"]
IMAGE_ROWS = [
    f"{n:016x},validation,https://photos.example/{n}_o.jpg,https://photos.example/{n},"
    f"https://creativecommons.org/licenses/by/2.0/,https://photos.example/people/{n % 7},Author {n % 7},"
    f"{TITLES[n % len(TITLES)]},{1000 + n},0jBpbNION09+r02xkTIBcA==,https://photos.example/{n}_z.jpg,{90.0 * (n % 4)}\n"
    for n in random.Random(4).sample(range(1000), 400)
]
LABEL_HEADER = "ImageID,Source,LabelName,Confidence\n"
LABEL_ROWS = [
    f"{n:016x},verification,/m/0{label},{label % 2}\n" for n in range(1000) for label in range(10, 10 + n % 5)
]
CLASSES = "LabelName,DisplayName\r\n" + "".join(f"/m/0{label},Label {label}\r\n" for label in range(10, 16))
IMAGES, LABELS, NAMES = (
    "/2018_04/validation/validation-images-with-rotation.csv",
    "/v7/oidv7-val-annotations-human-imagelabels.csv",
    "/v7/oidv7-class-descriptions.csv",
)


@pytest.fixture
def lists(server: FileServer) -> FileServer:
    server.files[IMAGES] = File((IMAGE_HEADER + "".join(IMAGE_ROWS)).encode(), etag='"i"')
    server.files[LABELS] = File((LABEL_HEADER + "".join(LABEL_ROWS)).encode(), etag='"l"')
    server.files[NAMES] = File(CLASSES.encode(), etag='"c"')
    return server


def file_in(folder: Path, name: str) -> Path:
    return folder / name.rpartition("/")[2]


def holds_the_first(folder: Path, count: int) -> bool:
    """Return whether the folder has only the lists of the first images."""
    ids = {row.partition(",")[0] for row in IMAGE_ROWS[:count]}
    labels = [row for row in LABEL_ROWS if row.partition(",")[0] in ids]
    return (
        file_in(folder, IMAGES).read_bytes().decode() == IMAGE_HEADER + "".join(IMAGE_ROWS[:count])
        and file_in(folder, LABELS).read_bytes().decode() == LABEL_HEADER + "".join(labels)
        and file_in(folder, NAMES).read_bytes().decode() == CLASSES
        and len([name for name in os.listdir(folder) if not name.startswith(".")]) == 3
    )


def test_the_lists_are_downloaded_unchanged(lists: FileServer, tmp_path: Path) -> None:
    lists.files[LABELS].cuts = [5000]
    assert get_open_images(tmp_path / "oi", base_url=f"{lists.url}/") == tmp_path / "oi"
    for name in (IMAGES, LABELS, NAMES):
        assert file_in(tmp_path / "oi", name).read_bytes() == lists.files[name].body
        assert lists.sent(name) == len(lists.files[name].body)
    lists.requests.clear()
    get_open_images(tmp_path / "oi", base_url=lists.url)
    assert lists.requests == []


@pytest.mark.parametrize("count", [1, 3, 50, len(IMAGE_ROWS)])
def test_the_first_images_and_their_labels(lists: FileServer, tmp_path: Path, count: int) -> None:
    get_open_images(tmp_path, "validation", count, base_url=lists.url)
    assert holds_the_first(tmp_path, count)
    lists.requests.clear()
    get_open_images(tmp_path, "validation", count, base_url=lists.url)
    assert lists.requests == []


def test_a_limit_beyond_the_list_keeps_the_complete_list(lists: FileServer, tmp_path: Path) -> None:
    get_open_images(tmp_path, "validation", 100_000, base_url=lists.url)
    assert holds_the_first(tmp_path, len(IMAGE_ROWS))


def test_reading_stops_after_the_last_requested_image(lists: FileServer, tmp_path: Path) -> None:
    wanted = len((IMAGE_HEADER + "".join(IMAGE_ROWS[:5])).encode())
    lists.files[IMAGES].hold_after = wanted  # a reader that continues would wait forever
    get_open_images(tmp_path, "validation", 5, base_url=lists.url)
    assert holds_the_first(tmp_path, 5)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_an_interrupted_list_is_continued(lists: FileServer, tmp_path: Path, name: str) -> None:
    lists.files[name].cuts = [10_001, 5003]
    get_open_images(tmp_path, "validation", 200, base_url=lists.url)
    assert holds_the_first(tmp_path, 200)
    assert lists.ranges(name)[1:] == ["bytes=10001-", "bytes=15004-"]


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_list_that_changes_during_the_download_is_read_again(lists: FileServer, tmp_path: Path, name: str) -> None:
    lists.files[name].cuts = [10_001]
    lists.files[name].etags = ['"1"', '"2"']
    get_open_images(tmp_path, "validation", 200, base_url=lists.url)
    assert holds_the_first(tmp_path, 200)
    lists.files[name].cuts = [10_001] * 20
    lists.files[name].etags = [f'"{number}"' for number in range(20)]
    with pytest.raises(FetchError, match="changed while it was read: run the same command again") as caught:
        get_open_images(tmp_path / "other", "validation", 200, base_url=lists.url)
    one_sentence(caught)
    assert not file_in(tmp_path / "other", name).exists()


def test_marks_line_ends_and_broken_quotes(lists: FileServer, tmp_path: Path) -> None:
    rows = ["1,validation,u,t\r\n", '2,validation,"u\r\n', '3,validation,u",t\r\n', "\r\n", ",x\r\n", "4\r\n", "5,x,y"]
    lists.files[IMAGES].body = b"\xef\xbb\xbf" + ("ImageID,Subset,OriginalURL,Title\r\n" + "".join(rows)).encode()
    get_open_images(tmp_path, "validation", 3, base_url=lists.url)
    assert file_in(tmp_path, IMAGES).read_bytes() == (
        b"\xef\xbb\xbf" + ("ImageID,Subset,OriginalURL,Title\r\n" + "".join(rows[:3]) + "4\r\n").encode()
    )
    # An open quote loses its row and the rows after it, up to the longest field.
    broken = b"ImageID,Title\n1,a\n" + b'2,"never closed\n' + b"x,y\n" * 50_000 + b"3,b\n"
    lists.files[IMAGES] = File(broken)
    get_open_images(tmp_path / "broken", "validation", 3, base_url=lists.url)
    assert file_in(tmp_path / "broken", IMAGES).read_bytes() == b"ImageID,Title\n1,a\nx,y\n3,b\n"


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("body", [b"<html>Gone</html>", b'{"error": 404}', b"", b"x" * 3_000_000, b"a,b\n1,2\n"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_other_content_than_a_list_is_refused(
    lists: FileServer, tmp_path: Path, limit: int | None, body: bytes, name: str
) -> None:
    lists.files[name] = File(body)
    with pytest.raises(FetchError, match=r"did not return a list of Open Images|web page") as caught:
        get_open_images(tmp_path, "validation", limit, base_url=lists.url)
    one_sentence(caught)
    assert not file_in(tmp_path, name).exists()
    assert not [found for found in listing(tmp_path) if found.endswith((".part", ".new", ".lock"))]


def test_an_empty_list_is_refused(lists: FileServer, tmp_path: Path) -> None:
    lists.files[IMAGES] = File(IMAGE_HEADER.encode())
    with pytest.raises(FetchError, match="did not return a list"):
        get_open_images(tmp_path, "validation", 3, base_url=lists.url)


def test_another_limit_replaces_the_first_and_complete_lists_stay(lists: FileServer, tmp_path: Path) -> None:
    for limit in (5, 20, 3):
        get_open_images(tmp_path, "validation", limit, base_url=lists.url)
        assert holds_the_first(tmp_path, limit)
    get_open_images(tmp_path, "validation", base_url=lists.url)
    assert holds_the_first(tmp_path, len(IMAGE_ROWS)) is False  # all labels are there, of other images too
    assert file_in(tmp_path, LABELS).read_bytes() == lists.files[LABELS].body
    before = listing(tmp_path)
    with pytest.raises(PixMatcherError, match="already has other lists of the split validation") as caught:
        get_open_images(tmp_path, "validation", 5, base_url=lists.url)
    one_sentence(caught)
    assert listing(tmp_path) == before
    assert file_in(tmp_path, IMAGES).read_bytes() == lists.files[IMAGES].body


def test_lists_of_the_user_are_used_unchanged(lists: FileServer, tmp_path: Path) -> None:
    file_in(tmp_path, IMAGES).write_text("ImageID,mine\n")
    with pytest.raises(PixMatcherError, match="has other lists"):
        get_open_images(tmp_path, "validation", 5, base_url=lists.url)
    get_open_images(tmp_path, "validation", base_url=lists.url)
    assert file_in(tmp_path, IMAGES).read_text() == "ImageID,mine\n"
    assert lists.sent(IMAGES) == 0


def test_splits_share_a_folder(lists: FileServer, tmp_path: Path) -> None:
    lists.files["/2018_04/test/test-images-with-rotation.csv"] = lists.files[IMAGES]
    lists.files["/v7/oidv7-test-annotations-human-imagelabels.csv"] = lists.files[LABELS]
    lists.files["/2018_04/train/train-images-boxable-with-rotation.csv"] = lists.files[IMAGES]
    lists.files["/v7/oidv7-train-annotations-human-imagelabels.csv"] = lists.files[LABELS]
    for split in ("validation", "test", "train"):
        get_open_images(tmp_path, split, 2, base_url=lists.url)
    assert len(list(tmp_path.glob("*.csv"))) == 7
    assert len(lists.ranges(NAMES)) == 1
    with pytest.raises(SourceError, match="no split val: choose one of train, validation, test"):
        get_open_images(tmp_path, "val", base_url=lists.url)


def test_killed_while_the_labels_are_read(lists: FileServer, tmp_path: Path) -> None:
    lists.files[LABELS].hold_after = 20_000
    with start("open-images", "--url", lists.url, "--limit", "30", "--to", tmp_path) as process:
        lists.wait_for(LABELS, 20_000)
        process.kill()
    assert not file_in(tmp_path, LABELS).exists()
    lists.files[LABELS].hold_after = None
    get_open_images(tmp_path, "validation", 30, base_url=lists.url)
    assert holds_the_first(tmp_path, 30)


# The command line


def test_the_list_of_data_sets() -> None:
    done = cli("datasets", "list")
    assert (done.returncode, done.stderr) == (0, "")
    for dataset in datasets.DATASETS:
        assert dataset.name in done.stdout
        assert dataset.terms in " ".join(done.stdout.split())
    for command in re.findall(r"pixmatcher datasets get .*", done.stdout):
        name, *options = shlex.split(command)[3:]
        assert name in {dataset.name for dataset in datasets.DATASETS}
        wrong = cli("datasets", "get", name, *options, "--url", "ftp://nowhere", "--to", "/dev/null/x")
        assert "cannot be read or written" in wrong.stderr


@pytest.mark.parametrize("unpack", [True, False])
def test_the_suggested_next_commands_work(server: FileServer, tmp_path: Path, unpack: bool) -> None:
    url = serve(server, zipped())
    arguments = ("--to", "my data", *(() if unpack else ("--no-unpack",)))
    done = cli("datasets", "get", "tiny-imagenet", "--url", url, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (command,) = re.findall(r"^  .*pixmatcher (index .*)$", done.stdout, re.MULTILINE)
    indexed = cli(*shlex.split(command), cwd=tmp_path)
    assert (indexed.returncode, indexed.stderr) == (0, "")
    assert "4 images" in indexed.stdout
    server.requests.clear()
    again = cli("datasets", "get", "tiny-imagenet", "--url", url, *arguments, cwd=tmp_path)
    assert (again.returncode, again.stdout, server.requests) == (0, done.stdout, [])


def test_open_images_from_the_command_line(lists: FileServer, tmp_path: Path) -> None:
    done = cli("datasets", "get", "open-images", "--url", lists.url, "--limit", "7", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pixmatcher index open-images:open-images -c open-images/.pixmatcher\n" in done.stdout
    assert holds_the_first(tmp_path / "open-images", 7)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing"], 2, "Unknown data set 'nothing': choose one of tiny-imagenet, open-images"),
        (["tiny-imagenet", "--split", "val"], 2, "tiny-imagenet has no option --split"),
        (["tiny-imagenet", "--limit", "5"], 2, "tiny-imagenet has no option --limit"),
        (["open-images", "--no-unpack"], 2, "open-images has no option --no-unpack"),
        (["open-images", "--split", "val"], 2, "no split val"),
        (["open-images", "--limit", "0"], 2, "--limit"),
        (["tiny-imagenet", "--url", "ftp://example.org/a.zip"], 1, "only http and https"),
        (["tiny-imagenet", "--url", "http://127.0.0.1:9/a.zip"], 1, "cannot be downloaded"),
        (["tiny-imagenet", "--to", "/dev/null/below"], 2, "cannot be read or written"),
        ([], 2, "NAME"),
    ],
)
def test_a_wrong_call_is_reported_in_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = cli("datasets", "get", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert words in done.stderr
    assert not list(tmp_path.rglob("*.*"))


def test_ctrl_c_keeps_what_was_received(server: FileServer, tmp_path: Path) -> None:
    body = zipped(entry(f"{ROOT}noise", random.Random(3).randbytes(300_000)))
    url = serve(server, body, hold_after=100_000)
    with start("tiny-imagenet", "--url", url, "--to", tmp_path) as process:
        part = tmp_path / "tiny.zip.part"
        while not part.exists() or part.stat().st_size < 100_000:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        output, error = process.communicate(timeout=120)
    assert (process.returncode, output, error.count("\n")) == (130, "", 1)
    assert "run the same command again to continue" in error
    server.files["/tiny.zip"].hold_after = None
    server.requests.clear()
    assert get_tiny_imagenet(tmp_path, url=url).is_dir()
    assert server.ranges("/tiny.zip") == ["bytes=100000-"]


def test_two_processes_get_one_data_set_once(server: FileServer, tmp_path: Path) -> None:
    body = zipped(entry(f"{ROOT}noise", random.Random(3).randbytes(300_000)))
    url = serve(server, body, hold_after=100_000)
    with start("tiny-imagenet", "--url", url, "--to", tmp_path) as first:
        server.wait_for("/tiny.zip", 100_000)
        with start("tiny-imagenet", "--url", url, "--to", tmp_path) as second:
            wait_for_lock(second)
            server.files["/tiny.zip"].held.set()
            assert first.communicate(timeout=60) == second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert server.ranges("/tiny.zip") == [None]
    assert sorted(os.listdir(tmp_path)) == ["tiny-imagenet-200"]


def test_a_terminal_sees_the_progress_in_bytes(server: FileServer, tmp_path: Path) -> None:
    url = serve(server, zipped())
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pixmatcher", "datasets", "get", "tiny-imagenet", "--url", url],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=terminal,
            timeout=60,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
        )
        shown = os.read(main, 1 << 16).decode(errors="replace")  # may end within a character
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 0
    assert "Unpacking" in shown
    assert "kB" in shown
    assert b"Type next" in done.stdout
