"""The cache of models: weights from a server on loopback, and folders that are created in one step."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from file_server import File, FileServer, serve_files
from pixmatcher import EncoderError, FetchError, PixMatcherError
from pixmatcher.encoders import _folders as folders
from pixmatcher.encoders._cache import cached_models, damaged_files, link_model, model_folder, weights_file
from pixmatcher.encoders._folders import making_folder
from pixmatcher.encoders.hub.download import fetch_weights, mirrored, sha256_from_url
from pixmatcher.encoders.onnx.card import Card, Network, StoredFile, read_card, store_files, write_card
from pixmatcher.errors import StorageError
from pixmatcher.images import Recipe
from pixmatcher.records import Space
from support import fill_up, wait_for_lock

BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
NAME = f"/models/tiny-{SHA256[:8]}.pth"

pytestmark = pytest.mark.usefixtures("quick_downloads")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIXMATCHER_OFFLINE", "PIXMATCHER_MIRROR", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve_files() as files:
        files.files[NAME] = File(BODY)
        yield files


def fetch(server: FileServer, **options: object) -> Path:
    return fetch_weights(f"{server.url}{NAME}", encoder="tiny", **options)  # type: ignore[arg-type]


def one_sentence(error: pytest.ExceptionInfo[PixMatcherError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def names_three_ways_out(error: pytest.ExceptionInfo[PixMatcherError], cache: Path) -> None:
    text = one_sentence(error)
    for way in (f"copy {cache} from a machine that has it", "--weights FILE", "the bundled encoder lite"):
        assert way in text


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# Weights


def test_weights_are_downloaded_once(server: FileServer, cache: Path) -> None:
    reports: list[tuple[str, int, int | None]] = []
    path = fetch(server, progress=lambda p: reports.append((p.stage, p.done, p.total)))
    assert path.read_bytes() == BODY
    assert path.is_relative_to(cache / "weights")
    assert reports[-1] == (NAME.rpartition("/")[2], len(BODY), len(BODY))
    assert fetch(server) == fetch(server, offline=True) == path
    assert len(server.requests) == 1
    assert listing(cache / "weights") == [path.name]


@pytest.mark.parametrize(
    ("url", "begins"),
    [
        ("https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth", "8738ca79"),
        (f"https://openaipublic.azureedge.net/clip/models/{'40d36571' * 8}/ViT-B-32.pt", "40d36571" * 8),
        ("https://example.org/a-8738ca7.pth", ""),
        ("https://example.org/weights.pth", ""),
        ("https://example.org/a-8738ca79/weights.pth", ""),
    ],
)
def test_the_hash_in_urls(url: str, begins: str) -> None:
    assert sha256_from_url(url) == begins


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256[:20]])
def test_wrong_bytes_are_refused_and_not_kept(server: FileServer, cache: Path, sha256: str | None) -> None:
    server.files[NAME] = File(BODY[:-1] + b"?", etag='"2"')
    with pytest.raises(FetchError, match="has a wrong hash and was deleted") as caught:
        fetch(server, sha256=sha256)
    one_sentence(caught)
    assert listing(cache / "weights") == []
    server.files[NAME] = File(BODY)
    assert fetch(server, sha256=sha256).read_bytes() == BODY


def test_a_url_without_a_hash_is_not_checked(server: FileServer) -> None:
    server.files["/weights.pth"] = File(BODY, etag=None, cuts=[50_000])
    path = fetch_weights(f"{server.url}/weights.pth", encoder="tiny")
    assert path.read_bytes() == BODY
    assert server.ranges("/weights.pth") == [None, None]  # nothing would find bytes that do not belong together


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_damaged_weights_of_the_cache_are_not_used(server: FileServer, cache: Path, how: str) -> None:
    path = fetch(server)
    damaged = BODY[:-5] if how == "cut" else b"?" + BODY[1:]
    path.write_bytes(damaged)
    with pytest.raises(EncoderError, match="was damaged and has been deleted") as caught:
        fetch(server, offline=True)
    names_three_ways_out(caught, cache)
    assert not path.exists()
    path.write_bytes(damaged)
    assert fetch(server).read_bytes() == BODY


def test_without_a_network_three_remedies_are_named(server: FileServer, cache: Path) -> None:
    with pytest.raises(EncoderError, match=r"weights of the encoder tiny cannot be downloaded .*--offline") as caught:
        fetch(server, offline=True)
    names_three_ways_out(caught, cache)
    with pytest.raises(FetchError, match="weights of the encoder tiny cannot be downloaded") as nothing:
        fetch_weights("http://127.0.0.1:9/a.pth", encoder="tiny")
    names_three_ways_out(nothing, cache)
    assert server.requests == []
    assert listing(cache / "weights") == []
    with pytest.raises(FetchError, match="404"):  # the network works, so other remedies would not help
        fetch_weights(f"{server.url}/missing.pth", encoder="tiny")


def test_a_cache_that_cannot_be_written_is_used(server: FileServer, cache: Path) -> None:
    path = fetch(server)
    os.chmod(path.parent, 0o555)
    try:
        assert fetch(server) == path
    finally:
        os.chmod(path.parent, 0o755)


def test_cut_connections_and_redirects(server: FileServer) -> None:
    with serve_files() as other:
        other.files["/there"] = File(BODY, cuts=[100_000, 50_000])
        server.files[NAME] = File(b"", redirect=f"{other.url}/there")
        assert fetch(server).read_bytes() == BODY
        assert other.ranges("/there") == [None, "bytes=100000-", "bytes=150000-"]


def test_the_mirror_of_the_environment(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://download.example{NAME}"
    monkeypatch.setenv("PIXMATCHER_MIRROR", f"{server.url}/files/")
    place = f"/files/download.example{NAME}"
    assert mirrored(url) == server.url + place
    server.files[place] = File(BODY)
    path = fetch_weights(url, encoder="tiny")
    assert [request.path for request in server.requests] == [place]
    assert path == weights_file(url)
    monkeypatch.delenv("PIXMATCHER_MIRROR")
    assert fetch_weights(url, encoder="tiny").read_bytes() == BODY  # from the cache: there is no such host


FETCH = """
import sys
from pixmatcher.encoders.hub.download import fetch_weights
print("started", flush=True)
print(fetch_weights(sys.argv[1], encoder="tiny"))
"""


def start(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def test_a_killed_download_continues(server: FileServer, cache: Path) -> None:
    server.files[NAME].hold_after = 120_000
    with start(FETCH, f"{server.url}{NAME}") as process:
        server.wait_for(NAME, 120_000)
        part = weights_file(f"{server.url}{NAME}")
        part = part.with_name(f"{part.name}.part")
        while not part.exists() or part.stat().st_size < 120_000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    server.requests.clear()
    server.files[NAME].hold_after = None
    assert fetch(server).read_bytes() == BODY
    assert server.ranges(NAME) == ["bytes=120000-"]
    assert len(listing(cache / "weights")) == 1


def test_two_processes_download_once(server: FileServer) -> None:
    server.files[NAME].hold_after = 120_000
    with start(FETCH, f"{server.url}{NAME}") as first:
        server.wait_for(NAME, 120_000)
        with start(FETCH, f"{server.url}{NAME}") as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "started\n"
            wait_for_lock(second)
            server.files[NAME].held.set()
            paths = [first.communicate(timeout=60)[0].split()[-1], second.communicate(timeout=60)[0].strip()]
    assert paths == [str(weights_file(f"{server.url}{NAME}"))] * 2
    assert len(server.requests) == 1


# Folders of models


def fill(folder: Path, content: bytes = b"network", name: str = "tiny") -> Card:
    """Write a card and a file in place of the network into a folder."""
    (folder / "visual.onnx").write_bytes(content)
    card = Card(
        name=name,
        fingerprint=hashlib.sha256(content).hexdigest()[:16],
        space=Space("visual", 4),
        recipe=Recipe(8),
        visual=Network("visual.onnx", "pixels", "embedding"),
        precision="int8" if name.endswith("@int8") else "fp32",
        licence="MIT",
        source="nowhere",
        files=store_files(folder, ["visual.onnx"]),
    )
    write_card(card, folder)
    return card


def make(target: Path, content: bytes = b"network", name: str = "tiny") -> Card:
    with making_folder(target) as folder:
        return fill(folder, content, name)


def test_a_folder_is_created_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "below" / "model"
    with making_folder(target) as folder:
        assert folder != target
        fill(folder)
        assert not target.exists()
    assert read_card(target).name == "tiny"
    assert listing(target.parent) == ["model"]


@pytest.mark.parametrize("exchanging", [True, False])
@pytest.mark.parametrize("before", ["empty", "folder", "link", "broken link"])
def test_an_old_folder_or_link_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool, before: str
) -> None:
    target, elsewhere = tmp_path / "models" / "model", tmp_path / "elsewhere"
    elsewhere.mkdir()
    target.parent.mkdir()
    fill(elsewhere, b"elsewhere")
    if before in ("empty", "folder"):
        target.mkdir()
        if before == "folder":
            fill(target, b"before")
            (target / "more").write_bytes(b"of the user")
    else:
        target.symlink_to(elsewhere if before == "link" else tmp_path / "nowhere")
    if not exchanging:  # as on a disk that cannot do it
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    make(target, b"after")
    assert (target / "visual.onnx").read_bytes() == b"after"
    assert not target.is_symlink()
    assert listing(target) == ["card.json", "visual.onnx"]
    assert listing(target.parent) == ["model"]
    assert (elsewhere / "visual.onnx").read_bytes() == b"elsewhere"


def test_folders_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    photos, file = tmp_path / "photos", tmp_path / "file"
    photos.mkdir()
    file.write_bytes(b"mine")
    for content in (None, "", "{}", '{"name": "cards"}', "[" * 100_000):
        (photos / "holiday.jpg").write_bytes(b"mine")
        if content is not None:
            (photos / "card.json").write_text(content)
        with pytest.raises(EncoderError, match="is not empty and was not made by pixmatcher") as caught:
            make(photos)
        one_sentence(caught)
    with pytest.raises(EncoderError, match="is not a folder") as caught:
        make(file)
    one_sentence(caught)
    with pytest.raises(EncoderError, match="choose another folder") as caught:
        make(Path("/"))
    one_sentence(caught)
    with pytest.raises(PixMatcherError, match="cannot be read or written") as other:
        make(file / "below")
    one_sentence(other)
    assert listing(tmp_path) == ["file", "photos"]
    assert listing(photos) == ["card.json", "holiday.jpg"]


def test_a_folder_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def make_late() -> None:
        with making_folder(target) as folder:
            fill(folder)
            target.mkdir()
            (target / "holiday.jpg").write_bytes(b"mine")

    with pytest.raises(EncoderError, match="is not empty"):
        make_late()
    assert listing(target) == ["holiday.jpg"]
    assert listing(tmp_path) == ["model"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, b"before")

    def fail() -> None:
        with making_folder(target) as folder:
            fill(folder, b"after")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (target / "visual.onnx").read_bytes() == b"before"
    assert listing(tmp_path) == ["model"]


def test_a_folder_that_was_damaged_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target)
    (target / "visual.onnx").unlink()
    make(target, b"after")
    assert damaged_files(read_card(target), target) == []


def test_a_full_disk(tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no file system can be mounted")
    target = small_disk / "model"
    make(target, b"before")
    fill_up(small_disk)
    with pytest.raises(StorageError, match="is full") as caught:
        make(target, b"after" * 100_000)
    one_sentence(caught)
    assert damaged_files(read_card(target), target) == []


REPLACE = """
import shutil, sys
from pathlib import Path
from pixmatcher.encoders import _folders as folders
target, sources, exchanging = Path(sys.argv[1]), sys.argv[2].split(":"), sys.argv[3]
if exchanging == "never":
    folders._exchange = lambda one, other: False
