"""Calls the service with all that its schema allows, and with what it does not allow.

`PIXMATCHER_SCHEMA_EXAMPLES` is the number of examples of each route; 400 make more than 10,000 requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

import hypothesis  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from hypothesis import given  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.core.errors import SchemathesisError  # noqa: E402
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance  # noqa: E402

from pixmatcher import index  # noqa: E402
from pixmatcher.server import Limits, ServerSettings, create_app  # noqa: E402

ROOT = Path(__file__).parents[2]
NAME = "photos"
TOKEN = "pxm_" + "t" * 43
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}
EXAMPLES = int(os.environ.get("PIXMATCHER_SCHEMA_EXAMPLES", "5"))
pytestmark = pytest.mark.xdist_group("schema")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ServerSettings:
    """Return the settings of a service with a collection of five photos."""
    folder = tmp_path_factory.mktemp("schema")
    photos = folder / "photos"
    photos.mkdir()
    for path in sorted((ROOT / "examples" / "photos").glob("*.jpg"))[:5]:
        shutil.copy(path, photos)
    index(photos, folder / "collection")
    tokens = folder / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"tests write sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    return ServerSettings(
        {NAME: str(folder / "collection")},
        token_file=tokens,
        limits=Limits(body_bytes=1 << 20),
        state_folder=folder / "state",
        source_folders=(photos,),
    )


@pytest.fixture(scope="module")
def client(settings: ServerSettings) -> Iterator[TestClient]:
    """Return a client of the running application that gets errors of the service as answers."""
    app = create_app(settings)
    with TestClient(app, "http://localhost", raise_server_exceptions=False, headers=AUTHORIZATION) as client:
        yield client


@pytest.fixture(scope="module")
def api(client: TestClient) -> Any:
    """Return the schema with the application, which `client` starts and stops."""

    async def started(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError  # schemathesis would stop and start it between tests
        await client.app(scope, receive, send)

    return schemathesis.openapi.from_asgi("/openapi.json", started, headers=AUTHORIZATION)


STARTS_JOBS = ("/sources", "/watch")
"""Routes that start processes, which take seconds each."""


def _routes() -> list[tuple[str, str]]:
    paths = create_app(ServerSettings({})).openapi()["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


statuses: Counter[int] = Counter()
"""The statuses of all answers to schemathesis."""


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("path", "method"), _routes())
def test_answers_fit_the_schema(api: Any, path: str, method: str, mode: GenerationMode) -> None:
    try:
        calls = api[path][method].as_strategy(generation_mode=mode)
    except SchemathesisError as error:
        pytest.skip(str(error))

    @given(case=calls)
    @hypothesis.settings(
        max_examples=min(EXAMPLES, 2) if path.endswith(STARTS_JOBS) and method != "get" else EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def call(case: Any) -> None:
        aim(case, mode)
        # A schema cannot say all, for instance that a query needs a text, an image, an item or a vector.
        excluded = [positive_data_acceptance]
        if method == "get":  # what is wrong as a value may be a good text in a URL: label=false
            excluded.append(negative_data_rejection)
        answer = case.call_and_validate(headers=AUTHORIZATION, excluded_checks=excluded)
        statuses[answer.status_code] += 1

    try:
        call()
    except hypothesis.errors.Unsatisfiable:
        pytest.skip("nothing can be wrong in a call without parameters")


def test_many_calls_were_good() -> None:
    # If the schema were stricter or vaguer than the service, nearly all calls would be refused.
    assert statuses[200] > sum(statuses.values()) / 10, statuses


def aim(case: Any, mode: GenerationMode) -> None:
    """Make a call name the collection and items that exist, which a random text never does."""
    parameters = case.path_parameters or {}
    if "collection" in parameters:
        parameters["collection"] = NAME
    for name, value in parameters.items():
        if mode == GenerationMode.POSITIVE and name in ("id", "item") and isinstance(value, int):
            parameters[name] = 1 + value % 6


DAMAGED_JSON = {
    "empty": b"",
    "nothing but spaces": b"   ",
    "not closed": b'{"text": "a dog"',
    "invalid UTF-8": b'{"text": "a \xff\xfe dog"}',
    "UTF-16": '{"text": "a dog"}'.encode("utf-16"),
    "a lone surrogate": b'{"text": "a \\ud800 dog"}',
    "NUL characters": b'{"text": "\\u0000\\u0000"}',
    "not a number": b'{"text": "a dog", "k": NaN}',
    "infinity": b'{"text": "a dog", "min_score": Infinity}',
    "a huge number": b'{"text": "a dog", "k": ' + b"9" * 5000 + b"}",
    "a huge exponent": b'{"text": "a dog", "min_score": 1e999}',
    "a large integer": b'{"text": "a dog", "k": 9223372036854775808}',
    "deep lists": b'{"want": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"want":' * 50_000 + b"1" + b"}" * 50_000,
    "a list": b"[]",
    "null": b"null",
    "a text": b'"a dog"',
    "a name twice": b'{"text": "a dog", "text": 5}',
    "a path as image": b'{"image": "/etc/passwd"}',
    "a file URL": b'{"image": "file:///etc/passwd"}',
    "an empty vector": b'{"vector": []}',
    "a vector of infinities": b'{"vector": [1e308, 1e308, -1e999], "space": "semantic"}',
    "a damaged data URL": b'{"image": "data:image/png;base64,####"}',
    "an image that is none": b'{"image": "data:image/png;base64,AAAA"}',
}
POSTS = ("search", "search/batch", "categories", "sources", "items/embeddings")


@pytest.mark.parametrize("route", [*(f"/v1/collections/{NAME}/{each}" for each in POSTS), "/v1/embeddings"])
@pytest.mark.parametrize("body", DAMAGED_JSON.values(), ids=DAMAGED_JSON)
def test_damaged_json_gets_a_problem_or_an_answer(client: TestClient, route: str, body: bytes) -> None:
    answer = client.post(route, content=body, headers={"content-type": "application/json"})
    require_sound(answer)


FORM = "multipart/form-data; boundary=X"
PART = b'--X\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
OTHER_BODIES: dict[str, tuple[str, bytes]] = {
    "no type": ("", b'{"text": "a dog"}'),
    "XML": ("application/xml", b"<text>a dog</text>"),
    "an unknown charset": ("application/json; charset=klingon", b'{"text": "a dog"}'),
    "a type of control characters": ("application/\x7fjson", b"{}"),
    "a form": ("application/x-www-form-urlencoded", b"text=a+dog&k=%00%ff"),
    "no boundary": ("multipart/form-data", PART + b"abc\r\n--X--\r\n"),
    "another boundary": ("multipart/form-data; boundary=Y", PART + b"abc\r\n--X--\r\n"),
    "an endless boundary": ("multipart/form-data; boundary=" + "Y" * 5000, b"--" + b"Y" * 5000),
    "cut off": (FORM, PART + b"\xff\xd8\xff"),
    "empty": (FORM, b""),
    "no headers of a part": (FORM, b"--X\r\n\r\nabc\r\n--X--\r\n"),
    "damaged headers of a part": (FORM, b"--X\r\n\x00\xff: \r\n\r\nabc\r\n--X--\r\n"),
    "a name that is not UTF-8": (FORM, PART.replace(b'"image"', b'"\xff\xfe"') + b"abc\r\n--X--\r\n"),
    "no name": (FORM, b"--X\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--X--\r\n"),
    "an image that is none": (FORM, PART + b"abc\r\n--X--\r\n"),
    "an empty image": (FORM, PART + b"\r\n--X--\r\n"),
    "a text as image": (FORM, PART.replace(b'; filename="a.jpg"', b"") + b"abc\r\n--X--\r\n"),
    "damaged JSON": (FORM, PART.replace(b'"image"', b'"query"') + b"{\r\n--X--\r\n"),
    "2,000 parts": (FORM, (PART + b"a\r\n") * 2000 + b"--X--\r\n"),
    "a path as name of the file": (FORM, PART.replace(b"a.jpg", b"../../etc/passwd") + b"abc\r\n--X--\r\n"),
    "too large": (FORM, PART + b"a" * (2 << 20) + b"\r\n--X--\r\n"),
}


# Starlette leaves the file of a part that is cut off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("route", ["search", "categories", "search/batch"])
@pytest.mark.parametrize(("content_type", "body"), OTHER_BODIES.values(), ids=OTHER_BODIES)
def test_other_bodies_get_a_problem_or_an_answer(
    client: TestClient, route: str, content_type: str, body: bytes
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    require_sound(client.post(f"/v1/collections/{NAME}/{route}", content=body, headers=headers))


def test_random_damage_gets_a_problem_or_an_answer(client: TestClient) -> None:
    chance = random.Random(0)
    good = {
        "want": ["a dog", {"id": 1, "weight": 2}],
        "avoid": [{"text": "a cat"}],
        "k": 3,
        "filter": {"after": "2020"},
    }
    form = PART.replace(b'"image"; filename="a.jpg"', b'"query"') + json.dumps(good).encode() + b"\r\n--X--\r\n"
    for _ in range(20 * EXAMPLES):
        content_type, body = chance.choice([("application/json", json.dumps(good).encode()), (FORM, form)])
        damaged = bytearray(body)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(damaged))
            if chance.random() < 0.3:
                del damaged[place : place + chance.randint(1, 20)]
            else:
                damaged[place:place] = chance.randbytes(chance.randint(1, 4))
            damaged = damaged or bytearray(b"\0")
        answer = client.post(
            f"/v1/collections/{NAME}/search", content=bytes(damaged), headers={"content-type": content_type}
        )
        require_sound(answer, bytes(damaged))


def require_sound(answer: Any, body: bytes = b"") -> None:
    """Require an answer that is no error of the service, and a problem with all its fields if it is refused."""
    assert answer.status_code < 500, (answer.text, body)
    assert "/etc/passwd" not in answer.text or answer.status_code >= 400
    if answer.status_code < 400:
        json.loads(answer.content, parse_constant=_refuse)
        return
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["reason"]
    assert problem["detail"].endswith("."), problem
    assert "Traceback" not in problem["detail"]


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")
