"""What is in a collection, over HTTP: descriptions, pages of items, embeddings, files and thumbnails."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from pixmatcher import Collection, Filter, index
from pixmatcher.collection import Failure, Item, delete_collection, describe_collection
from pixmatcher.images import Recipe, make_thumbnail
from pixmatcher.records import Space
from pixmatcher.searching import open_original
from pixmatcher.server import Limits, ServerSettings, create_app
from pixmatcher.server._answers import inline_disposition
from pixmatcher.server._thumbnail_cache import ThumbnailCache

LIMITS = Limits(results=20)
BASE = "/v1/collections/photos"


def picture(seed: int, size: tuple[int, int] = (400, 300), kind: str = "PNG") -> bytes:
    """Return the file of an image of 16 coloured fields."""
    fields = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(encoded, kind)
    return encoded.getvalue()


class Grid:
    """An encoder of the colours of a 4 x 4 grid."""

    name = "grid"
    fingerprint = "grid-1"
    batch_size = 4
    spaces = (Space("visual", 48), Space("semantic", 24, text=True))
    recipe = Recipe(16)

    def load_images(self) -> None:
        pass

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        visual = pixels.reshape(len(pixels), 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(len(pixels), 48) - 127.5
        visual = (visual / np.linalg.norm(visual, axis=1, keepdims=True)).astype(np.float32)
        return {"visual": visual, "semantic": visual[:, ::2].copy()}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        raise NotImplementedError


def index_photos(photos: Path, stored: Path) -> None:
    index(photos, collection=stored, encoders=[Grid()])


def make_photos(root: Path) -> Path:
    """Return a new folder with images and one broken file."""
    folder = root / "photos"
    for kind, label in enumerate(("cats", "dogs")):
        (folder / label).mkdir(parents=True)
        for number in range(6):
            path = folder / label / f"{number}.png"
            path.write_bytes(picture(number + 10 * kind, (100 * (number + 1), 300)))
            os.utime(path, (1_600_000_000 + 40_000_000 * number,) * 2)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    return folder


def make_collection(photos: Path) -> Path:
    """Return a new collection of the photos, and of a few items that are added by hand."""
    folder = photos.with_name("collection")
    index_photos(photos, folder)
    with Collection.open(folder) as opened:
        rng = np.random.default_rng(0)

        def add(*items: Item, thumbnails: dict[str, bytes] | None = None) -> None:
            embeddings = {name: rng.normal(size=(len(items), s.dimension)) for name, s in opened.spaces.items()}
            opened.add(items, embeddings, source="by hand", thumbnails=thumbnails)

        add(Item("https://example.org/a.jpg", "ab" * 32, label="n1"), Item("https://example.org/b.jpg", "cd" * 32))
        small = make_thumbnail(Image.open(io.BytesIO(picture(5))))
        add(Item("https://example.org/c.jpg", "ef" * 32, label="n1"), thumbnails={"ef" * 32: small})
        opened.set_label_names({"n1": "goldfish, Carassius auratus"})
    return folder


@contextmanager
def serving(stored: Path) -> Iterator[TestClient]:
    app = create_app(ServerSettings({"photos": str(stored)}, limits=LIMITS))
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos that no test changes."""
    return make_photos(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def stored(photos: Path) -> Path:
    """A collection that no test changes."""
    return make_collection(photos)


@pytest.fixture(scope="module")
def client(stored: Path) -> Iterator[TestClient]:
    with serving(stored) as opened:
        yield opened


@pytest.fixture
def own_photos(photos: Path, stored: Path, tmp_path: Path) -> Path:
    """A copy of the photos, with a collection of them beside it."""
    shutil.copytree(stored.parent, tmp_path / "own")
    return tmp_path / "own" / "photos"


@pytest.fixture
def own(own_photos: Path) -> Path:
    """A collection that the test may change."""
    return own_photos.with_name("collection")


@pytest.fixture
def own_client(own: Path) -> Iterator[TestClient]:
    with serving(own) as opened:
        yield opened


def get(client: TestClient, path: str, **options: Any) -> Any:
    answer = client.get(path, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def problem(client: TestClient, path: str, **options: Any) -> tuple[int, str]:
    answer = client.get(path, **options)
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert answer.json()["detail"].endswith(".")
    return answer.status_code, answer.json()["reason"]


def item_of(stored: Path, ending: str) -> Item:
    with Collection.open(stored) as opened:
        return next(item for item in opened.items() if item.uri.endswith(ending))


def image_path(item: Item) -> str:
    return f"{BASE}/items/{item.id}/image"


# Descriptions


def test_collections_are_listed_and_described(client: TestClient, stored: Path, photos: Path) -> None:
    (summary,) = get(client, "/v1/collections")["collections"]
    assert summary == {
        "name": "photos",
        "state": "ready",
        "count": 15,
        "encoders": ["grid"],
        "spaces": ["visual", "semantic"],
        "writable": True,
    }
    described = get(client, BASE)
    assert (described["name"], described["writable"]) == ("photos", True)
    assert described["count"] == 15
    assert described["failed"] == 1
    assert described["labels"] == 1
    assert described["formats"] == {"PNG": 12}
    assert str(photos) in [source["source"] for source in described["sources"]]
    assert described["spaces"][0] == {
        "name": "visual",
        "dimension": 48,
        "text": False,
        "index": "exact",
        "recall": None,
    }
    text = subprocess.run(
        [sys.executable, "-m", "pixmatcher", "info", "--json", "-c", str(stored)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    ).stdout
    printed = json.loads(text)
    for encoder in printed["encoders"]:
        del encoder["runs_on"]  # the device of this process says nothing of the service
    assert printed == {name: value for name, value in described.items() if name not in ("name", "writable")}


def test_a_store_without_a_folder_is_described_as_far_as_it_can_be(stored: Path) -> None:
    with Collection.open(stored) as opened:

        class Other:
            path = Path("memory:other")
            encoders = opened.encoders
            spaces = opened.spaces

            def __len__(self) -> int:
                return 7

        described = describe_collection(Other()).as_json()  # type: ignore[arg-type]
    assert (described["count"], described["failed"], described["labels"]) == (7, None, None)
    assert [space["name"] for space in described["spaces"]] == ["visual", "semantic"]
    assert described["sources"] == []


def test_labels_and_failures(client: TestClient) -> None:
    labels = get(client, f"{BASE}/labels")["labels"]
    assert labels == [{"label": "n1", "name": "goldfish, Carassius auratus", "count": 2}]
    (failure,) = get(client, f"{BASE}/failures")["failures"]
    assert failure["uri"].endswith("broken.png")
    assert failure["reason"]


def test_labels_and_failures_come_in_pages(own_client: TestClient, own: Path) -> None:
    with Collection.open(own) as opened:
        items = [replace(item, label=f"n{item.id}") for item in opened.items()]
        spaces = {name: opened.embeddings([item.id for item in items], name) for name in opened.spaces}
        opened.add(items, spaces)
        comparison = opened.compare_sources(opened.sources()[:1])
        failures = [Failure(f"/none/{number:02}.png", "damaged", "") for number in range(7)]
        comparison.record_failures(opened.sources()[0], failures)
        expected = {
            "labels": [*opened.label_counts()],
            "failures": [failure.uri for failure in opened.failures()],
        }
    assert len(expected["failures"]) > 7
    for name, key in (("labels", "label"), ("failures", "uri")):
        found, cursor = [], None
        while True:
            page = get(own_client, f"{BASE}/{name}", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))
            assert 0 < len(page[name]) <= 3
            found += [entry[key] for entry in page[name]]
            cursor = page["next"]
            if cursor is None:
                break
        assert found == expected[name]
        assert problem(own_client, f"{BASE}/{name}", params={"limit": 10_000}) == (422, "limit too high")
        assert problem(own_client, f"{BASE}/{name}", params={"cursor": "x"}) == (422, "request not valid")


# Pages


@pytest.mark.parametrize("limit", [1, 4, 15, 20])
def test_pages_hold_every_item_once(client: TestClient, stored: Path, limit: int) -> None:
    listed, cursor = [], None
    while True:
        asked = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        page = get(client, f"{BASE}/items", params=asked)
        assert len(page["items"]) <= limit
        listed += page["items"]
        cursor = page["next"]
        if cursor is None:
            break
    with Collection.open(stored) as opened:
        assert [item["id"] for item in listed] == [item.id for item in opened.items()]


def test_items_that_are_added_and_removed_between_pages_disturb_none(own_client: TestClient, own: Path) -> None:
    first = get(own_client, f"{BASE}/items", params={"limit": 5})
    ids = [item["id"] for item in first["items"]]
    with Collection.open(own) as opened:
        opened.remove([ids[-1], ids[-1] + 1])
    second = get(own_client, f"{BASE}/items", params={"limit": 20, "cursor": first["next"]})
    assert [item["id"] for item in second["items"]] == [*range(ids[-1] + 2, 16)]


FILTERS: list[tuple[dict[str, Any], Callable[[Path], Filter]]] = [
    ({"label": "n1"}, lambda _: Filter(labels=("n1",))),
    ({"label": ["goldfish", "nothing"]}, lambda _: Filter(labels=("goldfish", "nothing"))),
    ({"label": "nothing"}, lambda _: Filter(labels=("nothing",))),
    ({"folder": "PHOTOS/cats"}, lambda photos: Filter(folder=str(photos / "cats"))),
    ({"folder": "https://example.org"}, lambda _: Filter(folder="https://example.org")),
    ({"after": "2022"}, lambda _: Filter(after="2022")),
    ({"before": "2023-05"}, lambda _: Filter(before="2023-05")),
    ({"after": "2021-06-01", "before": "2024"}, lambda _: Filter(after="2021-06-01", before="2024")),
    ({"min_width": 301}, lambda _: Filter(min_width=301)),
    ({"min_height": 301}, lambda _: Filter(min_height=301)),
    (
        {"min_width": 200, "folder": "PHOTOS/dogs", "before": "2025"},
        lambda photos: Filter(min_width=200, folder=str(photos / "dogs"), before="2025"),
    ),
]


@pytest.mark.parametrize(("asked", "filter_of"), FILTERS, ids=[str(asked) for asked, _ in FILTERS])
def test_filters_list_what_a_search_finds(
    client: TestClient, stored: Path, photos: Path, asked: dict[str, Any], filter_of: Callable[[Path], Filter]
) -> None:
    asked = {name: v.replace("PHOTOS", str(photos)) if isinstance(v, str) else v for name, v in asked.items()}
    listed = [item["id"] for item in get(client, f"{BASE}/items", params=asked)["items"]]
    with Collection.open(stored) as opened:
        hits = opened.search(np.ones(48), space="visual", k=100, filter=filter_of(photos))
    assert listed == sorted(hit.item.id for hit in hits)
    assert bool(listed) == (asked not in ({"label": "nothing"}, {"min_height": 301}))


def test_items_of_a_source(client: TestClient, photos: Path) -> None:
    items = get(client, f"{BASE}/items", params={"source": str(photos)})["items"]
    assert len(items) == 12
    assert all(item["uri"].startswith(str(photos)) for item in items)
    assert problem(client, f"{BASE}/items", params={"source": "/nowhere"}) == (404, "no such source")
    sources = [source["source"] for source in get(client, BASE)["sources"]]
    (other,) = [source for source in sources if source != str(photos)]
    assert len(get(client, f"{BASE}/items", params={"source": other})["items"]) == 3


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"limit": 21}, "limit too high"),
        ({"limit": 0}, "request not valid"),
        ({"limit": "many"}, "request not valid"),
        ({"cursor": "x"}, "request not valid"),
        ({"cursor": "-1"}, "request not valid"),
        ({"cursor": "9" * 20}, "request not valid"),
        ({"cursor": "٣"}, "request not valid"),
        ({"after": "yesterday"}, "filter not valid"),
        ({"before": "2024-13"}, "filter not valid"),
        ({"min_width": -1}, "request not valid"),
        ({"min_width": 2**63}, "request not valid"),
        ({"folder": ""}, "request not valid"),
    ],
)
def test_a_page_that_cannot_be_asked_for(client: TestClient, asked: dict[str, Any], reason: str) -> None:
    assert problem(client, f"{BASE}/items", params=asked) == (422, reason)


