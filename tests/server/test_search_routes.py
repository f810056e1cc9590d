"""Queries over HTTP: the answers are those of the library, and bad input gets one sentence and the right status."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pixmatcher import Collection, Query, SearchOptions, classify, search
from pixmatcher.errors import (
    CollectionError,
    EncoderError,
    OutdatedCollectionError,
    PixMatcherError,
    QueryError,
    StorageError,
)
from pixmatcher.searching import QueryPart, embed_query
from pixmatcher.server._advice import sentence_for_clients

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
SEARCH = "/v1/collections/photos/search"
BATCH = "/v1/collections/photos/search/batch"
CATEGORIES = "/v1/collections/photos/categories"
EMBEDDINGS = "/v1/embeddings"


def data_url(name: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode((PHOTOS / name).read_bytes()).decode()


def in_process(photos: Path, query: Query | str, **options: Any) -> dict[str, Any]:
    with Collection.open(photos) as collection:
        return timeless(search(collection, query, SearchOptions(**options)).as_json())


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key not in ("took_ms", "query")}


def problem(answer: Any, status: int) -> dict[str, Any]:
    """Return the problem that an answer must be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    values: dict[str, Any] = answer.json()
    assert values["status"] == status
    assert values["reason"]
    assert "Traceback" not in answer.text
    return values


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"text": "a cat"}, Query("a cat")),
        ({"image": data_url("horse.jpg")}, Query(image=PHOTOS / "horse.jpg")),
        (
            {"text": "a cat", "image": data_url("horse.jpg"), "text_weight": 0.25},
            Query("a cat", PHOTOS / "horse.jpg", 0.25),
        ),
        (
            {
                "want": ["an animal", {"image": data_url("cat.jpg"), "weight": 2}, {"id": 1}],
                "avoid": [{"text": "a cat"}],
            },
            Query(
                wanted=(QueryPart("an animal"), QueryPart(image=PHOTOS / "cat.jpg", weight=2), QueryPart(item=1)),
                unwanted=(QueryPart("a cat"),),
            ),
        ),
    ],
    ids=["text", "image", "both", "parts"],
)
def test_the_answer_is_that_of_the_library(client: TestClient, photos: Path, body: Any, query: Query) -> None:
    answer = client.post(SEARCH, json=body)
    assert answer.status_code == 200, answer.text
    assert timeless(answer.json()) == in_process(photos, query)


def test_options_are_those_of_the_library(client: TestClient, photos: Path) -> None:
    wanted = {"labels": ["animal"], "folder": str(PHOTOS), "min_width": 1}
    answer = client.post(SEARCH, json={"text": "a cat", "k": 1, "exact": True, "space": "semantic", "filter": wanted})
    assert [hit["label"] for hit in answer.json()["hits"]] == ["n1"]
    for options in ({"k": 3}, {"min_score": 0.1}, {"min_probability": 0.5}, {"space": "semantic", "exact": True}):
        answer = client.post(SEARCH, json={"text": "a cat", **options})
        assert timeless(answer.json()) == in_process(photos, "a cat", **options)


def test_forms_carry_files(client: TestClient, photos: Path) -> None:
    expected = in_process(photos, Query(image=PHOTOS / "cat.jpg"), k=2)
    photo = (PHOTOS / "cat.jpg").read_bytes()
    simple = client.post(SEARCH, files={"image": ("my cat.jpg", photo)}, data={"k": "2"})
    assert timeless(simple.json()) == expected
    query = json.dumps({"want": [{"image": "upload:first"}], "k": 2})
    form = client.post(SEARCH, files={"first": ("cat.jpg", photo)}, data={"query": query})
    assert timeless(form.json()) == expected
    part = client.post(SEARCH, files={"first": ("cat.jpg", photo), "query": ("", query, "application/json")})
    assert timeless(part.json()) == expected
    missing = client.post(SEARCH, files={"first": ("cat.jpg", photo)}, data={"query": '{"image": "upload:second"}'})
    assert problem(missing, 422)["reason"] == "image missing"


def test_a_vector_is_searched_for_as_the_library_does(client: TestClient, photos: Path) -> None:
    with Collection.open(photos) as collection:
        vector = embed_query(Query("a cat"), collection.encoders).vector
        hits = collection.search(vector, space="semantic", k=12)
    answer = client.post(SEARCH, json={"vector": vector.tolist(), "space": "semantic"}).json()
    assert [hit["id"] for hit in answer["hits"]] == [hit.item.id for hit in hits]
    assert [hit["score"] for hit in answer["hits"]] == [round(hit.score, 4) for hit in hits]
    for body in (
        {"vector": vector.tolist()},
        {"vector": [1.0], "space": "semantic"},
        {"vector": [1e300] * 768, "space": "semantic"},
        {"vector": vector.tolist(), "space": "semantic", "text": "a cat"},
    ):
        problem(client.post(SEARCH, json=body), 422)


