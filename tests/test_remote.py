"""Remote images: listed, fetched from a server, indexed, and searched without the server."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, IndexReport, Query, evaluate, index, search, upgrade
from pixmatcher.images import fit_image
from pixmatcher.indexing import _compare
from pixmatcher.net import fetch_many as fetching
from pixmatcher.sources import open_source
from servers import Server, serve_watched
from support import TinyEncoder, cli, paint


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of twenty painted images, /0.jpg to /19.jpg."""
    image = paint(tmp_path / "first.jpg", 0, size=(320, 240)).read_bytes()
    with serve_watched(image) as server:
        for seed in range(20):
            server.files[f"/{seed}.jpg"] = paint(tmp_path / "painted.jpg", seed, size=(320, 240)).read_bytes()
        yield server


@pytest.fixture
def path(tmp_path: Path, tiny: TinyEncoder) -> Path:
    return tmp_path / "collection"


@pytest.fixture
def refresh(path: Path) -> Callable[..., IndexReport]:
    """Index a list of URLs, or another source, into the collection."""

    def run(listed: Path | str, **options: object) -> IndexReport:
        spec = listed if isinstance(listed, str) else f"urls:{listed}"
        return index(spec, path, encoders=["tiny"], **{"allow_private": True, **options})  # type: ignore[arg-type]

    return run


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_an_indexed_list_can_be_searched_without_a_network(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport], tiny: TinyEncoder
) -> None:
    rows = [{"url": f"{server.url}/{n}.jpg", "caption": f"number {n}", "label": f"l{n % 2}"} for n in range(20)]
    listed = write_csv(tmp_path / "list.csv", rows)
    report = refresh(listed)
    assert (report.added, report.failures) == (20, [])
    assert tiny.encoded == 20
    # Nothing is fetched again, but new captions and labels of the list are stored.
    rows[3]["caption"] = "another"
    write_csv(listed, [*rows[:19]])
    report = refresh(listed)
    assert (report.unchanged, report.changed, report.removed) == (18, 1, 1)
    assert max(server.requests.values()) == 1

    server.files.clear()
    with Collection.open(path) as collection:
        query = tmp_path / "query.png"
        paint(query, 3, size=(320, 240))
        (hit,) = search(collection, Query(image=query), k=1).hits
        assert (hit.item.uri, hit.item.caption, hit.item.label) == (f"{server.url}/3.jpg", "another", "l1")
        jpeg = collection.thumbnail(hit.item.content_hash)
        assert jpeg is not None
        with Image.open(io.BytesIO(jpeg)) as thumbnail, Image.open(query) as painted:
            difference = np.asarray(thumbnail).astype(int) - np.asarray(painted.resize(thumbnail.size)).astype(int)
            assert np.abs(difference).mean() < 8


def test_an_upgrade_waits_for_images_that_are_offline(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport]
) -> None:
    other = type("Other", (TinyEncoder,), {"name": "other", "fingerprint": "other-1"})()
    refresh(write_csv(tmp_path / "list.csv", [{"url": f"{server.url}/{n}.jpg"} for n in range(20)]))
    with Collection.open(path) as collection:
        before = {item.uri: (item.id, collection.thumbnail(item.content_hash)) for item in collection.items()}
    away = {name: server.files.pop(name) for name in ("/3.jpg", "/4.jpg")}
    report = upgrade(path, encoders=[other], allow_private=True)
    assert (report.finished, report.encoded) == (False, 18)
    assert {failure.uri: failure.reason for failure in report.missing} == {
        f"{server.url}{name}": "HTTP 404" for name in away
    }
    server.files |= away
    report = upgrade(path, encoders=[other], allow_private=True)
    assert (report.finished, report.encoded, report.continued) == (True, 2, 18)
    assert server.requests["/7.jpg"] == 2  # to index it, and to upgrade it
    with Collection.open(path) as collection:
        after = {item.uri: (item.id, collection.thumbnail(item.content_hash)) for item in collection.items()}
        assert collection.verify() == []
    assert after == before