def test_an_item_has_all_its_fields(client: TestClient, stored: Path) -> None:
    with Collection.open(stored) as opened:
        items = [*opened.items()]
    for item in items:
        answer = get(client, f"{BASE}/items/{item.id}")
        links, name = answer.pop("links"), answer.pop("label_name")
        assert Item(**answer) == item
        assert links["image"] == image_path(item)
        assert name == ("goldfish, Carassius auratus" if item.label == "n1" else None)
    assert problem(client, f"{BASE}/items/99") == (404, "no such item")
    assert problem(client, f"{BASE}/items/{2**63}") == (422, "request not valid")
    assert client.get(f"{BASE}/items/0x1").json()["reason"] == "not found"
    assert client.get(f"{BASE}/items/embeddings").json()["reason"] == "method not allowed"
    assert problem(client, "/v1/collections/other/items/1") == (404, "no such collection")


# Embeddings


def test_embeddings_are_those_of_the_collection(client: TestClient, stored: Path) -> None:
    asked = {"ids": [3, 1, 3], "space": "semantic"}
    answer = client.post(f"{BASE}/items/embeddings", json=asked).json()
    rows = np.frombuffer(base64.b64decode(answer["data"]), "<f4").reshape(-1, answer["dimension"])
    with Collection.open(stored) as opened:
        assert np.array_equal(rows, opened.embeddings([3, 1, 3], "semantic"))