@pytest.mark.parametrize(
    "reference",
    [
        "{photo}",
        "file://{photo}",
        "FILE:{photo}",
        "file:{photo}",
        "file://localhost{photo}",
        "{folder}/photos.zip/cat.jpg",
        "/etc/passwd",
        "~/cat.jpg",
        "./cat.jpg",
        "\\\\server\\share\\cat.jpg",
        "//server/share/cat.jpg",
        "C:\\cat.jpg",
        "ftp://127.0.0.1/cat.jpg",
        "gopher://127.0.0.1/",
        " {photo}",
        '"{photo}"',
        "data:{photo}",
        "data://{photo}",
        "upload:{photo}",
        "-",
        "",
    ],
)
@pytest.mark.parametrize("allow_urls", [False, True])
def test_no_file_of_the_server_is_read(app_client: Any, tmp_path: Path, reference: str, allow_urls: bool) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(PHOTOS / "cat.jpg", "cat.jpg")
    reference = reference.format(photo=PHOTOS / "cat.jpg", folder=tmp_path)
    client = app_client(allow_urls=allow_urls)
    for path, body in (
        (SEARCH, {"image": reference}),
        (SEARCH, {"want": [{"image": reference}]}),
        (SEARCH, {"text": "a cat", "avoid": [{"image": reference}]}),
        (CATEGORIES, {"image": reference}),
        (EMBEDDINGS, {"input": [{"image": reference}], "model": "lite"}),
    ):
        problem(client.post(path, json=body), 422)
    results = client.post(BATCH, json={"queries": [{"image": reference}]}).json()["results"]
    assert {*results[0]} == {"query", "error", "reason"}


def test_urls_are_fetched_only_where_that_is_allowed(app_client: Any) -> None:
    body = {"image": "http://127.0.0.1:1/cat.jpg"}
    assert problem(app_client().post(SEARCH, json=body), 403)["reason"] == "URLs not allowed"
    refused = problem(app_client(allow_urls=True).post(SEARCH, json=body), 422)
    assert "private" in refused["detail"] or "loopback" in refused["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"text": ""}',
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "a", "k": 0}',
        b'{"text": "a", "k": 1001}',
        b'{"text": "a", "k": 1.5}',
        b'{"text": "a", "k": "1"}',
        b'{"text": "a", "k": true}',
        b'{"text": "a", "k": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "min_score": NaN}',
        b'{"text": "a", "min_score": 1e999}',
        b'{"text": "a", "min_probability": 1.5}',
        b'{"text": "a", "unknown": 1}',
        b'{"text": "a", "space": "none"}',
        b'{"text": "a", "filter": {"after": "yesterday"}}',
        b'{"text": "a", "filter": {"folder": "photos"}}',
        b'{"text": "a", "filter": {"folder": ""}}',
        b'{"text": "a", "filter": {"min_width": 99999999999999999999}}',
        b'{"want": [{"id": 99999}]}',
        b'{"want": [{"id": 1, "text": "a"}]}',
        b'{"want": [{"id": 1, "weight": 0}]}',
        b'{"want": [{"id": 1}], "avoid": [{"id": 1}]}',
        b'{"avoid": ["a cat"]}',
        b'{"want": ["a", "b"], "min_probability": 0.5}',
        b'{"want": ' + b"[" * 100_000,
        b'{"image": "data:image/png;base64,AAAA"}',
        b'{"image": "data:image/png;base64,***"}',
        json.dumps({"text": "a" * 10_001}).encode(),
        json.dumps({"want": ["a"] * 17}).encode(),
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_bad_input_gets_one_sentence(client: TestClient, body: bytes, photos: Path) -> None:
    answer = client.post(SEARCH, content=body, headers={"content-type": "application/json"})
    assert str(photos) not in problem(answer, 422)["detail"]


def test_odd_text_is_answered(client: TestClient) -> None:
    for text in ("a\0cat", "кошка", "\N{CAT FACE}", "a " * 5000):
        assert client.post(SEARCH, json={"text": text}).status_code == 200
    label = client.post(SEARCH, json={"text": "a cat", "filter": {"labels": ["\0"], "folder": "/\0"}})
    assert label.json()["hits"] == []


def test_whether_a_folder_exists_is_not_said(client: TestClient, tmp_path: Path) -> None:
    notes = []
    for folder in (tmp_path, tmp_path / "missing", PHOTOS / "cat.jpg"):
        answer = client.post(SEARCH, json={"text": "a cat", "filter": {"folder": str(folder)}}).json()
        assert answer["hits"] == []
        notes.append(answer["note"].partition(":")[0].replace(str(folder), "FOLDER"))
    assert {*notes} == {"No image in this collection is in the folder 'FOLDER'"}


