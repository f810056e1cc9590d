"""`pixmatcher.Client`: the results and errors of a local collection, over HTTP, and what goes wrong in between."""

from __future__ import annotations

import io
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from live_service import live_app, live_service
from PIL import Image
from service_process import PATIENCE, wait_until

from pixmatcher import (
    Client,
    Collection,
    CollectionError,
    Filter,
    InvalidImageError,
    PixMatcherError,
    Query,
    QueryError,
    QueryPart,
    SearchOptions,
    StorageError,
    Store,
    classify,
    index,
    open_collection,
    search,
)
from pixmatcher.indexing.watching import watch
from pixmatcher.records import Calibration
from pixmatcher.searching import check_filter, item_picture, search_batch, search_similar
from pixmatcher.server import Limits
from pixmatcher.web.collection_list import locate_all
from support import cli

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of photos, some with labels, one of them damaged; with a calibration of its own."""
    folder = tmp_path_factory.mktemp("photos")
    for photo in PHOTOS.glob("*.jpg"):
        shutil.copy(photo, folder)
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (folder / "notes.txt").write_text("passed over")
    index(folder)
    with Collection.open(folder) as collection:
        items = [replace(item, label=f"n{item.id % 3}") for item in collection.items() if item.id % 4]
        spaces = {name: collection.embeddings([item.id for item in items], name) for name in collection.spaces}
        collection.add(items, spaces, source=collection.sources()[0])
        collection.set_label_names({"n0": "first, number one", "n1": "second"})
        collection.set_calibrations([*collection.spaces][-1], {"text": Calibration(9.0, -2.0, 0.3)})
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[str]:
    with live_service({"photos": folder, "a b": folder}) as url:
        yield url


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Collection]:
    with Collection.open(folder) as collection:
        yield collection


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(f"{service}/c/photos") as client:
        yield client


def outcome(work: Callable[[], Any]) -> Any:
    """Return the result of a search without its time, or the class and the message of its error."""
    try:
        found = work()
    except PixMatcherError as error:
        return type(error), str(error), getattr(error, "reason", None), getattr(error, "detail", None)
    return replace(
        found, took_ms=0.0, **({"unreadable": str(found.unreadable)} if hasattr(found, "unreadable") else {})
    )


CAT, COINS = PHOTOS / "cat.jpg", PHOTOS / "coins.jpg"
QUERIES: list[Any] = [
    "a cat",
    Query("a cat", CAT, text_weight=0.3),
    Query(image=CAT),
    Query(image=str(COINS), image_name="my coins"),
    Query(image=CAT.read_bytes()),
    Query(image=io.BytesIO(CAT.read_bytes())),
    Query(image=np.full((40, 60, 3), (200, 30, 40), np.uint8)),
    Query("a cup", note="a note of the query"),
    Query(wanted=(QueryPart("coins"), QueryPart(item=2, weight=0.5)), unwanted=(QueryPart(image=CAT),)),
    Query(wanted=(QueryPart(item=1),)),
    Query(wanted=(QueryPart(item=999),)),
    "我喜欢猫",
    Query("我喜欢猫", CAT),
    "\udcff",
    Query(image=PHOTOS / "no-such.jpg"),
    Query(image=b"no image"),
    Query(image=b"", image_name="-"),
    Query(image=PHOTOS),
    "x" * 10_000,
]
OPTIONS = [
    SearchOptions(),
    SearchOptions(3, min_score=0.1, exact=True),
    SearchOptions(space="no such space"),
    SearchOptions(min_probability=0.4),
    SearchOptions(filter=Filter(labels=("first",))),
    SearchOptions(filter=Filter(labels=("frist",), min_width=10, after="2001")),
    SearchOptions(filter=Filter(folder="/no/such/folder")),
    SearchOptions(filter=Filter(before="2001-02", min_height=10)),
]


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_a_query_has_the_result_or_the_error_of_a_local_collection(
    client: Client, local: Collection, number: int
) -> None:
    query = QUERIES[number]

    def rewound() -> Any:
        if isinstance(query, Query) and isinstance(query.image, io.BytesIO):
            query.image.seek(0)
        return query

    for options in OPTIONS if number < 3 else OPTIONS[:2]:
        expected = outcome(lambda options=options: search(local, rewound(), options))
        found = outcome(lambda options=options: search(client, rewound(), options))
        assert found == expected


def test_the_queries_of_the_test_have_results_and_errors(local: Collection) -> None:
    outcomes = [outcome(lambda query=query: search(local, query)) for query in QUERIES if query is not QUERIES[5]]
    assert sum(isinstance(each, tuple) for each in outcomes) >= 5
    assert sum(not isinstance(each, tuple) and bool(each.hits) for each in outcomes) >= 8
    assert any(not isinstance(each, tuple) and each.calibration for each in outcomes)


def test_similar_items_and_categories_are_those_of_a_local_collection(client: Client, local: Collection) -> None:
    for item_id, space in ((1, None), (3, [*local.spaces][-1]), (999, None), (1, "no such space")):
        options = SearchOptions(5, space=space)
        expected = outcome(lambda: search_similar(local, item_id, options))  # noqa: B023
        assert outcome(lambda: search_similar(client, item_id, options)) == expected  # noqa: B023
    for query in (Query(image=CAT), Query("a cat"), Query(image=b"no image")):
        expected = outcome(lambda: classify(local, query, k=3))  # noqa: B023
        assert outcome(lambda: classify(client, query, k=3)) == expected  # noqa: B023


def test_a_batch_has_the_lines_of_a_local_collection(client: Client, local: Collection) -> None:
    lines = ["a cat", str(CAT), json.dumps({"want": ["coins", {"id": 2}], "avoid": ["a cat"]}), "{", "/no/such.jpg"]
    both = [[*search_batch(store, lines, k=3)] for store in (client, local)]
    assert [{**line, "took_ms": 0} for line in both[0]] == [{**line, "took_ms": 0} for line in both[1]]


def test_the_methods_return_what_those_of_a_local_collection_return(client: Client, local: Collection) -> None:
    assert isinstance(client, Store)
    ids = local.ids()
    for name in ("failures", "incomplete", "sources", "item_folders", "format_counts", "label_counts", "label_names"):
        assert getattr(client, name)() == getattr(local, name)(), name
    assert len(client) == len(local)
    assert [*client.items()] == [*local.items()]
    assert [*client.label_counts()] == [*local.label_counts()]
    assert client.items_by_id([3, 999, 1]) == local.items_by_id([3, 999, 1])
    assert client.ids().tolist() == ids.tolist()
    assert client.labels_by_id([1, 4, 999]) == local.labels_by_id([1, 4, 999])
    assert client.labels_called(["first", "n1", "none"]) == local.labels_called(["first", "n1", "none"]) != set()
    assert client.calibrations() == local.calibrations() != {}
    assert client.state() == local.state()
    assert client.changes_since(local.state()) == (0, 0, 0)
    assert client.has_items_in(str(local.path.parent))
    assert not client.has_items_in("/no/such/folder")
    assert set(client.sample_ids(4)) <= {*ids.tolist()}
    assert dict(client.spaces) == local.spaces
    assert client.encoders == local.encoders
    for space in local.spaces:
        vectors = local.embeddings(ids, space)
        assert np.array_equal(client.embeddings(ids, space), vectors)
        assert client.search(vectors[2], space=space, k=5) == local.search(vectors[2], space=space, k=5)
        labelled = {"space": space, "k": 4, "labels": 3}
        assert client.nearest_labelled(vectors[0], **labelled) == local.nearest_labelled(vectors[0], **labelled)
    assert client.embeddings([], space).shape == (0, vectors.shape[1])
    with pytest.raises(CollectionError, match="No image of this collection has the id 999"):
        client.embeddings([1, 999], space)
    with pytest.raises(CollectionError, match="does not exist in this collection"):
        client.embeddings([1], "no such space")
    with client.snapshot() as generation:
        assert generation == local.generation


def test_a_folder_of_the_filter_is_looked_for_in_the_collection_alone(client: Client, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(QueryError, match="No image in this collection is in the folder"):
            check_filter(client, Filter(folder=str(folder)))


def test_pictures_come_from_the_service(client: Client, tmp_path: Path) -> None:
    item = client.items_by_id([1])[1]
    with Image.open(item.uri) as original:
        expected = np.asarray(original.convert("RGB").resize((8, 8)), float)
    assert (picture := item_picture(item, client, 200)) is not None
    assert max(picture.size) == 200
    assert np.abs(np.asarray(picture.resize((8, 8)), float) - expected).mean() < 12
    # A file of this machine with the uri of an item of the service is not opened.
    other = tmp_path / "secret.png"
    Image.new("RGB", (20, 20)).save(other)
    assert item_picture(replace(item, uri=str(other), id=999), client, 200) is None
    assert client.thumbnail(item.content_hash) is None
    assert client.thumbnail("../../x") is None


def test_a_name_with_spaces_and_a_prefix_of_a_proxy(service: str) -> None:
    with Client(f"{service}/c/a%20b/") as client:
        assert len(client) > 5
        assert str(client.path) == f"{service}/c/a%20b"
    with pytest.raises(CollectionError, match=r"is not a PixMatcher service|does not have what"):
        Client(f"{service}/prefix/c/photos")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8600",
        "http://127.0.0.1:8600/photos",
        "http:photos",
        "ftp://127.0.0.1/c/photos",
        "http://127.0.0.1:x/c/photos",
        "http://user:secret@127.0.0.1/c/photos",
        "http://127.0.0.1/c/photos?x=1",
        "http://127.0.0.1/c/..",
        "http://127.0.0.1/c/a%2Fb",
        "http://[::1/c/photos",
    ],
)
def test_a_url_that_names_no_collection_has_one_sentence(url: str) -> None:
    with pytest.raises(CollectionError) as raised:
        Client(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_collection_and_a_service_that_is_away(service: str) -> None:
    with pytest.raises(CollectionError, match="has no collection 'other'"):
        Client(f"{service}/c/other")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CollectionError, match="cannot be reached"):
        Client(f"http://127.0.0.1:{port}/c/photos")


def test_the_certificates_of_the_environment_count_on_this_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # answers 501 to everything
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}/c/photos"
        try:
            with pytest.raises(CollectionError, match=r"certificate of .* is not valid .* SSL_CERT_FILE"):
                Client(url)
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
            with pytest.raises(CollectionError, match=r"is not a PixMatcher service .*status 501"):
                Client(url)
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
            with pytest.raises(CollectionError, match="certificates named in the environment cannot be used"):
                Client(url)
        finally:
            server.shutdown()


def test_a_proxy_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "wrong://proxy.example")
    with pytest.raises(CollectionError, match="proxy or the certificates named in the environment cannot be used"):
        Client("http://photos.example/c/photos")


def test_a_search_for_more_results_than_the_service_allows(folder: Path) -> None:
    with (
        live_service({"photos": folder}, Limits(results=5, body_bytes=1000)) as url,
        Client(f"{url}/c/photos") as client,
    ):
        assert len(search(client, "a cat", k=5).hits) == 5
        assert len([*client.items()]) == len(client) > 5  # in several requests
        assert len(client.embeddings(client.ids(), next(iter(client.spaces)))) == len(client)
        with pytest.raises(QueryError, match="at most 5 results"):
            search(client, "a cat", k=6)
        with pytest.raises(QueryError):
            search(client, Query(image=CAT))


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of three folders, each with a whole photo, a damaged one and one whose end is missing."""
    folder = tmp_path_factory.mktemp("troubled")
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
        shutil.copy(CAT, folder / name)
        (folder / name / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
        whole = COINS.read_bytes()
        (folder / name / "cut.jpg").write_bytes(whole[: int(len(whole) * 0.97)] + name.encode())
    index(folder)
    with Collection.open(folder) as collection:
        items = [replace(item, label=f"n{item.id}") for item in collection.items()]
        spaces = {name: collection.embeddings([item.id for item in items], name) for name in collection.spaces}
        collection.add(items, spaces, source=collection.sources()[0])
        collection.set_label_names({f"n{item.id}": f"name {item.id}" for item in items})
    return folder


def test_images_of_a_service_are_not_encoded_on_a_cluster(service: str) -> None:
    pytest.importorskip("ray")
    done = cli("index", "-c", f"{service}/c/photos", "--on", "ray")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: The images of {service}/c/photos are encoded where it is: leave out --on.\n"


LISTS = ("ids", "failures", "incomplete", "item_folders", "label_counts", "label_names")


@pytest.mark.parametrize("entries", [1, 2, 3])
def test_long_lists_come_in_pages(troubled: Path, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixmatcher.server._routes.store._IDS_OF_PAGE", entries)
    with (
        Collection.open(troubled) as local,
        live_service({"photos": troubled}, Limits(results=entries)) as url,
        Client(f"{url}/c/photos") as client,
    ):
        for name in LISTS:
            ours, theirs = getattr(local, name)(), getattr(client, name)()
            assert len(ours) >= 3, name
            assert [*theirs] == [*ours] if name != "item_folders" else theirs == ours, name
        assert client.label_counts() == local.label_counts()
        assert client.label_names() == local.label_names()


def test_long_lists_of_an_empty_collection(troubled: Path, tmp_path: Path) -> None:
    with Collection.open(troubled) as full:
        Collection.create(tmp_path / "empty", full.encoders).close()
    with live_service({"photos": tmp_path / "empty"}) as url, Client(f"{url}/c/photos") as client:
        assert [len(getattr(client, name)()) for name in LISTS] == [0] * len(LISTS)


class Scripted:
    """An ASGI application that answers with what a test says, and keeps what it was asked."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = [*answers]
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked.append((scope["path"], {k.decode(): v.decode() for k, v in scope["headers"]}))
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body})


JSON = {"content-type": "application/json"}
PROBLEM = {"content-type": "application/problem+json"}
DESCRIPTION = {"version": 1, "encoders": [], "encoded_since": 0, "most_rows": 1000}


def body(**values: Any) -> bytes:
    return json.dumps(values).encode()


STATE = {"generation": 1, "items": 7, "last_id": 7, "row_count": 7}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, JSON, b"<html>"), "is not a PixMatcher service"),
        ((200, JSON, b"[" * 100_000), "is not a PixMatcher service"),
        ((200, JSON, b"[]"), "is not valid"),
        ((200, JSON, body(version=99, encoders=[])), "use the same version"),
        ((200, {**JSON, "content-encoding": "gzip"}, b"x"), "compressed"),
        ((404, {"content-type": "text/html"}, b"nothing"), "is not a PixMatcher service"),
        ((404, PROBLEM, body(status=404, reason="not found", detail="Not Found")), "update the service"),
        ((302, {"location": "http://other.example/x"}, b""), "redirects to http://other.example/x"),
        ((401, PROBLEM, body(status=401, reason="x", detail="y")), "wants a token"),
        ((403, PROBLEM, body(status=403, reason="x", detail="It may only read.")), "It may only read"),
        ((500, PROBLEM, body(status=500, reason="internal error", detail="A\x1b[2J defect")), r"A\\x1b\[2J defect"),
        ((500, PROBLEM, b"null"), "status 500"),
        ((429, {**PROBLEM, "retry-after": "1000000"}, body(status=429, detail="Later.")), "Later"),
    ],
)
def test_answers_that_are_none(answer: tuple[int, dict[str, str], bytes], message: str) -> None:
    with live_app(Scripted(answer)) as url, pytest.raises(CollectionError, match=message) as raised:
        Client(f"{url}/c/photos")
    assert "\n" not in str(raised.value)


def test_a_busy_service_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = (429, {**PROBLEM, "retry-after": "0"}, body(status=429, detail="Later."))
    app = Scripted((200, JSON, body(**DESCRIPTION)), busy, busy, (200, JSON, body(state=STATE)))
    with live_app(app) as url, Client(f"{url}/c/photos") as client:
        assert len(client) == 7
    assert len(app.asked) == 4


def test_an_answer_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixmatcher.client._connection.MAX_ANSWER_BYTES", 1000)
    app = Scripted((200, JSON, body(**DESCRIPTION)), (200, JSON, b" " * 2000))
    with (
        live_app(app) as url,
        Client(f"{url}/c/photos") as client,
        pytest.raises(CollectionError, match="more than 1,000 bytes"),
    ):
        client.failures()


@pytest.mark.parametrize("cursor", ["0", "x", -1, "2", [1]])
def test_pages_that_lead_nowhere_end(cursor: Any) -> None:
    page = (200, JSON, body(values=[], next="2"))
    app = Scripted((200, JSON, body(**DESCRIPTION)), page, (200, JSON, body(values=[], next=cursor)))
    with (
        live_app(app) as url,
        Client(f"{url}/c/photos") as client,
        pytest.raises(CollectionError, match="is not valid"),
    ):
        client.failures()
    assert len(app.asked) == 3


def test_a_list_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixmatcher.client._connection._MAX_LIST_BYTES", 1000)
    pages = [(200, JSON, body(values=[], next=str(number))) for number in range(1, 200)]
    app = Scripted((200, JSON, body(**DESCRIPTION)), *pages)
    with (
        live_app(app) as url,
        Client(f"{url}/c/photos") as client,
        pytest.raises(CollectionError, match="more than 1,000 bytes"),
    ):
        client.failures()


def test_the_token_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PIXMATCHER_TOKEN", "pxm_from-environment")
    caplog.set_level("DEBUG")
    other = Scripted((200, JSON, b"{}"))
    with live_app(other) as elsewhere:
        app = Scripted(
            (200, JSON, body(**DESCRIPTION)), (307, {"location": f"{elsewhere}/v1"}, b""), (401, PROBLEM, b"{}")
        )
        with live_app(app) as url, Client(f"{url}/c/photos") as client:
            messages = []
            for _ in range(2):
                with pytest.raises(CollectionError) as raised:
                    client.sources()
                messages.append(str(raised.value))
        assert not other.asked
        assert app.asked[0][1]["authorization"] == "Bearer pxm_from-environment"
        with live_app(app) as url, pytest.raises(CollectionError):
            Client(f"{url}/c/photos", "pxm_given")
        assert app.asked[-1][1]["authorization"] == "Bearer pxm_given"
    assert "refuses the token" in messages[1]
    assert "pxm_" not in "".join(messages) + caplog.text + repr(client) + repr(vars(client))
    with pytest.raises(CollectionError) as raised:
        Client("http://127.0.0.1:1/c/photos", "pxm_two\nlines")
    assert "pxm_" not in str(raised.value)


def test_an_error_of_an_image_has_its_reason(client: Client) -> None:
    with pytest.raises(InvalidImageError) as raised:
        search(client, Query(image=b"GIF89a"))
    assert raised.value.reason
    assert "cannot be used as a query" in str(raised.value)


def test_the_reference_of_a_collection_can_be_a_url(service: str) -> None:
    store = open_collection(f"{service}/c/photos")
    assert isinstance(store, Client)
    store.close()


def test_a_closed_client_says_so(service: str) -> None:
    client = Client(f"{service}/c/photos")
    client.close()
    with pytest.raises(CollectionError, match="is closed"):
        client.sources()


# ---- Commands ----


def both_ways(service: str, folder: Path, *arguments: str) -> tuple[Any, Any]:
    """Return the JSON that a command prints for the service, and for the same collection in its folder."""
    answers = []
    for collection in (f"{service}/c/photos", str(folder)):
        done = cli(*arguments, "-c", collection)
        assert done.returncode == 0, done.stderr
        answers.append([{**json.loads(line), "took_ms": 0} for line in done.stdout.splitlines()])
    return answers[0], answers[1]


def test_search_and_categories_print_the_same(service: str, folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(f"a cat\n{COINS}\n")
    for arguments in (
        ("search", "a cat", "--json", "--top", "3", "--label", "first"),
        ("search", str(CAT), "--json", "--min-width", "100"),
        ("search", "--batch", str(lines), "--json"),
        ("categories", str(CAT), "--json"),
    ):
        remote, local = both_ways(service, folder, *arguments)
        assert remote == local


@pytest.mark.slow
def test_info_prints_the_same(service: str, folder: Path) -> None:
    url = f"{service}/c/photos"
    remote, local = (cli("info", "-c", collection) for collection in (url, str(folder)))
    assert remote.returncode == 0, remote.stderr
    hint = "; add --passed-over to list them"
    assert hint in local.stdout
    # Where the encoders of a service run is not known here.
    here = [line for line in local.stdout.replace(hint, "").splitlines() if not line.startswith("runs on")]
    assert remote.stdout.splitlines()[1:] == here[1:]
    assert url in remote.stdout.splitlines()[0]
    remote, local = (cli("info", "--json", "-c", collection) for collection in (url, str(folder)))
    values = json.loads(local.stdout)
    assert [encoder.pop("runs_on")["device"] for encoder in values["encoders"]] == ["cpu"]
    assert json.loads(remote.stdout) == values | {"encoders": [each | {"runs_on": None} for each in values["encoders"]]}
    done = cli("info", "--passed-over", "-c", url)
    assert done.returncode == 2
    assert "on the machine of the service" in done.stderr


@pytest.mark.slow
def test_exports_and_evaluations_are_those_of_a_local_collection(service: str, folder: Path, tmp_path: Path) -> None:
    url, saved = f"{service}/c/photos", []
    for name, collection in (("remote", url), ("local", str(folder))):
        done = cli("export", "arrays", "--to", tmp_path / name, "-c", collection)
        assert done.returncode == 0, done.stderr
        saved.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix == ".npy"})
    assert saved[0] == saved[1] != {}
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\ncat.jpg,a cat\ncoins.jpg,some coins\n")
    found = []
    for collection in (url, str(folder)):
        done = cli("evaluate", "--captions", captions, "--json", "-c", collection)
        assert done.returncode == 0, done.stderr
        values = json.loads(done.stdout)["captions"]
        found.append({key: value for key, value in values.items() if key not in ("took_s", "collection")})
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_map_and_a_contact_sheet_of_a_service(service: str, tmp_path: Path) -> None:
    url = f"{service}/c/photos"
    done = cli("map", tmp_path / "map.html", "--method", "pca", "-c", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data:image/jpeg" in (tmp_path / "map.html").read_text()
    done = cli("search", "a cat", "--top", "4", "--save-grid", tmp_path / "grid.png", "-c", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "grid.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 24) or ()) > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "map.html"]


@pytest.mark.parametrize("command", ["verify", "tune", "upgrade"])
def test_commands_that_need_the_files_say_where_to_run_them(service: str, command: str) -> None:
    done = cli(command, "-c", f"{service}/c/photos")
    assert done.returncode == 2
    assert "on the machine of the service" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# ---- Jobs ----


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A collection of two photos, in a folder that a service may index."""
    photos = tmp_path / "served" / "photos"
    photos.mkdir(parents=True)
    shutil.copy(CAT, photos)
    index(photos)
    shutil.copy(COINS, photos)
    (photos / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (photos / "notes.pdf").write_bytes(b"%PDF")
    return photos


@pytest.mark.slow
def test_a_job_indexes_and_forgets_with_the_report_of_a_local_run(growing: Path, tmp_path: Path) -> None:
    other = growing.parent / "other"
    other.mkdir()
    shutil.copy(PHOTOS / "coffee.jpg", other)
    settings = {"source_folders": (growing.parent,), "state_folder": tmp_path / "state"}
    with live_service({"photos": growing}, **settings) as url, Client(f"{url}/c/photos") as client:
        made = []
        report = index(None, client, progress=made.append)
        assert (report.added, report.unchanged, report.total) == (1, 1, 2)
        assert [failure.uri for failure in report.failures] == [str(growing / "damaged.jpg")]
        assert report.failures[0].reason
        assert report.passed_over["document"] == {"": 1}
        assert made
        assert len(client) == 2
        done = cli("index", other, "-c", f"{url}/c/photos")
        assert done.returncode == 0, done.stderr
        assert f"3 images in {url}/c/photos" in done.stdout
        assert "1 added" in done.stdout
        assert client.sources() == [str(growing), str(other)]
        with pytest.raises(PixMatcherError) as raised:
            index([tmp_path / "elsewhere"], client)
        assert "\n" not in str(raised.value)
        done = cli("index", "other", "-c", f"{url}/c/photos", cwd=growing.parent)
        assert done.returncode == 2
        assert "The path 'other' is relative: give the full path on the machine of the service." in done.stderr
        done = cli("forget", other, "-c", f"{url}/c/photos")
        assert done.returncode == 0, done.stderr
        assert "1 image of" in done.stdout
        assert len(client) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_job(growing: Path, tmp_path: Path, number: int) -> None:
    settings = {"state_folder": tmp_path / "state"}
    with (
        live_service({"photos": growing}, **settings) as url,
        Client(f"{url}/c/photos") as client,
        Collection.open(growing) as writer,
    ):
        writer.begin_writing()  # so that the job waits

        def states() -> list[str]:
            return [job["state"] for job in client._connection.json("GET", "/v1/jobs")["jobs"]]

        command = [sys.executable, "-m", "pixmatcher", "index", "-c", f"{url}/c/photos"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: states() == ["running"])
        process.send_signal(number)
        _, stderr = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert "stopped" in stderr
        wait_until(lambda: states() == ["stopped"])


def test_an_exception_of_the_progress_stops_the_job(growing: Path, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    settings = {"state_folder": tmp_path / "state"}
    with live_service({"photos": growing}, **settings) as url, Client(f"{url}/c/photos") as client:
        with pytest.raises(KeyboardInterrupt):
            index(None, client, progress=stop)
        (job,) = client._connection.json("GET", "/v1/jobs")["jobs"]
        assert job["kind"] == "index"
    with pytest.raises(CollectionError, match="cannot be reached"):
        Client(f"{url}/c/photos")


@pytest.mark.slow
def test_a_watched_collection_reports_each_run(growing: Path, tmp_path: Path) -> None:
    reports = []

    def note(report: Any) -> None:
        reports.append(report)
        raise KeyboardInterrupt

    with live_service({"photos": growing}, state_folder=tmp_path / "state") as url:
        with pytest.raises(KeyboardInterrupt):
            watch(f"{url}/c/photos", every=3600, on_report=note)
        with Client(f"{url}/c/photos") as client:
            jobs = client._connection.json("GET", "/v1/jobs")["jobs"]
            assert [job["kind"] for job in jobs] == ["watch"]
            assert len(client) == reports[0].total == 2


@pytest.mark.slow
def test_the_scope_of_a_token_decides(growing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tmp_path / "tokens"
    made = {
        scope: cli("tokens", "add", scope, "--scope", scope, "--file", tokens).stdout.split()
        for scope in ("read", "write")
    }
    read, write = (next(word for word in made[scope] if word.startswith("pxm_")) for scope in ("read", "write"))
    with live_service({"photos": growing}, token_file=tokens, state_folder=tmp_path / "state") as url:
        with pytest.raises(CollectionError, match="wants a token"):
            Client(f"{url}/c/photos")
        with pytest.raises(CollectionError, match="refuses the token"):
            Client(f"{url}/c/photos", "pxm_wrong")
        with Client(f"{url}/c/photos", read) as client:
            assert search(client, "a cat", k=1).hits
            assert client.count_to_forget(str(growing)) == 1
            with pytest.raises(CollectionError, match="does not allow this") as raised:
                index(None, client)
            assert read not in str(raised.value)
        monkeypatch.setenv("PIXMATCHER_TOKEN", write)
        done = cli("index", "-c", f"{url}/c/photos")
        assert "1 added" in done.stdout, done.stderr


def test_the_web_app_says_where_to_run_it() -> None:
    with pytest.raises(CollectionError, match="on the machine of the service"):
        locate_all([Path("http://127.0.0.1:1/c/photos")])


def test_events_of_a_job_are_read_in_any_pieces_and_after_a_break() -> None:
    job = {
        "id": "a1",
        "state": "running",
        "progress": {"stage": "Indexing\x1b", "done": 1, "total": 2, "unit": "images"},
    }
    ended = {**job, "state": "done", "report": {"removed": 3}}
    events = b": hello\n\nid: 1\r\nevent: progress\r\ndata: " + json.dumps(job).encode() + b"\r\n\r\nid: 2\ndata: {"
    app = Scripted(
        (200, JSON, body(**DESCRIPTION)),
        (202, JSON, json.dumps({**job, "state": "waiting"}).encode()),
        (200, {"content-type": "text/event-stream"}, events),
        (503, PROBLEM, b"{}"),
        (200, {"content-type": "text/event-stream"}, b"id: 2\ndata: " + json.dumps(ended).encode() + b"\n\n"),
    )
    with live_app(app) as url, Client(f"{url}/c/photos") as client:
        assert client.forget("/photos") == 3
    assert app.asked[-1][1]["last-event-id"] == "1"


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (
            {"state": "failed", "error": {"error": "StorageError", "detail": "The disk is full."}},
            StorageError,
            "is full",
        ),
        ({"state": "failed"}, CollectionError, "cannot answer"),
        ({"state": "stopped"}, CollectionError, "was stopped"),
        ({"state": "done", "report": []}, CollectionError, "is not valid"),
        ({"state": "done"}, CollectionError, "is not valid"),
    ],
)
def test_a_job_that_does_not_end_well(end: dict[str, Any], error: type[Exception], message: str) -> None:
    events = b"data: " + json.dumps({"id": "a1", **end}).encode() + b"\n\n"
    started = (202, JSON, b'{"id": "a1", "state": "waiting"}')
    app = Scripted((200, JSON, body(**DESCRIPTION)), started, (200, {"content-type": "text/event-stream"}, events))
    with live_app(app) as url, Client(f"{url}/c/photos") as client, pytest.raises(error, match=message):
        client.forget("/photos")