print("started", flush=True)
while True:
    for source in sources:
        with folders.making_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
"""


@pytest.mark.parametrize("exchanging", ["where it can", "never"])
def test_a_killed_process_leaves_the_old_or_the_new_folder(tmp_path: Path, exchanging: str) -> None:
    target, chance = tmp_path / "models" / "model", random.Random(3)
    for number, folder in enumerate((tmp_path / "a", tmp_path / "b", target)):
        make(folder, b"%d" % number * 1000)
    for _ in range(10):
        with start(REPLACE, target, f"{tmp_path}/a:{tmp_path}/b", exchanging) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(chance.random() / 50)
            process.kill()
        if exchanging == "never" and not target.exists():  # killed between the two steps: the next call mends it
            with folders.locked_folder(target):
                pass
        assert damaged_files(read_card(target), target) == []
    make(target, b"after")
    assert listing(target.parent) == ["model"]
    assert (target / "visual.onnx").read_bytes() == b"after"


SLOW = """
import shutil, sys
from pathlib import Path
from pixmatcher.encoders._folders import making_folder
print("started", flush=True)
with making_folder(Path(sys.argv[1])) as folder:
    assert not list(folder.iterdir())
    print("making", flush=True)
    shutil.copytree(sys.argv[2], folder, dirs_exist_ok=True)
    sys.stdin.readline()