def test_images_with_too_many_pixels_are_refused(app_client: Any) -> None:
    from pixmatcher.server import Limits

    client = app_client(limits=Limits(image_pixels=1000))
    for path, body in ((SEARCH, {"image": data_url("cat.jpg")}), (CATEGORIES, {"image": data_url("cat.jpg")})):
        assert "pixels" in problem(client.post(path, json=body), 422)["detail"]


def test_other_media_types_are_refused(client: TestClient) -> None:
    answer = client.post(SEARCH, content=b"a cat", headers={"content-type": "text/plain"})
    assert problem(answer, 415)["reason"] == "media type not supported"
    form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d sends
    for path in (SEARCH, "/v1/collections/photos/sources", "/v1/collections/photos/items/embeddings"):
        answer = client.post(path, content=b'{"text": "a cat"}', headers=form)
        assert problem(answer, 415)["reason"] == "media type not supported"
        assert "with the header Content-Type: application/json" in answer.json()["detail"]
    for body in (b"", b"--x\r\n", b"nothing"):
        answer = client.post(SEARCH, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
        assert answer.status_code in (400, 422)
    answer = client.post(SEARCH, content=b"x", headers={"content-type": "multipart/form-data"})
    assert problem(answer, 400)


def test_a_form_that_is_cut_off_is_refused(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na cat\r\n'
    more = b'--x\r\nContent-Disposition: form-data; name="k"\r\n\r\n1\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    whole = client.post(SEARCH, content=part + more + b"--x--\r\n", headers=headers)
    assert whole.status_code == 200
    assert len(whole.json()["hits"]) == 1
    for end in (part + more, part + more + b"--x", part + more[:-2], part + more[:-20], b"--x", b"nothing of a form"):
        answer = client.post(SEARCH, content=end, headers=headers)
        assert problem(answer, 400)["reason"] == "form not valid", end
        assert answer.json()["detail"].startswith("The form is not valid: ")
    assert not [record for record in caplog.records if record.name.startswith(("python_multipart", "multipart"))]


def test_unknown_collections_are_not_found(client: TestClient) -> None:
    for path in ("search", "search/batch", "categories"):
        answer = client.post(f"/v1/collections/none/{path}", json={"text": "a cat"})
        assert problem(answer, 404)["reason"] == "no such collection"


def test_a_batch_answers_each_query(client: TestClient, photos: Path) -> None:
    queries = [{"text": "a cat"}, {"text": ""}, {"image": "/etc/passwd"}, {"want": [{"id": 2}]}]
    answer = client.post(BATCH, json={"queries": queries, "k": 2})
    first, empty, path, item = answer.json()["results"]
    assert timeless(first) == in_process(photos, "a cat", k=2)
    assert empty["reason"] == "query not valid"
    assert path["query"] == "/etc/passwd"
    assert path["reason"] == "image not valid"
    assert item["hits"][0]["id"] == 2
    problem(client.post(BATCH, json={"queries": []}), 422)
    assert problem(client.post(BATCH, json={"queries": queries * 65}), 422)["reason"] == "too many queries"


def test_categories_are_those_of_the_library(client: TestClient, photos: Path) -> None:
    with Collection.open(photos) as collection:
        expected = timeless(classify(collection, Query(image=PHOTOS / "cat.jpg"), k=2).as_json())
    answer = client.post(CATEGORIES, json={"image": data_url("cat.jpg"), "k": 2})
    assert timeless(answer.json()) == expected
    form = client.post(CATEGORIES, files={"image": (PHOTOS / "cat.jpg").read_bytes()}, data={"k": "2"})
    assert timeless(form.json()) == expected
    problem(client.post(CATEGORIES, json={"text": "a cat"}), 422)


def test_a_collection_without_labels_has_no_categories(app_client: Any, photos: Path, tmp_path: Path) -> None:
    with Collection.open(photos) as collection, Collection.create(tmp_path / "empty", collection.encoders):
        pass
    client = app_client(collections={"empty": str(tmp_path / "empty")})
    answer = problem(client.post("/v1/collections/empty/categories", json={"image": data_url("cat.jpg")}), 422)
    assert str(tmp_path) not in answer["detail"]
    assert "empty" in answer["detail"]


# ---- Embeddings ----


def test_embeddings_are_those_of_the_library(client: TestClient, photos: Path) -> None:
    with Collection.open(photos) as collection:
        text = embed_query(Query("a cat"), collection.encoders).vector
        image = embed_query(Query(image=PHOTOS / "cat.jpg"), collection.encoders, space="semantic").vector
        visual = embed_query(Query(image=PHOTOS / "cat.jpg"), collection.encoders).vector
    body = {"input": ["a cat", {"image": data_url("cat.jpg")}], "model": "lite"}
    answer = client.post(EMBEDDINGS, json=body).json()
    assert answer["object"] == "list"
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert np.array_equal(np.float32([each["embedding"] for each in answer["data"]]), [text, image])
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    answer = client.post(EMBEDDINGS, json={"input": {"image": data_url("cat.jpg")}, "model": "lite/visual"}).json()
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), visual)


