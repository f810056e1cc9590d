"""File names that are not Unicode: other programs must keep them in JSON, and PixMatcher must find the file again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, Filter, QueryError, SearchOptions, index, search
from pixmatcher._text import as_unicode, name_as_unicode
from pixmatcher._urls import path_of_file_url
from pixmatcher.export import export_arrays, export_parquet
from pixmatcher.searching import parse_query, query_from_json, search_batch
from support import TinyEncoder, cli, paint

NAMES = [b"caf\xe9 100%.png", b"\xff.png", b"\xfe.png", b"plain.png", "\u732b.png".encode()]
UNDECODABLE = 3

PROGRAMS = {
    "jq": ["jq", "-c", "."],
    "node": [
        "node",
        "-e",
        "process.stdout.write(JSON.stringify(JSON.parse(require('fs').readFileSync(0,'utf8'))).toWellFormed?.() ?? '')",
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images, some of which have names that are not UTF-8, in a folder of such a name."""
    folder = tmp_path / os.fsdecode(b"pictures \xe4")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes no names that are not UTF-8")
    for seed, name in enumerate(NAMES):
        paint(folder / os.fsdecode(name), seed)
    return folder


def has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs_keep_the_names_in_json(folder: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    assert cli("index", folder).returncode == 0
    query = os.fsencode(folder) + b"/" + NAMES[1]
    printed = cli("search", os.fsdecode(query), "-c", folder, "--json").stdout
    read = subprocess.run(PROGRAMS[program], input=printed.encode(), capture_output=True, check=True).stdout.decode()
    if not read:
        pytest.skip("this version of node cannot say whether a text is Unicode")
    answer = json.loads(read)
    assert answer == json.loads(printed)
    uris = [hit["uri"] for hit in answer["hits"]]
    assert not any(map(has_surrogate, (*uris, answer["query"])))
    assert "\ufffd" not in "".join(uris)
    assert {os.fsencode(path_of_file_url(uri)) for uri in uris} == {os.fsencode(folder) + b"/" + name for name in NAMES}
    # Each uri finds its own image when it is given back.
    for uri in (*uris, answer["query"]):
        found = json.loads(cli("search", uri, "-c", folder, "-k", "1", "--json").stdout)
        assert found["hits"][0]["uri"] == uri
        assert found["hits"][0]["score"] > 0.999


def test_a_name_that_is_unicode_stays_a_path(tmp_path: Path, tiny: TinyEncoder) -> None:
    path = paint(tmp_path / "caf\u00e9 100%.png", 1)
    index(tmp_path, encoders=["tiny"])
    with Collection.open(tmp_path) as collection:
        assert search(collection, query_from_json({"image": str(path)})).as_json()["hits"][0]["uri"] == str(path)


def test_the_url_is_accepted_wherever_a_path_is(
    folder: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(folder, encoders=["tiny"])
    path = folder / os.fsdecode(NAMES[0])
    url = name_as_unicode(str(path))
    assert url.startswith("file:///")
    assert os.fspath(parse_query([url]).image) == str(path)  # type: ignore[arg-type]
    assert os.fspath(query_from_json({"image": url}).image) == str(path)  # type: ignore[arg-type]
    with Collection.open(folder) as collection:
        lines = [url, json.dumps({"image": url}), str(path), "file:///missing%ff.png", "file://server/a.png"]
        *answers, missing, elsewhere = search_batch(collection, lines, k=1)
        assert {answer["hits"][0]["uri"] for answer in answers} == {url}
        assert {answer["query"] for answer in answers} == {url}
        assert "does not exist" in missing["error"]
        assert "another machine" in elsewhere["error"]
        json.dumps([*answers, missing], ensure_ascii=False).encode()
        monkeypatch.chdir(folder)
        assert search(collection, parse_query([path.name]), k=1).as_json()["query"] == url
        inside = SearchOptions(filter=Filter(folder=name_as_unicode(str(folder))))
        assert len(search(collection, "a text", inside).hits) == len(NAMES)
        assert collection.forget(name_as_unicode(str(folder))) == len(NAMES)
    with pytest.raises(QueryError, match="does not exist"):
        parse_query(["file:/missing.png"])


def test_exports_have_the_same_uris_and_can_be_imported(folder: Path, tmp_path: Path, tiny: TinyEncoder) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    index(folder, encoders=["tiny"])
    with Collection.open(folder) as collection:
        paths = [item.uri for item in collection.items()]
        export_arrays(collection, tmp_path / "saved")
        (file,) = export_parquet(collection, tmp_path / "images.parquet")
    listed = json.loads((tmp_path / "saved" / "uris.json").read_text())
    assert listed == parquet.read_table(file)["uri"].to_pylist() == [*map(name_as_unicode, paths)]
    assert sum(map(has_surrogate, paths)) == len(NAMES)
    assert not any(map(has_surrogate, listed))
    index(f"arrays:{tmp_path}/saved/embeddings.npy", tmp_path / "imported")
    with Collection.open(tmp_path / "imported") as imported:
        assert sorted(item.uri for item in imported.items()) == sorted(paths)


def test_texts_that_name_no_file_get_escapes() -> None:
    assert as_unicode("caf\udce9") == "caf\\udce9"
    assert name_as_unicode("missing\udce9.jpg") == "missing\\udce9.jpg"
    assert name_as_unicode("/\ud800.jpg") == "/\\ud800.jpg"  # no bytes have this name
    assert name_as_unicode("https://h.example/\udce9") == "https://h.example/\\udce9"
    assert np.all([name_as_unicode(text) == text for text in ("", "/a b.jpg", "\u732b", "https://h.example/a")])