@pytest.mark.slow
def test_each_bad_url_is_reported_and_none_ends_the_run(
    server: Server, tmp_path: Path, refresh: Callable[..., IndexReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "fetch_all", functools.partial(fetching.fetch_all, seconds=5))
    reasons = {
        "/nothing.jpg": "HTTP 404",
        "/forever": "too many redirects",
        "/page.html": "not an image",
        "/trickle": "took too long",
        "/endless": "too large",
        "/text.jpg": "not an image",
    }
    server.files["/text.jpg"] = b"no image at all"
    good = [f"{server.url}/{n}.jpg" for n in range(10)]
    bad = {f"{server.url}{path}": reason for path, reason in reasons.items()}
    bad["http://127.0.0.1:9/closed.jpg"] = "host does not answer"
    bad["http://nowhere.invalid/a.jpg"] = "host not known"
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join([*bad, *good, "file:///etc/hostname", "no url"]))
    report = refresh(listed)
    assert report.added == 10
    found = {failure.uri: failure.reason for failure in report.failures}
    assert found == bad | {f"{listed}:{len(bad) + 11}": "not a URL", f"{listed}:{len(bad) + 12}": "not a URL"}
    # What was dead may live again: it is tried in every run.
    server.files["/nothing.jpg"] = server.files["/15.jpg"]
    report = refresh(listed)
    assert (report.added, report.unchanged) == (1, 10)
    assert f"{server.url}/nothing.jpg" not in {failure.uri for failure in report.failures}


def test_private_addresses_are_refused_unless_allowed(
    server: Server, tmp_path: Path, refresh: Callable[..., IndexReport]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{server.url}/0.jpg\n{server.url}/1.jpg")
    report = refresh(listed, allow_private=False)
    assert (report.added, [failure.reason for failure in report.failures]) == (0, ["private address"] * 2)
    assert not server.requests
    assert refresh(listed).added == 2


def test_the_item_of_an_image_deleted_from_its_server_stays(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport]
) -> None:
    listed = tmp_path / "images.csv"
    row = {"ImageID": "a", "OriginalURL": f"{server.url}/0.jpg", "Rotation": "0.0"}
    refresh(f"open-images:{write_csv(listed, [row])}")
    # Another rotation: it has to be fetched again, but cannot be.
    server.files.clear()
    report = refresh(f"open-images:{write_csv(listed, [row | {'Rotation': '90.0'}])}")
    assert (report.removed, [failure.reason for failure in report.failures]) == (0, ["HTTP 404"])
    with Collection.open(path) as collection:
        assert len(collection) == 1


def test_items_stay_if_a_list_is_cut_short(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport]
) -> None:
    listed = tmp_path / "list.txt.gz"
    text = "\n".join(f"{server.url}/{n}.jpg" for n in range(20)).encode()
    listed.write_bytes(gzip.compress(text))
    refresh(listed)
    other = paint(tmp_path / "photos" / "other.png", 50)
    refresh(str(other.parent))
    for content, reason in ((gzip.compress(text)[:-20], "damaged"), (b"", "source cannot be read")):
        listed.write_bytes(content)
        report = index([f"urls:{listed}", other.parent], path, allow_private=True)
        assert (report.removed, report.total) == (0, 21)
        assert {failure.reason for failure in report.failures} == {reason}
    listed.write_bytes(gzip.compress(text[: text.index(b"5.jpg") + 5]))
    assert refresh(listed).removed == 14