def test_embeddings_in_the_shape_that_the_client_of_openai_sends(client: TestClient, photos: Path) -> None:
    body = {"input": "a cat", "model": "lite/semantic", "encoding_format": "base64", "user": "me", "dimensions": 768}
    answer = client.post(EMBEDDINGS, json=body, headers={"authorization": "Bearer unused"}).json()
    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    with Collection.open(photos) as collection:
        assert np.array_equal(vector, embed_query(Query("a cat"), collection.encoders).vector)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": "a cat", "model": "other"}, 404),
        ({"input": "a cat", "model": "lite/none"}, 404),
        ({"input": "a cat", "model": "lite/visual"}, 422),
        ({"input": "a cat", "model": "lite", "dimensions": 5}, 422),
        ({"input": "", "model": "lite"}, 422),
        ({"input": [], "model": "lite"}, 422),
        ({"input": [1, 2, 3], "model": "lite"}, 422),
        ({"input": [[1, 2, 3]], "model": "lite"}, 422),
        ({"input": ["a"] * 257, "model": "lite"}, 422),
        ({"input": "a", "model": "lite", "encoding_format": "int8"}, 422),
        ({"model": "lite"}, 422),
    ],
)
def test_bad_requests_for_embeddings(client: TestClient, body: Any, status: int) -> None:
    problem(client.post(EMBEDDINGS, json=body), status)


def test_a_collection_that_is_replaced_is_answered_by_the_new_one(
    app_client: Any, photos: Path, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    shutil.copytree(photos, served)
    client = app_client(collections={"photos": str(served)})
    expected = timeless(client.post(SEARCH, json={"text": "a cat"}).json())
    shutil.rmtree(served)
    gone = problem(client.post(SEARCH, json={"text": "a cat"}), 503)
    assert str(served) not in gone["detail"]
    shutil.copytree(photos, served)
    assert timeless(client.post(SEARCH, json={"text": "a cat"}).json()) == expected


def test_an_encoder_that_cannot_be_used_does_not_show_the_folder(app_client: Any, photos: Path, tmp_path: Path) -> None:
    with Collection.open(photos) as collection:
        outdated = replace(collection.encoders[0], fingerprint="of another version")
    with Collection.create(tmp_path / "outdated", [outdated]):
        pass
    client = app_client(collections={"old": str(tmp_path / "outdated")})
    for path, body in (("search", {"text": "a cat"}), ("search/batch", {"queries": [{"text": "a cat"}]})):
        answer = problem(client.post(f"/v1/collections/old/{path}", json=body), 503)
        assert answer["reason"] == "collection outdated"
        assert answer["detail"] == (
            "old was made with another version of the encoder lite: "
            "ask who runs the service to run `pixmatcher upgrade`."
        )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            CollectionError(
                "/a b/c is damaged", "run `pixmatcher verify --repair -c '/a b'`, then `pixmatcher index`."
            ),
            "/a b/c is damaged: ask who runs the service to run `pixmatcher verify --repair`, then `pixmatcher index`.",
        ),
        (
            OutdatedCollectionError("/a was made with another version: index into another collection with -c."),
            "/a was made with another version: ask who runs the service; its log says what to do.",
        ),
        (
            EncoderError(
                "The encoder x needs PyTorch: run `pip install torch`, copy /home/ann/cache/x from a machine."
            ),
            "The encoder x needs PyTorch: ask who runs the service; its log says what to do.",
        ),
        (
            EncoderError("/home/ann/cache/x/card.json is damaged: delete it."),
            "card.json is damaged: ask who runs the service; its log says what to do.",
        ),
        (
            StorageError("The disk of /a is full: make room on it."),
            "The disk of /a is full: ask who runs the service; its log says what to do.",
        ),
        (QueryError("The text is empty: write what to search for."), "The text is empty: write what to search for."),
    ],
)
def test_advice_is_what_a_client_can_do(
    error: PixMatcherError, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert sentence_for_clients(error) == sentence
    assert (str(error) in caplog.text) == sentence.endswith("its log says what to do.")
