"""Exports: the content of the files, their import, and errors."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pixmatcher
from pixmatcher import (
    Collection,
    CollectionError,
    Item,
    PixMatcherError,
    Query,
    export_arrays,
    export_parquet,
    index,
    search,
)
from pixmatcher._text import name_as_unicode
from pixmatcher.export import _arrays
from support import TinyEncoder, bound_by_permissions, cli, paint, paint_many

WORDS = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat"}


@pytest.fixture
def labelled(tiny: TinyEncoder, tmp_path: Path) -> Iterator[Collection]:
    """A collection of six images with named labels, two without a label, and one whose file name is not Unicode."""
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(WORDS):
        for image in range(3):
            paint(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 10 * number + image, kind="JPEG")
    (root / "wnids.txt").write_text("\n".join(WORDS))
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in WORDS.items()))
    photos = tmp_path / "photos"
    paint_many(photos, 2, first=100)
    paint(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.png"), 200)
    index([f"tiny-imagenet:{root}", photos], tmp_path / "c", encoders=["tiny"])
    with Collection.open(tmp_path / "c") as collection:
        yield collection


def state(collection: Collection) -> dict[str, tuple[object, ...]]:
    """Return the label and the embeddings of each item by its uri."""
    return {
        item.uri: (item.label, *(collection.embeddings([item.id], space).tolist() for space in collection.spaces))
        for item in collection.items()
    }


def test_the_content_of_the_arrays(labelled: Collection, tmp_path: Path) -> None:
    files = export_arrays(labelled, tmp_path / "deep" / "out")
    assert sorted(path.name for path in files) == sorted(os.listdir(tmp_path / "deep" / "out"))
    items = list(labelled.items())
    for name, space in (("embeddings.npy", "visual"), ("embeddings_semantic.npy", "semantic")):
        saved = np.load(tmp_path / "deep" / "out" / name, allow_pickle=False)
        assert (saved.dtype, saved.flags.c_contiguous) == (np.dtype("<f4"), True)
        np.testing.assert_array_equal(saved, labelled.embeddings([item.id for item in items], space))
    categories = np.load(tmp_path / "deep" / "out" / "categories.npy", allow_pickle=False)
    assert categories.dtype.kind == "U"
    assert categories.tolist() == [item.label or "" for item in items]
    assert json.loads((tmp_path / "deep" / "out" / "uris.json").read_bytes()) == [
        name_as_unicode(item.uri) for item in items
    ]
    about = json.loads((tmp_path / "deep" / "out" / "encoder.json").read_bytes())
    assert about["further"][0].pop("file") == "embeddings_semantic.npy"
    assert about == {
        "file": "embeddings.npy",
        "encoder": "tiny",
        "fingerprint": "tiny-1",
        "space": "visual",
        "dimension": 48,
        "text": False,
        "unit_length": True,
        "rows": 9,
        "further": [
            {
                "encoder": "tiny",
                "fingerprint": "tiny-1",
                "space": "semantic",
                "dimension": 24,
                "text": True,
                "unit_length": False,
            }
        ],
        "label_names": WORDS,
        "pixmatcher": pixmatcher.__version__,
    }


def test_an_export_can_be_imported(labelled: Collection, tmp_path: Path) -> None:
    export_arrays(labelled, tmp_path / "out")
    report = index(f"arrays:{tmp_path / 'out' / 'embeddings.npy'}", tmp_path / "back")
    assert (report.added, report.failures) == (9, [])
    with Collection.open(tmp_path / "back") as back:
        assert state(back) == state(labelled)
        assert back.encoders == labelled.encoders
        assert back.label_names() == WORDS
        assert back.verify() == []
        for query in ("a fish", Query(image=next(labelled.items()).uri)):
            ours, theirs = (search(c, query, k=5) for c in (labelled, back))
            assert theirs.space == ours.space
            assert [(h.item.uri, h.score) for h in theirs.hits] == [(h.item.uri, h.score) for h in ours.hits]


def test_one_space_alone(labelled: Collection, tmp_path: Path) -> None:
    export_arrays(labelled, tmp_path / "out", space="semantic")
    assert sorted(os.listdir(tmp_path / "out")) == ["categories.npy", "embeddings.npy", "encoder.json", "uris.json"]
    index(f"arrays:{tmp_path / 'out' / 'embeddings.npy'}", tmp_path / "back")
    with Collection.open(tmp_path / "back") as back:
        assert list(back.spaces) == ["semantic"]
        assert {uri: values[1] for uri, values in state(back).items()} == {
            uri: values[2] for uri, values in state(labelled).items()
        }
        # An image is searched in the only existing space.
        assert search(back, Query(image=next(back.items()).uri)).space == "semantic"
    for export in (export_arrays, export_parquet):
        with pytest.raises(CollectionError, match="choose one of visual, semantic"):
            export(labelled, tmp_path / "out", space="none")


def test_all_blocks_are_of_one_state_of_the_collection(
    labelled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes and adds items while blocks of two rows are written."""
    monkeypatch.setattr("pixmatcher.export._files._ROWS_AT_ONCE", 2)
    expected = state(labelled)
    changed = []

    def are_units(rows: np.ndarray) -> bool:
        if not changed:
            with Collection.open(tmp_path / "c") as other:
                changed.append(other.remove(item.id for item in list(other.items())[3:6]))
                other.add([Item("/new.png", "0")], {"visual": np.ones((1, 48)), "semantic": np.ones((1, 24))})
        return True

    monkeypatch.setattr(_arrays, "_are_units", are_units)
    export_arrays(labelled, tmp_path / "out")
    assert changed == [3]
    index(f"arrays:{tmp_path / 'out' / 'embeddings.npy'}", tmp_path / "back")
    with Collection.open(tmp_path / "back") as back:
        assert state(back) == expected
    # The next export is of the new state.
    export_arrays(labelled, tmp_path / "out")
    uris = json.loads((tmp_path / "out" / "uris.json").read_bytes())
    assert len(uris) == len(np.load(tmp_path / "out" / "embeddings.npy")) == 7
    assert uris[-1] == "/new.png"