def test_only_some_of_many_bad_rows_are_reported(
    tmp_path: Path, refresh: Callable[..., IndexReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_compare, "_MOST_UNUSABLE", 10)
    listed = tmp_path / "list.txt"
    listed.write_text("no url\n" * 1000)
    failures = refresh(listed).failures
    assert len(failures) == 11
    assert [f.detail for f in failures if f.reason == "more of these"] == ["990 entries that are not named"]


def test_open_images_are_rotated_and_keep_their_authors(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport], tiny: TinyEncoder
) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    plain = {"Subset": "validation", "License": "CC BY 2.0", "Author": "Anna", "Title": "A picture"}
    rows = [
        {"ImageID": "a", "OriginalURL": f"{server.url}/0.jpg", "Thumbnail300KURL": "", "Rotation": "90.0"} | plain,
        {"ImageID": "b", "OriginalURL": f"{server.url}/gone.jpg", "Thumbnail300KURL": f"{server.url}/1.jpg"}
        | {"Rotation": "nan"}
        | plain,
        {"ImageID": "c", "OriginalURL": f"{server.url}/2.jpg", "Thumbnail300KURL": f"{server.url}/gone.jpg"}
        | {"Rotation": "180.0"}
        | plain,
    ]
    write_csv(folder / "validation-images-with-rotation.csv", rows)
    labels = [{"ImageID": i, "Source": "verification", "LabelName": "/m/01", "Confidence": "1"} for i in "abc"]
    write_csv(folder / "labels.csv", labels)
    (folder / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/01,Cat\n")
    report = refresh(f"open-images:{folder}")
    assert (report.added, report.failures) == (3, [])
    assert "/gone.jpg" not in server.requests  # the thumbnail is tried first, except for images that must be rotated
    with Collection.open(path) as collection:
        items = {item.details["id"]: item for item in collection.items()}
        assert collection.label_names() == {"/m/01": "Cat"}
        for key, (seed, rotation) in {"a": (0, 90), "b": (1, 0), "c": (2, 180)}.items():
            item = items[key]
            assert item.uri == rows["abc".index(key)]["OriginalURL"]
            assert (item.label, item.details["author"], item.details["license"]) == ("/m/01", "Anna", "CC BY 2.0")
            image = Image.open(io.BytesIO(server.files[f"/{seed}.jpg"])).convert("RGB").rotate(rotation, expand=True)
            assert (item.width, item.height) == image.size
            vector = tiny.encode_images(fit_image(image, tiny.recipe)[None])["visual"]
            np.testing.assert_allclose(collection.embeddings([item.id], "visual"), vector, atol=0.02)


def test_a_remote_source_can_be_evaluated(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport]
) -> None:
    rows = [{"url": f"{server.url}/{n}.jpg", "label": str(n // 4)} for n in range(20)]
    refresh(write_csv(tmp_path / "list.csv", rows))
    queries = open_source(f"urls:{write_csv(tmp_path / 'queries.csv', [*rows[::4], {**rows[0], 'url': 'x'}])}")
    with Collection.open(path) as collection:
        found = evaluate(collection, queries, k=3, allow_private=True)
        refused = evaluate(collection, queries, k=3)
    assert found.images is not None
    assert found.images.queries == 5
    assert [failure.reason for failure in found.failures] == ["not a URL"]
    assert sorted(failure.reason for failure in refused.failures) == ["not a URL", *["private address"] * 5]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
from pixmatcher import encoders, index

encoders.register_encoder("tiny", TinyEncoder)
index(f"urls:{sys.argv[2]}", sys.argv[3], encoders=["tiny"], allow_private=True)
"""


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_fetched(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"{server.url}/{n}.jpg?{m}" for m in range(30) for n in range(20)))
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(listed), str(path)]
    with subprocess.Popen(command) as process:
        deadline = time.monotonic() + 120
        while not (path / "thumbnails.sqlite").exists() or sum(server.requests.values()) < 200:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    with Collection.open(path) as collection:
        assert collection.verify() == []
        stored = {item.uri for item in collection.items()}
    server.requests.clear()
    report = refresh(listed)
    assert (report.total, report.failures) == (600, [])
    assert report.unchanged == len(stored)
    asked = {f"{server.url}{asked}" for asked in server.requests}
    assert len(asked) == 600 - len(stored)
    assert not asked & stored
    with Collection.open(path) as collection:
        assert len({item.uri for item in collection.items()}) == 600
        assert all(collection.thumbnail(item.content_hash) for item in collection.items())


def test_the_command_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"url": f"{server.url}/{name}.jpg", "author": "Anna"}) + "\n" for name in (0, 1, "gone"))
    )
    refused = cli("index", "urls:list.jsonl", "-c", "c", cwd=tmp_path)
    assert refused.returncode == 1
    assert "3 x private address" in refused.stdout
    assert "--allow-private-hosts" in refused.stdout
    done = cli("index", "urls:list.jsonl", "-c", "c", "--allow-private-hosts", "--no-thumbnails", cwd=tmp_path)
    assert done.returncode == 1, done
    assert "2 added, 1 failed" in done.stdout
    assert f"{server.url}/gone.jpg: HTTP 404" in done.stdout
    assert not os.path.exists(tmp_path / "c" / "thumbnails.sqlite")
    (tmp_path / "query.jpg").write_bytes(server.files["/1.jpg"])
    found = cli("search", "query.jpg", "-c", "c", "-k", "1", "--json", cwd=tmp_path)
    (hit,) = json.loads(found.stdout)["hits"]
    assert (hit["uri"], hit["details"]) == (f"{server.url}/1.jpg", {"author": "Anna"})
    wrong = cli("index", "urls:list.jsonl", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "-c FOLDER" in wrong.stderr


def test_an_image_of_two_lists_stays_if_one_list_still_has_it(
    server: Server, tmp_path: Path, path: Path, tiny: TinyEncoder
) -> None:
    def write(name: str, numbers: range) -> Path:
        rows = [{"url": f"{server.url}/{n}.jpg", "caption": f"{n} of {name}"} for n in numbers]
        return write_csv(tmp_path / f"{name}.csv", rows)

    def captions() -> list[str]:
        with Collection.open(path) as collection:
            return sorted(item.caption or "" for item in collection.items())

    specs = [f"urls:{write('one', range(4))}", f"urls:{write('two', range(2, 6))}"]
    index(specs, path, encoders=["tiny"], allow_private=True)
    assert captions() == ["0 of one", "1 of one", "2 of one", "3 of one", "4 of two", "5 of two"]
    write("one", range(3))
    report = index(None, path, allow_private=True)
    assert (report.changed, report.unchanged, report.removed) == (1, 5, 0)
    assert captions() == ["0 of one", "1 of one", "2 of one", "3 of two", "4 of two", "5 of two"]
    # If the content of a list is unknown, no item is removed.
    (tmp_path / "one.csv").write_text("")
    report = index(None, path, allow_private=True)
    assert [failure.uri for failure in report.failures] == [specs[0]]
    with Collection.open(path) as collection:
        assert [failure.uri for failure in collection.failures()] == [specs[0]]
        assert collection.forget(specs[1]) == 3


def test_a_source_is_removed_by_the_name_it_was_given(
    server: Server, tmp_path: Path, path: Path, refresh: Callable[..., IndexReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "list.csv", [{"url": f"{server.url}/1.jpg", "name": "one"}])
    monkeypatch.chdir(tmp_path)
    spec = "urls:list.csv?caption=name"
    refresh(spec)
    with Collection.open(path) as collection:
        assert collection.forget(spec) == 1


def test_a_list_as_excel_saves_it_is_indexed_and_its_encoding_reported(
    tmp_path: Path, server: Server, refresh: Callable[..., IndexReport], path: Path
) -> None:
    listed = tmp_path / "excel.csv"
    rows = f'"{server.url}/1.jpg";"caf\xe9; ""gro\xdf"""\r\n<{server.url}/2.jpg>;\r\n'
    listed.write_bytes(f"sep=;\r\nurl;caption\r\n{rows}".encode("cp1252"))
    server.encoded["/encoded/3.jpg"] = gzip.compress(server.files["/3.jpg"])
    server.headers["/encoded/3.jpg"] = {}
    with listed.open("ab") as file:
        file.write(f"[a link]({server.url}/encoded/3.jpg);x\r\n{server.url}/cookie-wall;y\r\n".encode())
    report = refresh(listed)
    assert (report.added, report.failures) == (4, [])
    assert len(report.notes) == 1
    assert "excel.csv is read as cp1252" in report.notes[0]
    with Collection.open(path) as collection:
        captions = {item.uri.removeprefix(server.url): item.caption for item in collection.items()}
    assert captions == {"/1.jpg": 'caf\xe9; "gro\xdf"', "/2.jpg": None, "/encoded/3.jpg": "x", "/cookie-wall": "y"}
    done = cli("index", f"urls:{listed}", "-c", tmp_path / "c", "--allow-private-hosts")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Note: {listed} is read as cp1252" in done.stdout