@pytest.mark.parametrize(
    ("asked", "status", "reason"),
    [
        ({"ids": [1], "space": "other"}, 422, "no such space"),
        ({"ids": [1, 99], "space": "visual"}, 422, "not possible in this collection"),
        ({"ids": [1] * 21, "space": "visual"}, 422, "too many ids"),
        ({"ids": [1.5], "space": "visual"}, 422, "request not valid"),
        ({"ids": [True], "space": "visual"}, 422, "request not valid"),
        ({"space": "visual"}, 422, "request not valid"),
    ],
)
def test_embeddings_that_cannot_be_asked_for(
    client: TestClient, asked: dict[str, Any], status: int, reason: str
) -> None:
    answer = client.post(f"{BASE}/items/embeddings", json=asked)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


# Original files


def test_an_image_is_its_original_file(client: TestClient, stored: Path) -> None:
    item = item_of(stored, "cats/3.png")
    data = Path(item.uri).read_bytes()
    answer = client.get(image_path(item))
    assert answer.content == data
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{sha256(data).hexdigest()}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"].startswith("private")
    head = client.head(image_path(item))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(data))
    assert head.headers["etag"] == answer.headers["etag"]


def test_an_image_that_the_client_has_is_not_sent_again(client: TestClient, stored: Path) -> None:
    item = item_of(stored, "cats/3.png")
    tag = f'"{item.content_hash}"'
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = client.get(image_path(item), headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(image_path(item), headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-", 10, None),
        ("bytes=-7", -7, None),
        ("bytes=-100000000", 0, None),
        ("bytes=5-100000000", 5, None),
        ("BYTES = 5 - 9", 5, 10),
    ],
)
def test_a_range_of_an_image(client: TestClient, stored: Path, asked: str, start: int, end: int | None) -> None:
    item = item_of(stored, "cats/3.png")
    data = Path(item.uri).read_bytes()
    answer = client.get(image_path(item), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, data[start:end])
    first = data.index(answer.content) if start == 0 else start % len(data)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(data)}"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "asked",
    ["bytes=1-2,5-6", "bytes=9-5", "bytes=-", "bytes=a-b", "items=0-1", "bytes=1-2-3", "bytes=" + "9" * 5000, ""],
)
def test_other_ranges_get_the_whole_file(client: TestClient, stored: Path, asked: str) -> None:
    item = item_of(stored, "cats/3.png")
    answer = client.get(image_path(item), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, Path(item.uri).read_bytes())