def test_an_empty_collection(tiny: TinyEncoder, tmp_path: Path) -> None:
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        export_arrays(collection, tmp_path / "out")
        (table,) = export_parquet(collection, tmp_path / "out")
    assert np.load(tmp_path / "out" / "embeddings.npy").shape == (0, 48)
    assert np.load(tmp_path / "out" / "categories.npy").shape == (0,)
    assert json.loads((tmp_path / "out" / "uris.json").read_bytes()) == []
    assert table.stat().st_size
    assert index(f"arrays:{tmp_path / 'out' / 'embeddings.npy'}", tmp_path / "back").total == 0


def test_parquet(labelled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("pixmatcher.export._files._ROWS_AT_ONCE", 4)
    assert export_parquet(labelled, tmp_path / "out") == [tmp_path / "out" / "images.parquet"]
    file = parquet.ParquetFile(tmp_path / "out" / "images.parquet")
    assert file.metadata.num_row_groups == 3
    rows = file.read().to_pylist()
    items = list(labelled.items())
    for row, item in zip(rows, items, strict=True):
        assert row.pop("label_name") == WORDS.get(item.label or "")
        for space in ("visual", "semantic"):
            assert row.pop(space) == labelled.embeddings([item.id], space)[0].tolist()
        uri = name_as_unicode(item.uri)
        assert row == {name: getattr(item, name) for name in row} | {"uri": uri, "details": None}
        assert row["id"] == item.id
    assert str(file.schema_arrow.field("visual").type) == "fixed_size_list<element: float>[48]"
    vectors = {"visual": np.ones((1, 48)), "semantic": np.ones((1, 24))}
    labelled.add([Item("https://images.example/1.jpg", "0", details={"author": "A. Author"})], vectors)
    assert export_parquet(labelled, tmp_path / "one.parquet", space="visual") == [tmp_path / "one.parquet"]
    assert json.loads(parquet.read_table(tmp_path / "one.parquet")["details"][9].as_py()) == {"author": "A. Author"}
    assert "semantic" not in parquet.read_schema(tmp_path / "one.parquet").names


def test_parquet_without_pyarrow(labelled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PixMatcherError, match=r"pip install 'pixmatcher\[parquet\]'"):
        export_parquet(labelled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_export_replaces_the_last_one_completely_or_not_at_all(labelled: Collection, tmp_path: Path) -> None:
    """With a limit on the size of files, as on a full disk."""
    out = tmp_path / "out"
    for kind in ("arrays", "parquet"):
        for files in (100, 1000):
            assert cli("export", kind, "-c", tmp_path / "c", "--to", out).returncode == 0
            before = {path.name: path.read_bytes() for path in out.iterdir()}
            limit = lambda files=files: resource.setrlimit(resource.RLIMIT_FSIZE, (files, files))  # noqa: E731
            done = cli("export", kind, "-c", tmp_path / "c", "--to", out, preexec_fn=limit)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
            assert "make room and export again" in done.stderr
            assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    shutil.rmtree(out)


def test_unwritable_folders_are_refused(labelled: Collection, tmp_path: Path, open_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    for kind in ("arrays", "parquet"):
        done = cli("export", kind, "-c", tmp_path / "c", "--to", tmp_path / "file" / "below")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "cannot be written" in done.stderr
        assert "--to" in done.stderr
    shutil.copytree(tmp_path / "c", open_folder / "c")
    (open_folder / "closed").mkdir(mode=0o555)
    done = cli(
        "export", "arrays", "-c", open_folder / "c", "--to", open_folder / "closed", preexec_fn=bound_by_permissions()
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Permission denied" in done.stderr


def test_from_the_command_line(labelled: Collection, tmp_path: Path) -> None:
    done = cli("export", "arrays", "-c", "c", "--to", "out", "--space", "visual", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "9 images saved to out/embeddings.npy" in done.stdout
    for arguments, words in (
        (("pickle", "--to", "out"), "choose arrays or parquet"),
        (("arrays", "--to", "out", "--space", "none"), "choose one of visual, semantic"),
        (("arrays",), "--to"),
    ):
        wrong = cli("export", *arguments, "-c", "c", cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
        assert words in wrong.stderr


def test_the_bundled_encoder(tmp_path: Path) -> None:
    photos = Path(__file__).parents[1] / "examples" / "photos"
    for name in ("cat.jpg", "horse.jpg", "rocket.jpg"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(photos / name, tmp_path / "photos")
    index(tmp_path / "photos")
    with Collection.open(tmp_path / "photos") as ours:
        export_arrays(ours, tmp_path / "out")
        index(f"arrays:{tmp_path / 'out' / 'embeddings.npy'}", tmp_path / "back", encoders=["lite"])
        with Collection.open(tmp_path / "back") as back:
            assert state(back) == state(ours)
            for query in ("a cat asleep", Query(image=tmp_path / "photos" / "horse.jpg")):
                assert [(h.item.uri, h.score) for h in search(back, query).hits] == [
                    (h.item.uri, h.score) for h in search(ours, query).hits
                ]
    # Its images can be indexed into the collection of the import.
    shutil.copy(photos / "coffee.jpg", tmp_path / "photos")
    report = index(tmp_path / "photos", tmp_path / "back")
    assert (report.added + report.changed, report.failures) == (4, [])