"""


def test_two_processes_create_a_folder_one_after_the_other(tmp_path: Path) -> None:
    target = tmp_path / "models" / "model"
    for name in ("first", "second"):
        make(tmp_path / name, name.encode())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SLOW, str(target), str(tmp_path / name)]
        return subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload, no-any-return]

    with begin("first") as first:
        assert first.stdout is not None
        assert [first.stdout.readline(), first.stdout.readline()] == ["started\n", "making\n"]
        with begin("second") as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "started\n"
            wait_for_lock(second)
            assert not target.exists()
            first.communicate("\n", timeout=120)
            assert second.stdout.readline() == "making\n"
            assert (target / "visual.onnx").read_bytes() == b"first"
            second.communicate("\n", timeout=120)
    assert (first.returncode, second.returncode) == (0, 0)
    assert (target / "visual.onnx").read_bytes() == b"second"
    assert listing(target.parent) == ["model"]


# What is in the cache


def test_a_folder_elsewhere_gets_a_name(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make(first, b"1")
    make(second, b"2")
    place = model_folder("timm:resnet50/a")
    link_model("timm:resnet50/a", first)
    assert read_card(place) == read_card(first)
    link_model("timm:resnet50/a", second)
    link_model("timm:resnet50/a", second)
    assert read_card(place) == read_card(second)
    link_model("timm:resnet50/a", place)  # to itself
    assert read_card(place) == read_card(second)
    assert listing(place.parent) == [place.name]
    make(place, b"3")
    assert not place.is_symlink()
    link_model("timm:resnet50/a", first)
    assert place.is_symlink()
    assert [(first / "visual.onnx").read_bytes(), (second / "visual.onnx").read_bytes()] == [b"1", b"2"]
    assert listing(place.parent) == [place.name]
    with pytest.raises(EncoderError, match=r"card\.json cannot be read") as caught:
        link_model("other", tmp_path)
    one_sentence(caught)


def test_the_models_of_the_cache_are_listed(tmp_path: Path, cache: Path) -> None:
    assert cached_models() == []
    whole = make(model_folder("clip-vit-b-32"))
    make(model_folder("hf:a/b@int8"), b"int8 network", "hf:a/b@int8")
    make(model_folder("lacking"))
    (model_folder("lacking") / "visual.onnx").unlink()
    make(tmp_path / "elsewhere", b"elsewhere")
    link_model("linked", tmp_path / "elsewhere")
    make(tmp_path / "gone")
    link_model("gone", tmp_path / "gone")
    shutil.rmtree(tmp_path / "gone")
    make(model_folder("torn"))
    (model_folder("torn") / "card.json").write_text('{"format": 1, "recipe": []}')
    (cache / "models" / ".half.making").mkdir()
    (cache / "models" / "a file").write_bytes(b"")
    found = {model.name: model for model in cached_models()}
    assert list(found) == ["a file", "clip-vit-b-32", "gone", "hf:a/b@int8", "lacking", "linked", "torn"]
    assert found["clip-vit-b-32"].card == whole
    assert found["clip-vit-b-32"].folder == model_folder("clip-vit-b-32")
    assert found["clip-vit-b-32"].bytes == sum(p.stat().st_size for p in model_folder("clip-vit-b-32").iterdir())
    assert found["linked"].card is not None
    assert found["linked"].bytes > len(b"elsewhere")
    card = found["hf:a/b@int8"].card
    assert card is not None
    assert card.precision == "int8"
    assert "visual.onnx is missing" in found["lacking"].problem
    assert "is damaged" in found["torn"].problem
    assert all(model.card is None and model.problem for name in ("a file", "gone", "torn") for model in [found[name]])


def test_files_are_compared_with_the_card(tmp_path: Path) -> None:
    card = make(tmp_path / "model")
    assert damaged_files(card, tmp_path / "model") == []
    (tmp_path / "model" / "visual.onnx").write_bytes(b"netwark")
    assert read_card(tmp_path / "model") == card  # of the right length
    assert damaged_files(card, tmp_path / "model") == ["visual.onnx"]
    more = {**card.files, "textual.onnx": StoredFile(1, "0" * 64)}
    assert damaged_files(Card(**{**vars(card), "files": more}), tmp_path / "model") == ["visual.onnx", "textual.onnx"]


@pytest.mark.parametrize("place", ["files", "visual"])
def test_a_card_names_nothing_outside_its_folder(tmp_path: Path, place: str) -> None:
    make(tmp_path / "model")
    (tmp_path / "secret").write_bytes(b"1234567")
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    if place == "files":
        card["files"]["../secret"] = card["files"]["visual.onnx"]
    else:
        card["visual"]["file"] = "../secret"
    (tmp_path / "model" / "card.json").write_text(json.dumps(card))
    with pytest.raises(EncoderError, match="names files outside its folder") as caught:
        read_card(tmp_path / "model")
    one_sentence(caught)
    card["files"], card["visual"]["file"] = {}, 3
    (tmp_path / "model" / "card.json").write_text(json.dumps(card))
    with pytest.raises(EncoderError, match="is damaged"):
        read_card(tmp_path / "model")