def test_a_range_behind_the_end(client: TestClient, stored: Path) -> None:
    item = item_of(stored, "cats/3.png")
    size = Path(item.uri).stat().st_size
    for asked in (f"bytes={size}-", "bytes=99999999-", "bytes=-0"):
        answer = client.get(image_path(item), headers={"Range": asked})
        assert (answer.status_code, answer.json()["reason"]) == (416, "range not satisfiable")
        assert answer.headers["content-range"] == f"bytes */{size}"


def test_a_range_of_another_version_gets_the_whole_file(client: TestClient, stored: Path) -> None:
    item = item_of(stored, "cats/3.png")
    for tag, status in ((f'"{item.content_hash}"', 206), ('"other"', 200), (f'W/"{item.content_hash}"', 200)):
        answer = client.get(image_path(item), headers={"Range": "bytes=0-3", "If-Range": tag})
        assert answer.status_code == status


def test_a_changed_file_has_another_tag(own_client: TestClient, own: Path) -> None:
    item = item_of(own, "cats/3.png")
    for data in (picture(77), picture(78, kind="JPEG"), picture(79, (4000, 3000), "BMP")):
        Path(item.uri).write_bytes(data)
        answer = own_client.get(image_path(item), headers={"If-None-Match": f'"{item.content_hash}"'})
        assert (answer.status_code, answer.content) == (200, data)
        assert own_client.get(image_path(item), headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        assert own_client.get(image_path(item), headers={"Range": "bytes=2-5"}).content == data[2:6]
    assert answer.headers["content-type"] == "image/bmp"


def test_a_large_file_is_opened_without_reading_it(own: Path, own_photos: Path) -> None:
    data = picture(80, (4000, 3000), "BMP")
    (own_photos / "large.bmp").write_bytes(data)
    index_photos(own_photos, own)
    item = item_of(own, "large.bmp")
    opened = open_original(item)
    assert opened is not None
    with opened.file:
        assert os.lseek(opened.file.fileno(), 0, os.SEEK_CUR) == 0
        assert (opened.size, opened.tag, opened.format) == (len(data), item.content_hash, "BMP")
        assert opened.file.read() == data


def replace_by_text(path: Path) -> None:
    path.write_text("<html>a secret</html>")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def replace_by_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def replace_by_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        replace_by_text,
        replace_by_fifo,
        replace_by_link,
        replace_by_loop,
        replace_by_device,
        replace_by_folder,
    ],
)
def test_only_images_are_served(own_client: TestClient, own: Path, change: Callable[[Path], None]) -> None:
    item = item_of(own, "dogs/2.png")
    change(Path(item.uri))
    assert problem(own_client, image_path(item)) == (404, "image not available")
    assert problem(own_client, f"{BASE}/items/{item.id}/thumbnail") == (404, "image not available")


