"""The routes of the client keep to the limits of the service, as the others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pixmatcher.server import Limits

STORE = "/v1/collections/photos/store"
SPACE = "semantic"
VECTOR = "AACAPw=="
READS = [
    "",
    "/ids",
    "/labels",
    "/label-names",
    "/calibrations",
    "/failures",
    "/incomplete",
    "/sources",
    "/formats",
    "/folders",
]
READS += ["/thumbnails/a", "/pictures/1"]
OTHER_READS = ["", "/labels", "/failures", "/items", "/items/1", "/items/1/image", "/items/1/thumbnail"]
POSTS: dict[str, Any] = {
    "/query": {"query": {"text": "a cat"}},
    "/similar": {"id": 1},
    "/categories": {"query": {"image": "data:;base64,"}},
    "/search": {"vector": VECTOR, "options": {"space": SPACE}},
    "/nearest-labelled": {"vector": VECTOR, "space": SPACE, "k": 1, "labels": 1},
    "/embeddings": {"ids": [1], "space": SPACE},
    "/items": {"ids": [1]},
    "/labels-called": {"texts": ["animal"]},
    "/has-items-in": {"folder": "/a"},
    "/count-to-forget": {"source": "/a"},
    "/changes": {"state": [0, 0, 0, 0]},
}


def test_every_route_waits_with_the_others_and_is_refused_when_too_many_wait(
    app_client: Callable[..., TestClient],
) -> None:
    client = app_client(limits=Limits(waiting=0))
    admission = client.app.state.server.admission  # type: ignore[attr-defined]
    for _ in range(admission.threads):
        admission._admit()
    try:
        answers = {route: client.get(f"{STORE}{route}") for route in READS}
        answers |= {route: client.post(f"{STORE}{route}", json=body) for route, body in POSTS.items()}
        others = [client.get("/v1/collections")]
        others += [client.get(f"/v1/collections/photos{route}") for route in OTHER_READS]
        others.append(client.post("/v1/collections/photos/items/embeddings", json=POSTS["/embeddings"]))
    finally:
        for _ in range(admission.threads):
            admission._release()
    assert {*answers} == {
        path.removeprefix("/v1/collections/{collection}/store").replace("{content_hash}", "a").replace("{id}", "1")
        for path in client.get("/openapi.json").json()["paths"]
        if path.startswith("/v1/collections/{collection}/store")
    }
    assert {route: answer.status_code for route, answer in answers.items()} == dict.fromkeys(answers, 429)
    assert {answer.status_code for answer in others} == {429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in others)


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        ("/query", {"query": {"text": "a"}, "options": {"k": 6}}, "too many results"),
        ("/similar", {"id": 1, "options": {"k": 6}}, "too many results"),
        ("/search", {"vector": VECTOR, "options": {"space": SPACE, "k": 6}}, "too many results"),
        ("/categories", {"query": {"image": "data:;base64,"}, "k": 6}, "too many results"),
        ("/nearest-labelled", {"vector": VECTOR, "space": SPACE, "k": 6, "labels": 1}, "too many results"),
        ("/nearest-labelled", {"vector": VECTOR, "space": SPACE, "k": 1, "labels": 6}, "too many results"),
        ("/items", {"ids": [1] * 6}, "too many ids"),
        ("/embeddings", {"ids": [1] * 6, "space": SPACE}, "too many ids"),
        ("/query", {"query": {"text": "a", "want": [{"text": "b"}]}, "options": {"k": 1}}, "too many parts"),
        ("/query", {"query": {"want": [{"text": "b"}] * 1001}}, "request not valid"),
    ],
)
def test_the_limits_of_the_service_hold(
    app_client: Callable[..., TestClient], route: str, body: Any, reason: str
) -> None:
    answer = app_client(limits=Limits(results=5, parts=1)).post(f"{STORE}{route}", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)


def test_a_list_of_very_many_parts_is_not_read(client: TestClient) -> None:
    body = {"want": [{"text": "b"}] * 1001}
    answer = client.post("/v1/collections/photos/search", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, "request not valid")


def test_queries_of_the_client_are_counted(client: TestClient) -> None:
    def count() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("pixmatcher_queries_total"))

    before = count()
    vector = client.post(f"{STORE}/embeddings", json=POSTS["/embeddings"]).json()["rows"]
    for route in ("/query", "/similar", "/search"):
        body = {"vector": vector, "options": {"space": SPACE}} if route == "/search" else POSTS[route]
        assert client.post(f"{STORE}{route}", json=body).status_code == 200
    assert count() == before + 3
