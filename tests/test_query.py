"""The input of a user becomes a query, or an error of one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixmatcher import (
    Collection,
    EncoderError,
    Filter,
    InvalidImageError,
    Item,
    PixMatcherError,
    Query,
    QueryError,
    SearchOptions,
    encoders,
    index,
    open_image,
    search,
)
from pixmatcher.images import ImageSource, fit_image
from pixmatcher.net.fetch import MAX_BYTES
from pixmatcher.records import EncoderRecord, Space
from pixmatcher.searching import parse_query, search_batch, search_similar
from pixmatcher.searching.query import parse_line
from support import TinyEncoder, paint, paint_many

SEARCH_STDIN = [sys.executable, "-m", "pixmatcher", "search", "-"]


@pytest.fixture
def collection(tmp_path: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collection]:
    """A collection of the three painted images in the folder `photos`, in the working folder."""
    monkeypatch.chdir(tmp_path)
    paint_many(tmp_path / "photos", 3)
    index("photos", encoders=["tiny"])
    with Collection.open("photos") as opened:
        yield opened


# ---- Standard input ----


def test_an_image_on_standard_input_can_be_as_large_as_a_fetched_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(MAX_BYTES))))
    assert parse_query(["-"]).image == bytes(MAX_BYTES)


def test_a_larger_image_on_standard_input_is_not_called_truncated() -> None:
    done = subprocess.run(SEARCH_STDIN, input=b"BM" + bytes(MAX_BYTES), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == b"Error: The image on standard input is larger than 25 MB: give its path.\n"


@pytest.mark.parametrize(
    ("redirection", "message"),
    [("<&-", "Standard input is closed:"), ("0>/dev/null", "Standard input cannot be read (")],
)
def test_an_unusable_standard_input_is_reported_in_one_sentence(redirection: str, message: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *SEARCH_STDIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---- Texts ----


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_text_with_an_image_is_ignored(collection: Collection, blank: str) -> None:
    image = "photos/00001.png"
    alone = search(collection, parse_query([image]))
    assert alone.space == "visual"
    lines = [json.dumps({"text": blank, "image": image})]
    for answer in (search(collection, parse_query([blank, image])).as_json(), *search_batch(collection, lines)):
        assert {**answer, "took_ms": 0} == {**alone.as_json(), "took_ms": 0}


@pytest.mark.parametrize("line", ['{"text": "red"}', "red"])
def test_a_byte_order_mark_is_not_part_of_the_first_line(collection: Collection, line: str) -> None:
    Path("queries.txt").write_text(f"{line}\n{line}\n", encoding="utf-8-sig")
    with open("queries.txt", encoding="utf-8") as lines:
        first, second = search_batch(collection, lines)
    assert first["query"] == "red"
    assert first["hits"] == second["hits"]


def test_a_text_that_is_not_unicode_is_refused_from_python_too(tmp_path: Path) -> None:
    paint(tmp_path / "red.png", 1)
    index(tmp_path)
    with Collection.open(tmp_path) as opened:
        for query in ("caf\udce9", Query("caf\udce9", tmp_path / "red.png")):
            with pytest.raises(QueryError, match=r"^The text is not valid Unicode: write it in UTF-8"):
                search(opened, query)


def test_a_word_that_names_a_folder_is_a_text(collection: Collection) -> None:
    assert parse_query(["photos"]) == Query("photos")
    assert parse_query(["red", "photos"]) == Query("red photos")
    assert parse_query(["red/blue/"]) == Query("red/blue/")


@pytest.mark.parametrize("path", [".", "..", "/", "./", "../", "photos/", "./photos", "photos/.", "photos/..", "a.jpg"])
def test_the_path_of_a_folder_is_not_an_image(collection: Collection, path: str) -> None:
    Path("a.jpg").mkdir()
    with pytest.raises(QueryError, match="is a folder, not an image: index it, or give the path of an image in it"):
        parse_query([path, "red"])
    (answer,) = search_batch(collection, [json.dumps({"image": path})])
    assert "is a folder" in answer["error"]


# ---- Images that cannot be used ----


@pytest.fixture
def broken(collection: Collection) -> None:
    """Files in the working folder that are not images, and one that is cut short."""
    Path("empty.jpg").touch()
    Path("page.png").write_text("<html>")
    whole = paint("whole.png", 1).read_bytes()
    Path("cut.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("name", "reason"), [("empty.jpg", "empty file"), ("page.png", "not an image"), ("cut.png", "truncated")]
)
def test_an_unusable_image_is_reported(collection: Collection, broken: None, name: str, reason: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        search(collection, parse_query([name]))
    assert str(caught.value).startswith(f"{name} cannot be used as a query ({reason}")
    assert str(caught.value).endswith("): choose another image.")
    assert (caught.value.reason, caught.value.exit_code) == (reason, 1)
    cause = caught.value.__cause__
    assert isinstance(cause, InvalidImageError)
    assert (cause.reason, cause.detail) == (reason, caught.value.detail)
    (answer,) = search_batch(collection, [json.dumps({"image": name, "text": "red"})])
    assert answer["error"] == str(caught.value)


@pytest.mark.parametrize(
    ("image", "name", "shown"),
    [
        (b"", "-", "The image on standard input"),
        (b"", "http://photos.example/a", "http://photos.example/a"),
        (b"", None, "The image"),
        (np.zeros((2, 2, 2)), None, "The image"),
        ("photos", None, "photos"),
    ],
)
def test_an_image_that_is_not_a_file_is_reported(
    collection: Collection, image: ImageSource, name: str | None, shown: str
) -> None:
    with pytest.raises(InvalidImageError) as caught:
        search(collection, Query(image=image, image_name=name))
    assert str(caught.value).startswith(f"{shown} cannot be used as a query (")


# ---- Encoders that cannot be used here ----


@pytest.fixture
def half_usable(tmp_path: Path, tiny: TinyEncoder) -> Iterator[Collection]:
    """A collection with two encoders; the first one, for images and texts, is missing on this machine."""
    picture = paint(tmp_path / "a.png", 1)
    away = EncoderRecord(f"onnx:{tmp_path / 'nowhere'}", "x", (Space("away", 4, text=True), Space("away-image", 4)))
    with Collection.create(tmp_path / "half", [away, tiny]) as made:
        embeddings = tiny.encode_images(fit_image(open_image(picture), tiny.recipe)[None])
        lost = {name: np.ones((1, 4), np.float32) for name in ("away", "away-image")}
        made.add([Item(str(picture), content_hash="a")], embeddings | lost)
        yield made


def test_another_encoder_is_used_if_the_first_cannot_be_used(half_usable: Collection, tmp_path: Path) -> None:
    by_text = search(half_usable, "a cat")
    by_image = search(half_usable, Query(image=tmp_path / "a.png"))
    assert [by_text.space, by_image.space] == ["semantic", "visual"]
    assert by_image.hits[0].score == pytest.approx(1, abs=0.01)
    for result in (by_text, by_image):
        assert result.note.startswith("The encoder tiny is used, because onnx:")
        assert "nowhere" in result.note
        assert result.as_json()["note"] == result.note
    assert "note" not in search(half_usable, "a cat", SearchOptions(space="semantic")).as_json()


def test_a_requested_space_is_not_replaced(half_usable: Collection) -> None:
    with pytest.raises(EncoderError, match="The collection was made with the encoder onnx:"):
        search(half_usable, "a cat", SearchOptions(space="away"))


def test_if_no_encoder_can_be_used_one_error_says_so(half_usable: Collection) -> None:
    encoders.unregister_encoder("tiny")
    with pytest.raises(EncoderError, match=r"^None of the encoders of this collection can be used here\. The coll"):
        search(half_usable, "a cat")


# ---- Options ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "The number of results must be 1 or more, not 0."),
        ({"k": 2.5}, "The number of results must be a whole number, not 2.5."),
        ({"k": "5"}, "The number of results must be a whole number, not '5'."),
        ({"min_score": float("nan")}, "The lowest score must be a number, not nan."),
        ({"min_score": "0.5"}, "The lowest score must be a number, not '0.5'."),
    ],
)
def test_options_are_checked_when_they_are_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError) as caught:
        SearchOptions(**options)
    assert str(caught.value) == message


def test_all_functions_accept_the_same_options(collection: Collection) -> None:
    first = next(collection.items())
    options = SearchOptions(k=np.int64(2), space="visual", filter=Filter(folder="photos"), exact=True)
    query = Query(image=first.uri)
    found = search(collection, query, options)
    assert found.space == "visual"
    assert len(found.hits) == 2
    similar = search_similar(collection, first.id, options).hits  # the scores differ by rounding to float16
    assert [hit.item for hit in similar] == [hit.item for hit in found.hits]
    (answer,) = search_batch(collection, [json.dumps({"image": first.uri})], options)
    assert answer["hits"] == found.as_json()["hits"]
    assert search(collection, query, options, k=1).hits == found.hits[:1]  # the argument k overrides the options
    assert search(collection, query, SearchOptions(min_score=2)).hits == []
    assert search(collection, query, SearchOptions(filter=Filter(folder="elsewhere"))).hits == []
    assert len(search(collection, query).hits) == 3


def test_a_line_of_a_batch_that_is_a_file_is_an_image(collection: Collection, tmp_path: Path) -> None:
    first = next(collection.items())
    shutil.copy(first.uri, tmp_path / "copy of it")
    lines = [first.uri, str(tmp_path / "copy of it"), "a cat", "missing.jpg"]
    by_path, by_copy, by_text, by_missing = search_batch(collection, lines)
    expected = search(collection, parse_query([first.uri])).as_json()["hits"]
    assert by_path["hits"] == by_copy["hits"] == expected
    assert by_text["hits"] == search(collection, "a cat").as_json()["hits"]
    assert by_missing["hits"] == search(collection, "missing.jpg").as_json()["hits"]
    assert by_text["hits"] != expected


def test_a_line_of_a_batch_that_is_in_a_tar_file_is_an_image(collection: Collection, tmp_path: Path) -> None:
    first = next(collection.items())
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(first.uri, "inner/a b.png")
    line = str(tmp_path / "some.tar" / "inner" / "a b.png")
    inside, missing = search_batch(collection, [line, str(tmp_path / "none.tar" / "a b.png")])
    assert inside["hits"] == search(collection, parse_query([first.uri])).as_json()["hits"]
    assert "There is no file" in missing["note"]


def test_a_large_data_url_is_refused() -> None:
    url = "data:image/png;base64," + "A" * (MAX_BYTES // 3 * 4 + 8)
    with pytest.raises(QueryError, match="is larger than 25 MB") as caught:
        parse_query([url])
    assert len(str(caught.value)) < 200
    with pytest.raises(QueryError, match="is larger than 25 MB"):
        parse_query(["data:image/png," + "%00" * (MAX_BYTES + 1)])
    with pytest.raises(QueryError, match="longer than 10,000"):
        parse_query(["data " * 5000])


_PIECES = ["data:", "file:", "//", "/", "localhost", "image/png", ";base64", ",", ".png", "%00", "%C3", "~/", "'", '"']
_PIECES += [*"a=+-_ .?#", "\\", "\n", "\u202e", "\udcff", "\0"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=20).map("".join).filter(lambda text: text != "-"))
def test_any_text_is_a_query_or_an_error_of_one_sentence(text: str) -> None:
    for parse in (parse_line, lambda line: parse_query([line])):
        query = None
        with contextlib.suppress(PixMatcherError):
            query = parse(text)
        assert query is None or query.text is not None or query.image is not None