def test_a_remote_image_is_not_fetched(client: TestClient, stored: Path) -> None:
    with_thumbnail, without = item_of(stored, "c.jpg"), item_of(stored, "a.jpg")
    assert problem(client, image_path(with_thumbnail)) == (404, "image is remote")
    detail = client.get(image_path(with_thumbnail)).json()["detail"]
    path = detail.split()[-1].removesuffix(".")
    answer = client.get(path)
    assert answer.status_code == 200
    assert Image.open(io.BytesIO(answer.content)).format == "JPEG"
    assert problem(client, f"{BASE}/items/{without.id}/thumbnail") == (404, "image not available")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_images_in_archives(own_client: TestClient, own: Path, tmp_path: Path, kind: str) -> None:
    archive, data = tmp_path / f"photos.{kind}", picture(90)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a/b.png", data)
            file.writestr("a/c.txt", "a secret")
    else:
        with tarfile.open(archive, "w") as tar:
            for name, content in (("a/b.png", data), ("a/c.txt", b"a secret")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    with Collection.open(own) as opened:
        items = [Item(f"{archive}/a/b.png", sha256(data).hexdigest()), Item(f"{archive}/a/c.txt", "00" * 32)]
        rng = np.random.default_rng(1)
        ids = opened.add(items, {name: rng.normal(size=(2, s.dimension)) for name, s in opened.spaces.items()})
    answer = own_client.get(f"{BASE}/items/{ids[0]}/image", headers={"Range": "bytes=1-3"})
    assert (answer.status_code, answer.content) == (206, b"PNG")
    assert answer.headers["etag"] == f'"{sha256(data).hexdigest()}"'
    assert own_client.get(f"{BASE}/items/{ids[0]}/thumbnail").status_code == 200
    assert problem(own_client, f"{BASE}/items/{ids[1]}/image") == (404, "image not available")


@pytest.mark.parametrize("name", ['a"b\r\nX: y.png', "größe.png", "a\\..\\x;y.png", os.fsdecode(b"\xff.png")])
def test_names_of_files_do_no_harm(own_client: TestClient, own: Path, own_photos: Path, name: str) -> None:
    (own_photos / name).write_bytes(picture(91))
    index_photos(own_photos, own)
    (item,) = [
        i for i in get(own_client, f"{BASE}/items")["items"] if i["content_hash"] == sha256(picture(91)).hexdigest()
    ]
    answer = own_client.get(item["links"]["image"])
    assert answer.content == picture(91)
    assert "x" not in answer.headers
    shown = answer.headers["content-disposition"]
    assert shown == inline_disposition(name)
    assert shown.count('"') == 2
    assert shown.isascii()
    assert shown.isprintable()


@pytest.mark.parametrize(
    "path",
    [
        "items/../../../etc/passwd",
        "items/%2e%2e/image",
        "items/1/image/..%2f..%2fetc",
        "items//etc/passwd",
        "items/1%00/image",
    ],
)
def test_no_path_leads_to_a_file(client: TestClient, path: str) -> None:
    assert client.get(f"{BASE}/{path}").status_code in (404, 422)


# Thumbnails


def test_thumbnails(own_client: TestClient, own: Path) -> None:
    item = item_of(own, "cats/5.png")
    path = f"{BASE}/items/{item.id}/thumbnail"
    for side, size in ((None, (256, 128)), (64, (64, 32)), (500, (500, 250)), (1024, (600, 300))):
        answer = own_client.get(path, params={"size": side} if side else {})
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == size
        tag = answer.headers["etag"]
        assert own_client.get(path, params={"size": side or 256}, headers={"If-None-Match": tag}).status_code == 304
    assert own_client.head(path).headers["content-length"] == str(len(own_client.get(path).content))
    for side in ("63", "1025", "x", "-1"):
        assert problem(own_client, path, params={"size": side}) == (422, "request not valid")
    Path(item.uri).unlink()
    assert own_client.get(path).status_code == 200, "it is kept in memory"


def test_the_memory_of_thumbnails_is_bounded() -> None:
    cache = ThumbnailCache(room=100_000)
    for number in range(100):
        cache.put(number, bytes([number]) * 9_000)
        assert cache.get(0) is not None or number > 0, "what was just put is there"
        cache.get(0)
    kept = [number for number in range(100) if cache.get(number)]
    assert kept[0] == 0, "what is asked for often stays"
    assert kept[1:] == [*range(100 - len(kept) + 1, 100)]
    assert 5 <= len(kept) <= 100_000 // 9_000
    cache.put("too large", bytes(200_000))
    assert cache.get("too large") is None
    first, second = cache.put("a", b"1"), cache.put("a", b"2")
    assert first[1] != second[1]
    assert cache.get("a") == second


# A collection that disappears


ROUTES = ["", "/labels", "/failures", "/items", "/items/1", "/items/1/image", "/items/1/thumbnail"]


def test_a_collection_that_disappears_and_comes_back(own_client: TestClient, own: Path) -> None:
    assert get(own_client, "/v1/collections")["collections"][0]["state"] == "ready"
    away = own.with_name("away")
    own.rename(away)
    for route in ROUTES:
        assert problem(own_client, BASE + route) == (503, "collection not available")
        answer = own_client.get(BASE + route)
        assert str(own.parent) not in answer.text
        assert int(answer.headers["retry-after"]) > 0
    asked = {"ids": [1], "space": "visual"}
    assert own_client.post(f"{BASE}/items/embeddings", json=asked).status_code == 503
    assert get(own_client, "/v1/collections")["collections"][0]["state"] == "not available"
    away.rename(own)
    for route in ROUTES:
        assert own_client.get(BASE + route).status_code == 200
    assert own_client.post(f"{BASE}/items/embeddings", json=asked).status_code == 200


def test_a_damaged_collection_is_not_available(own_client: TestClient, own: Path) -> None:
    assert own_client.get(BASE).status_code == 200
    catalog = own / "catalog.sqlite"
    other = own / "other"
    other.write_bytes(b"no database" * 1000)
    for log in own.glob("catalog.sqlite-*"):
        log.unlink()
    other.replace(catalog)
    for route in ROUTES:
        assert problem(own_client, BASE + route) == (503, "collection not available")


def test_a_collection_that_is_replaced_answers_as_the_new_one(
    own_client: TestClient, own: Path, own_photos: Path
) -> None:
    assert get(own_client, BASE)["count"] == 15
    delete_collection(own)
    shutil.rmtree(own_photos / "cats")
    index_photos(own_photos, own)
    assert get(own_client, BASE)["count"] == 6
    assert all("dogs" in item["uri"] for item in get(own_client, f"{BASE}/items")["items"])


def test_items_as_json_are_valid_unicode() -> None:
    item = Item(os.fsdecode(b"/photos/\xff.jpg"), details={"author": "\udcff"})
    values = item.as_json()
    json.dumps(values, ensure_ascii=False).encode()
    assert values["uri"] == "file:///photos/%FF.jpg"
    assert replace(item, uri="/a b", details={}).as_json()["uri"] == "/a b"
