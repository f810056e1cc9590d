"""Saved embeddings as a source: exports, files of the original project, hostile files, killed imports."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixmatcher import (
    Collection,
    CollectionError,
    EncoderError,
    Query,
    SourceError,
    export_arrays,
    index,
    search,
)
from pixmatcher._progress import Progress
from pixmatcher.encoders import describe_encoder, register_encoder, unregister_encoder
from pixmatcher.records import EncoderRecord, Space
from pixmatcher.searching import search_similar
from pixmatcher.sources import Entry, HoldsEmbeddings, Unusable, open_source
from pixmatcher.sources.arrays import spec_of
from support import TinyEncoder, cli, paint, paint_many

HERE = str(Path(__file__).parent)
MOBILENET, CLIP = "mobilenet_v3_large", "clip-vit-b-32"


def rows(count: int, dimension: int = 960, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


def save(folder: Path, array: np.ndarray, categories: Any = None, uris: Any = None, name: str = "embeddings") -> Path:
    """Save embeddings with their categories and uris; return the path of the embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", array)
    if categories is not None:
        np.save(folder / f"{name.replace('embeddings', 'categories')}.npy", categories)
    if uris is not None:
        (folder / "uris.json").write_text(json.dumps(uris))
    return folder / f"{name}.npy"


def entries(spec: str) -> list[Entry]:
    found = list(open_source(spec).scan())
    assert all(isinstance(entry, Entry) for entry in found), found
    return [entry for entry in found if isinstance(entry, Entry)]


def unit(array: np.ndarray) -> np.ndarray:
    """Return rows as a collection returns them."""
    lengths = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
    result: np.ndarray = (array / lengths).astype(np.float16).astype(np.float32)
    return result


def stored(collection: Path) -> dict[str, tuple[str | None, list[float]]]:
    with Collection.open(collection) as opened:
        (space,) = opened.spaces
        return {item.uri: (item.label, opened.embeddings([item.id], space)[0].tolist()) for item in opened.items()}


# Files of the original project, and the files in their folder


def test_files_of_the_original_project_for_tiny_imagenet(tmp_path: Path) -> None:
    place = tmp_path / "ressources"
    root = place / "tiny-imagenet-200"
    root.mkdir(parents=True)
    (root / "words.txt").write_text(
        "n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn00001740\tentity"
    )
    labels = ["n02124075", "n01443537", "n02124075", "n01443537", "n02124075"]
    numbers = [0, 0, 1, 1, 2]
    for name, encoder, dimension in (("MobilNetV3", MOBILENET, 960), ("CLIP", CLIP, 512)):
        array = 7 * rows(5, dimension)
        np.save(place / f"Tiny_ImageNet_{name}_Embeddings.npy", array)
        np.save(place / f"Tiny_ImageNet_{name}_Categories.npy", np.array(labels))
        (place / "images_urls.json").write_text('{"0": "of-another-data-set.jpg"}')
        report = index(f"arrays:{place / f'Tiny_ImageNet_{name}_Embeddings.npy'}", tmp_path / name)
        assert (report.added, report.failures) == (5, [])
        with Collection.open(tmp_path / name) as collection:
            assert [(e.name, e.fingerprint, e.spaces) for e in collection.encoders] == [
                (encoder, "", describe_encoder(encoder).spaces)
            ]
            assert collection.label_names() == {
                "n01443537": "goldfish, Carassius auratus",
                "n02124075": "Egyptian cat",
            }
            paths = [
                str(root / "train" / label / "images" / f"{label}_{number}.JPEG")
                for label, number in zip(labels, numbers, strict=True)
            ]
            by_uri = {item.uri: item for item in collection.items()}
            assert sorted(by_uri) == sorted(paths)
            assert [by_uri[path].label for path in paths] == labels
            # Searched by vector, and exported.
            (space,) = collection.spaces
            found = collection.embeddings([by_uri[path].id for path in paths], space)
            np.testing.assert_allclose(found, unit(array), atol=1e-4)
            hits = collection.search(array[2], space=space, k=1)
            assert hits[0].item.uri == paths[2]
            export_arrays(collection, tmp_path / f"{name}-out")
            # A query that needs the encoder says which.
            query = Query("a cat") if space == "clip" else Query(image=np.zeros((9, 9, 3), np.uint8))
            with pytest.raises(EncoderError, match=f"the encoder {encoder}. The encoder {encoder} needs PyTorch"):
                search(collection, query)
        index(f"arrays:{tmp_path / f'{name}-out' / 'embeddings.npy'}", tmp_path / f"{name}-back")
        assert stored(tmp_path / f"{name}-back") == stored(tmp_path / name)


def test_files_of_the_original_project_for_open_images(tmp_path: Path) -> None:
    save(tmp_path, rows(3), name="mobilenet_embeddings")
    np.save(tmp_path / "clip_embeddings.npy", rows(3, 512).astype(np.float16))
    (tmp_path / "image_urls.json").write_text(json.dumps({str(n): f"{n}.jpg" for n in (2, 0, 1)}))
    base = "https://images.example/some%20place/"
    for name in ("mobilenet", "clip"):
        spec = spec_of(str(tmp_path / f"{name}_embeddings.npy"), {"base": base})
        assert [entry.uri for entry in entries(spec)] == [f"{base}{n}.jpg" for n in range(3)]
        assert open_source(spec).spec == spec
        with pytest.raises(Exception, match="not here"):
            open_source(spec).open(f"{base}0.jpg")


def test_rows_without_uris(tmp_path: Path) -> None:
    path = save(tmp_path, rows(3), np.array(["a", "", "b"]))
    spec = f"arrays:{path}?encoder={MOBILENET}"
    assert [(entry.uri, entry.label) for entry in entries(spec)] == [
        (f"{path}#0", "a"),
        (f"{path}#1", None),
        (f"{path}#2", "b"),
    ]
    report = index(spec, tmp_path / "c")
    assert (report.added, index(collection=tmp_path / "c").unchanged) == (3, 3)
    # Uris that cannot be below the folder are refused.
    with pytest.raises(SourceError, match="name the file of the uris"):
        open_source(f"{spec}&base={tmp_path}")


def test_images_of_tiny_imagenet_in_another_folder(tmp_path: Path) -> None:
    path = save(tmp_path / "a", rows(2), np.array(["n01443537", "n01443537"]), name="mobilenet_embeddings")
    assert entries(f"arrays:{path}")[1].uri == f"{path}#1"
    assert entries(f"arrays:{path}?base={tmp_path / 'b'}")[1].uri == (
        f"{tmp_path}/b/train/n01443537/images/n01443537_1.JPEG"
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_embeddings_are_scaled_to_unit_length(tmp_path: Path, dtype: type) -> None:
    array = rows(6).astype(dtype)
    limits = np.finfo(dtype)
    array[1] *= 1000 if dtype == np.float16 else np.sqrt(limits.max)  # its square is beyond the type
    array[2] = np.where(np.arange(960) == 5, limits.max, 0)
    array[3] = np.where(np.arange(960) == 6, limits.smallest_subnormal, 0)
    path = save(tmp_path, array)
    assert index(f"arrays:{path}?encoder={MOBILENET}", tmp_path / "c").added == 6
    found = np.array([vector for _, vector in stored(tmp_path / "c").values()])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-3)
    np.testing.assert_allclose(found[0], unit(array[:1])[0], atol=1e-3)
    assert found[2][5] == found[3][6] == 1


def test_categories_and_uris_can_be_in_other_files(tmp_path: Path) -> None:
    path = save(tmp_path / "e", rows(3))
    other = tmp_path / "o & ?%20"
    other.mkdir()
    np.save(other / "labels.npy", np.array([b"a", "\u00e9".encode(), b""]))
    (other / "labels.json").write_text(json.dumps(["a", "\u00e9", None]))
    np.save(other / "numbers.npy", np.array([3, 1, 2]))
    (other / "names.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(["x/1.jpg", "/y/2.jpg", "https://z/3.jpg"]).encode()
    )
    np.save(other / "names.npy", np.array(["x/1.jpg", "/y/2.jpg", "https://z/3.jpg"]))
    for categories in ("labels.npy", "labels.json"):
        for uris in ("names.json", "names.npy"):
            options = {"categories": str(other / categories), "uris": str(other / uris), "encoder": MOBILENET}
            source = open_source(spec_of(str(path), options))
            assert open_source(source.spec).spec == source.spec
            found = [(e.uri, e.label) for e in source.scan() if isinstance(e, Entry)]
            assert found == [(f"{other}/x/1.jpg", "a"), ("/y/2.jpg", "\u00e9"), ("https://z/3.jpg", None)]
    options = {"categories": str(other / "numbers.npy"), "encoder": MOBILENET}
    assert [e.label for e in entries(spec_of(str(path), options))] == ["3", "1", "2"]


@pytest.mark.parametrize(
    "name", ["plain.npy", "100%25.npy", "what?.npy", "caf\u00e9 & co.npy", os.fsdecode(b"\xe9.npy")]
)
def test_a_spec_can_contain_any_file_name(tmp_path: Path, name: str) -> None:
    with open(tmp_path / name, "wb") as file:
        np.save(file, rows(2))
    spec = open_source(spec_of(str(tmp_path / name), {"encoder": MOBILENET})).spec
    spec.encode()
    assert index(spec, tmp_path / "c").added == 2
    assert index(collection=tmp_path / "c").unchanged == 2


def test_an_export_with_only_one_of_two_spaces_is_imported(tiny: TinyEncoder, tmp_path: Path) -> None:
    paths = paint_many(tmp_path / "photos", 4)
    index(tmp_path / "photos", encoders=["tiny"])
    with Collection.open(tmp_path / "photos") as ours:
        export_arrays(ours, tmp_path / "out")
    (tmp_path / "out" / "embeddings_semantic.npy").unlink()
    spec = f"arrays:{tmp_path / 'out' / 'embeddings.npy'}"
    index(spec, tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        assert list(collection.spaces) == ["visual"]
        assert search(collection, Query(image=paths[2]), k=1).hits[0].item.uri == str(paths[2])
        with pytest.raises(Exception, match="No encoder of this collection supports text"):
            search(collection, "a text")
    # Images are added to the existing space; a collection of both spaces does not accept one only.
    paint_many(tmp_path / "more", 2, first=10)
    assert index(tmp_path / "more", tmp_path / "c").added == 2
    with pytest.raises(CollectionError, match="no embeddings of the space semantic"):
        index(spec, tmp_path / "photos")
    # Without the card, the number of values decides the space.
    (tmp_path / "out" / "encoder.json").unlink()
    source = open_source(f"{spec}?encoder=tiny")
    assert isinstance(source, HoldsEmbeddings)
    assert [(e.name, e.fingerprint, [s.name for s in e.spaces]) for e in source.describes] == [
        ("tiny", "tiny-1", ["visual"])
    ]


# What does not fit


def test_embeddings_that_do_not_fit_the_collection_are_refused(tiny: TinyEncoder, tmp_path: Path) -> None:
    mobilenet, clip = save(tmp_path / "m", rows(2)), save(tmp_path / "c", rows(2, 512))
    paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", encoders=["tiny"])
    specs = [f"arrays:{mobilenet}?encoder={MOBILENET}", f"arrays:{clip}?encoder={CLIP}"]
    index(specs[0], tmp_path / "col")
    for sources, collection, encoders, words in (
        (specs[0], tmp_path / "photos", None, "no embeddings of the encoder tiny"),
        (specs[1], tmp_path / "col", None, "no embeddings of the encoder mobilenet"),
        (specs, tmp_path / "both", None, "no embeddings of the encoder mobilenet"),
        ([tmp_path / "photos", specs[0]], tmp_path / "both", None, "not available to encode .*photos"),
        (specs[0], tmp_path / "other", [CLIP], "was made with the encoders mobilenet"),
        (specs[0], None, None, "name one with -c FOLDER"),
    ):
        with pytest.raises(CollectionError, match=words):
            index(sources, collection, encoders=encoders)
    assert not (tmp_path / "both").exists()
    # Images need the encoder itself.
    with pytest.raises(EncoderError, match="needs PyTorch"):
        index(tmp_path / "photos", tmp_path / "col")


def header(text: str | bytes, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    size = len(data) if length is None else length
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", size) + data


def npy(shape: object, descr: object = "<f4", order: bool = False) -> bytes:
    return header(f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n") + bytes(960 * 4 * 3)


def saved(array: Any, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


class Bomb:
    """An object that creates a file called `bombed` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, ("bombed", "w"))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a .npy file"),
    "text": (b"1,2,3\n" * 100, "not a .npy file"),
    "zip": (b"PK\x03\x04" + bytes(100), "not a .npy file"),
    "magic only": (b"\x93NUMPY", "not a .npy file"),
    "version 3": (header("{}", b"\x03\x00"), "not a .npy file"),
    "version 9": (header("{}", b"\x09\x09"), "not a .npy file"),
    "header of 4 GB": (header("{}", b"\x02\x00", 0xFFFFFFF0), "not a .npy file"),
    "header of 20 KB": (header("{'descr': '<f4'" + " " * 20_000 + "}", b"\x02\x00"), "not a .npy file"),
    "nested header": (header("(" * 9000 + ")" * 900), "not a .npy file"),
    "no dictionary": (header("[1, 2]"), "not a .npy file"),
    "a call": (header("{'descr': '<f4', 'fortran_order': False, 'shape': exit()}"), "not a .npy file"),
    "bad type": (npy((3, 960), "<q9999999999"), "not a .npy file"),
    "half a type": (npy((3, 960), ()), "not a .npy file"),
    "pickled": (saved(np.array([Bomb(), Bomb()], dtype=object), allow_pickle=True), "pickled objects, which can run"),
    "pickle": (b"\x80\x04cbuiltins\nopen\n(X\x06\x00\x00\x00bombedX\x01\x00\x00\x00wtR.", "not a .npy file"),
    "records": (npy((3,), [("a", "<f4"), ("b", "<f4")]), "fields"),
    "parts": (npy((3,), [("a", "<f4", (2, 2))]), "fields"),
    "Fortran": (saved(np.asfortranarray(rows(3))), "Fortran order"),
    "0-d": (npy("()"), "one row an image"),
    "1-d": (npy("(960,)"), "one row an image"),
    "3-d": (npy((3, 30, 32)), "one row an image"),
    "no columns": (npy((3, 0)), "one row an image"),
    "wide": (npy((0, 10**12)), "one row an image"),
    "a truth value": (npy((True, 960)), "claims the shape"),
    "negative": (npy((-3, 960)), "claims the shape"),
    "both negative": (npy((-3, -960)), "claims the shape"),
    "huge": (npy((10**15, 960)), "cut short"),
    "beyond 64 bits": (npy((10**30, 960)), "cut short"),
    "cut": (saved(rows(3))[:-1], "cut short, it has 11,647 of 11,648 bytes"),
    "big-endian": (saved(rows(3).astype(">f4")), "type >f4"),
    "whole numbers": (saved(np.ones((3, 960), np.int64)), "type <i8"),
    "complex": (saved(np.ones((3, 960), np.complex64)), "type <c8"),
    "texts": (saved(np.full((3, 960), "a")), "type <U1"),
    "other dimension": (saved(rows(3, 100)), "100 values a row, but the encoder mobilenet_v3_large makes 960"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_without_embeddings_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, words = HOSTILE[name]
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        index(f"arrays:x.npy?encoder={MOBILENET}", "c")
    assert words in str(caught.value)
    assert str(tmp_path / "x.npy") in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["x.npy"]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_headers_only_raise_source_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "random_clip.npy"
    content = bytearray(saved(rows(2, 512)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 140))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        source = open_source(f"arrays:{path}")
        found = list(source.scan())
        assert isinstance(source, HoldsEmbeddings)
        source.embeddings([entry.uri for entry in found if isinstance(entry, Entry)])
    except SourceError:
        pass


def test_a_sparse_file_of_many_rows_is_not_read(tmp_path: Path) -> None:
    """The file has 1 TB, as its header says. The number of uris differs, and is compared first."""
    path = save(tmp_path, rows(1), uris=["a"])
    path.write_bytes(npy((10**9 // 4, 960)))
    os.truncate(path, 10**12)
    with pytest.raises(SourceError, match="1 values for 250,000,000 embeddings"):
        open_source(f"arrays:{path}?encoder={MOBILENET}")


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "fifo.npy")
    for name, words in (("missing.npy", "missing"), ("folder.npy", "a directory"), ("fifo.npy", "a fifo"), ("\0", "")):
        with pytest.raises(SourceError, match=f"cannot be read.*{words}"):
            open_source(f"arrays:{tmp_path / name}")


LISTS: dict[str, tuple[str, bytes, str]] = {
    "too few": ("uris.json", b'["a", "b"]', "2 values for 3 embeddings"),
    "too many": ("uris.json", b'["a", "b", "c", "d"]', "4 values for 3 embeddings"),
    "not a list": ("uris.json", b'"abc"', "is not a list"),
    "no JSON": ("uris.json", b'["a", ', "not valid JSON"),
    "no text": ("uris.json", b'["a", \xff, "c"]', "not valid JSON"),
    "deep": ("uris.json", b"[" * 100_000, "not valid JSON"),
    "long": ("uris.json", b'["a", "b", "c"' + b" " * 2_000_000 + b"]", "is larger than"),
    "numbers": ("uris.json", b'["a", 2, "c"]', "no uri for the row 1"),
    "holes": ("uris.json", b'{"0": "a", "1": "b", "3": "c"}', "no uri for the row 2"),
    "an endless uri": ("uris.json", b'["a", "b", "' + b"c" * 20_000 + b'"]', "no uri for the row 2"),
    "categories missing": ("categories.npy", saved(np.array(["a"])), "1 values for 3 embeddings"),
    "categories of two": ("categories.npy", saved(np.array([["a"], ["b"], ["c"]])), "is not a list of strings"),
    "categories as floats": ("categories.npy", saved(np.ones(3)), "is not a list of strings"),
    "pickled": ("categories.npy", saved(np.array(["a", "b", Bomb()], object), allow_pickle=True), "astype(str)"),
    "beyond Unicode": (
        "categories.npy",
        header("{'descr': '<U1', 'fortran_order': False, 'shape': (3,), }\n") + b"\xff\xff\xff\x7f" * 3,
        "invalid text",
    ),
    "beyond Unicode, behind others": (
        "categories.npy",
        header("{'descr': '<U3', 'fortran_order': False, 'shape': (3,), }\n")
        + np.array([97, 0xD800, 0x7FFFFFFF, 97, 97, 97, 97, 97, 97], "<u4").tobytes(),
        "invalid text",
    ),
    "endless categories": ("categories.npy", npy((0,), "<U20000"), "is not a list of strings"),
    "zero bytes each": ("categories.npy", npy((10**18,), "<U0"), "values for 3 embeddings"),
}


@pytest.mark.parametrize("name", LISTS)
def test_invalid_lists_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, rows(3))
    file, content, words = LISTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        open_source(f"arrays:{path}?encoder={MOBILENET}")
    assert words in str(caught.value)
    assert str(tmp_path / file) in str(caught.value)
    assert not (tmp_path / "bombed").exists()


def test_wrong_cards_are_refused(tmp_path: Path, tiny: TinyEncoder) -> None:
    paint_many(tmp_path / "photos", 3)
    index(tmp_path / "photos", encoders=["tiny"])
    with Collection.open(tmp_path / "photos") as ours:
        export_arrays(ours, tmp_path / "out")
    card = tmp_path / "out" / "encoder.json"
    true = json.loads(card.read_bytes())
    spec = f"arrays:{tmp_path / 'out' / 'embeddings.npy'}"
    further = true["further"][0]
    for change, words in (
        ({"rows": 4}, "encoder.json in the same folder says"),
        ({"dimension": 47}, "encoder.json in the same folder says"),
        ({"dimension": -48}, "export again"),
        ({"dimension": True}, "export again"),
        ({"dimension": "48"}, "export again"),
        ({"rows": "many"}, "export again"),
        ({"space": "../visual"}, "export again"),
        ({"space": "semantic"}, "export again"),
        ({"space": None}, "export again"),
        ({"encoder": 7}, "export again"),
        ({"encoder": "a\nb"}, "export again"),
        ({"text": "no"}, "export again"),
        ({"label_names": 5}, "export again"),
        ({"further": 5}, "export again"),
        ({"further": [further | {"file": "../../elsewhere.npy"}]}, "export again"),
        ({"further": [further | {"file": "categories.npy"}]}, "one row an image"),
        ({"further": [further | {"dimension": 23}]}, "encoder.json in the same folder says"),
    ):
        card.write_text(json.dumps(true | change))
        with pytest.raises(SourceError, match=words):
            open_source(spec)
    for content in (b"", b"[]", b"null", b"\xff", b"[" * 50_000):
        card.write_bytes(content)
        with pytest.raises(SourceError, match=r"encoder\.json"):
            open_source(spec)
    # An encoder that is not registered is taken from the card; another encoder than that of the card is refused.
    card.write_text(json.dumps(true | {"encoder": "mine", "further": [], "label_names": {"\ud800": "\ud800"}}))
    index(f"{spec}?encoder=mine", tmp_path / "mine")
    with Collection.open(tmp_path / "mine") as collection:
        assert collection.encoders[0].name == "mine"
        with pytest.raises(EncoderError, match="the encoder mine"):
            search(collection, Query(image=np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(SourceError, match="not of lite"):
        open_source(f"{spec}?encoder=lite")
    # Of embeddings that another file in the folder holds, the card says nothing.
    np.save(tmp_path / "out" / "clip_embeddings.npy", rows(3, 512))
    assert len(entries(f"arrays:{tmp_path / 'out' / 'clip_embeddings.npy'}")) == 3


def test_unusable_rows_are_reported(tmp_path: Path) -> None:
    array = rows(12)
    array[1, 5], array[2, 6], array[3, 7], array[4] = np.nan, np.inf, -np.inf, 0
    array[5] = np.nan
    uris = [f"/p/{n}.jpg" for n in range(12)]
    uris[6], uris[7], uris[8], uris[9] = "", "/p/a\0b.jpg", "/p/\ud800.jpg", "/p/0.jpg"
    path = save(tmp_path, array, np.array(["a"] * 12), uris)
    report = index(f"arrays:{path}?encoder={MOBILENET}", tmp_path / "c")
    assert {failure.uri: failure.reason for failure in report.failures} == {
        "/p/1.jpg": "NaN or infinite values",
        "/p/2.jpg": "NaN or infinite values",
        "/p/3.jpg": "NaN or infinite values",
        "/p/4.jpg": "only zeros",
        "/p/5.jpg": "NaN or infinite values",
        f"{path}#6": "unusable uri",
        f"{path}#7": "unusable uri",
        f"{path}#8": "unusable uri",
        f"{path}#9": "same uri twice",
    }
    assert {"row 1 of", "row 4 of"} <= {failure.detail[:8] for failure in report.failures}
    assert sorted(stored(tmp_path / "c")) == ["/p/0.jpg", "/p/10.jpg", "/p/11.jpg"]
    assert index(collection=tmp_path / "c").unchanged == 3
    # A repaired row is added; a row that is invalid now is removed.
    array[1, 5], array[10, 5] = 1, np.nan
    save(tmp_path, array)
    again = index(collection=tmp_path / "c")
    assert (again.added, again.unchanged, again.removed, len(again.failures)) == (1, 2, 1, 9)


def test_exported_embeddings_are_imported_unchanged(tiny: TinyEncoder, tmp_path: Path) -> None:
    with Collection.create(tmp_path / "ours", [tiny]) as ours:
        from pixmatcher import Item

        vectors = {"visual": np.zeros((2, 48), np.float32), "semantic": np.full((2, 24), 60_000, np.float32)}
        ours.add([Item("/a.png", "1"), Item("/b.png", "2")], vectors)
        export_arrays(ours, tmp_path / "out")
    spec = f"arrays:{tmp_path / 'out' / 'embeddings.npy'}"
    assert index(spec, tmp_path / "c").failures == []
    with Collection.open(tmp_path / "c") as collection:
        assert not collection.embeddings([1, 2], "visual").any()
        assert (collection.embeddings([1, 2], "semantic") == np.float16(60_000)).all()
    changed = np.load(tmp_path / "out" / "embeddings.npy")
    changed[0, 0] = 1e6
    np.save(tmp_path / "out" / "embeddings.npy", changed)
    report = index(collection=tmp_path / "c")
    assert [(failure.uri, failure.reason) for failure in report.failures] == [("/a.png", "values too large")]


# Runs


def test_refresh(tmp_path: Path) -> None:
    array, uris = rows(20), [f"/p/{n}.jpg" for n in range(20)]
    path = save(tmp_path, array, np.array(["a"] * 20), uris)
    index(f"arrays:{path}?encoder={MOBILENET}", tmp_path / "c")
    before = stored(tmp_path / "c")
    array[3] = rows(1, seed=5)[0]  # changed
    uris[4] = "/p/moved.jpg"
    save(tmp_path, array[:18], np.array(["a"] * 18), uris[:18])  # and two deleted
    report = index(collection=tmp_path / "c")
    assert (report.changed, report.moved, report.removed, report.unchanged, report.added) == (1, 1, 2, 16, 0)
    after = stored(tmp_path / "c")
    assert sorted(after) == sorted(uris[:18])
    assert after["/p/moved.jpg"] == before["/p/4.jpg"]
    np.testing.assert_allclose(after["/p/3.jpg"][1], unit(array[3:4])[0], atol=1e-4)
    assert {uri: after[uri] for uri in after if uri not in ("/p/moved.jpg", "/p/3.jpg")} == {
        uri: before[uri] for uri in after if uri not in ("/p/moved.jpg", "/p/3.jpg")
    }
    # Two rows with the same values are two items; a missing file is reported, and its items stay.
    array[5] = array[6]
    save(tmp_path, array[:18], np.array(["a"] * 18), uris[:18])
    assert index(collection=tmp_path / "c").total == 18
    path.unlink()
    assert [failure.reason for failure in index(collection=tmp_path / "c").failures] == ["missing source"]
    assert len(stored(tmp_path / "c")) == 18


def test_a_file_that_changes_during_the_import(tmp_path: Path) -> None:
    """The file is replaced between the comparison and the import; no row is mistaken for another."""
    path = save(tmp_path, rows(9))
    source = open_source(f"arrays:{path}?encoder={MOBILENET}")
    assert isinstance(source, HoldsEmbeddings)
    uris = [entry.uri for entry in source.scan()]
    os.truncate(path, 5000)
    with pytest.raises(SourceError, match="has changed while it was read"):
        source.embeddings(uris)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        source.embeddings(uris)

    def cut(progress: Progress) -> None:
        os.truncate(path, 5000)

    save(tmp_path, rows(9))
    report = index(f"arrays:{path}?encoder={MOBILENET}", tmp_path / "c", progress=cut)
    assert (report.added, {failure.reason for failure in report.failures}) == (0, {"cannot be read"})
    save(tmp_path, rows(9))
    assert index(collection=tmp_path / "c").added == 9


DRIVER = """
# Runs the import in children; each but the last is killed once the file of its vectors has so many rows.
import os, signal, sys, time
import pixmatcher.vector_index
from pixmatcher import indexing
from pixmatcher.indexing import _store
from pixmatcher.sources import arrays

arrays._BLOCK_BYTES = 4 * 960 * 4  # batches of eight rows
_store._FLUSH_ITEMS = 16
vectors = os.path.join(sys.argv[2], "vectors", "visual.f16")
for rows in map(int, sys.argv[3:]):
    child = os.fork()
    if not child:
        report = indexing.index(sys.argv[1], sys.argv[2], workers=2)
        os._exit(0 if not report.failures else 3)
    status = (0, 0)
    while status == (0, 0):
        if os.path.exists(vectors) and os.path.getsize(vectors) >= rows * 960 * 2:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)
        else:
            time.sleep(0.001)
            status = os.waitpid(child, os.WNOHANG)
    print(os.waitstatus_to_exitcode(status[1]), flush=True)
    sys.stdin.readline()
"""


def test_an_import_killed_repeatedly_loses_no_item(tmp_path: Path) -> None:
    """The import is killed and started again until it ends; no item is lost or stored twice."""
    array, labels = rows(400), np.array([f"l{n % 7}" for n in range(400)])
    uris = [f"/p/{n:03}.jpg" for n in range(400)]
    path = save(tmp_path, array, labels, uris)
    kills = (1, 40, 41, 150, 270)
    command = [sys.executable, "-c", DRIVER, f"arrays:{path}?encoder={MOBILENET}", str(tmp_path / "c")]
    command += [str(at) for at in (*kills, 10_000)]
    codes, counts = [], []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        for line in driver.stdout:
            codes.append(int(line))
            found = stored(tmp_path / "c")
            counts.append(len(found))
            assert all(found[uri][0] == labels[int(uri[3:6])] for uri in found)
            print(file=driver.stdin, flush=True)
    assert driver.returncode == 0
    assert codes == [-signal.SIGKILL] * len(kills) + [0]
    assert counts == sorted(counts)
    assert any(0 < count < 400 for count in counts)
    found = stored(tmp_path / "c")
    assert sorted(found) == uris
    np.testing.assert_allclose(np.array([found[uri][1] for uri in uris]), unit(array), atol=1e-4)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.verify() == []
        assert len(collection) == 400


def test_from_the_command_line(tmp_path: Path) -> None:
    save(tmp_path, rows(3), name="embeddings")
    np.save(tmp_path / "labels.npy", np.array(["a", "b", "a"]))
    (tmp_path / "names.json").write_text('["1.jpg", "2.jpg", "3.jpg"]')
    options = ("--categories", "labels.npy", "--uris", "names.json", "--base", "pictures", "--encoder", MOBILENET)
    done = cli("index", "arrays:embeddings.npy", "-c", "c", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {uri: label for uri, (label, _) in stored(tmp_path / "c").items()} == {
        f"{tmp_path}/pictures/1.jpg": "a",
        f"{tmp_path}/pictures/2.jpg": "b",
        f"{tmp_path}/pictures/3.jpg": "a",
    }
    assert "3 unchanged" in cli("index", "-c", "c", cwd=tmp_path).stdout
    assert "unknown version" in cli("info", "-c", "c", cwd=tmp_path).stdout
    (tmp_path / "folder").mkdir()
    paint(tmp_path / "photo.png", 1)
    for arguments, words in (
        (("search", "a cat", "-c", "c"), "No encoder of this collection supports text"),
        (("search", "photo.png", "-c", "c"), "mobilenet_v3_large. The encoder mobilenet_v3_large needs PyTorch"),
        (("index", "arrays:embeddings.npy", "-c", "d"), "does not say which encoder made it"),
        (("index", "arrays:", "-c", "d"), "names no file"),
        (("index", "arrays:embeddings.npy", "-c", "d", "--encoder", " "), "is not the name of an encoder"),
        (("index", "arrays:embeddings.npy", "-c", "d", "--encoder", CLIP, "--encoder", "lite"), "--encoder once"),
        (("index", "folder", "--uris", "names.json"), "--uris needs one source of saved embeddings"),
    ):
        wrong = cli(*arguments, cwd=tmp_path)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1), wrong.stderr
        assert words in wrong.stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("options", ["enc=x", "base=x&base=y", "base", "base="])
def test_unknown_options_are_refused(tmp_path: Path, options: str) -> None:
    path = save(tmp_path, rows(2))
    with pytest.raises(SourceError, match="is not an option of saved embeddings"):
        open_source(f"arrays:{path}?encoder={MOBILENET}&{options}")


def test_unusable_rows_do_not_become_items(tmp_path: Path) -> None:
    path = save(tmp_path, np.full((2, 960), np.nan, np.float32))
    found = list(open_source(f"arrays:{path}?encoder={MOBILENET}").scan())
    assert [type(entry) for entry in found] == [Unusable, Unusable]


@pytest.mark.parametrize(
    ("encoder", "space", "text"),
    [
        ("my-network", "visual", False),
        ("our CLIP, large", "clip", True),
        ("timm:resnet18", "visual", False),
        ("open_clip:ViT-L-14/openai", "clip", True),
        ("hf:someone/siglip-base", "clip", True),
        ("hf:someone/dino", "visual", False),
        ("onnx:missing", "visual", False),
    ],
)
def test_embeddings_of_any_encoder_are_imported(tmp_path: Path, encoder: str, space: str, text: bool) -> None:
    """The name is only recorded: the encoder need not exist here, and nothing of it is imported."""
    paint(tmp_path / "photo.png", 1)
    save(tmp_path, rows(3, 48), uris=["1.jpg", "2.jpg", "3.jpg"])
    code = (
        "import sys\nfrom pixmatcher.cli import main\n"
        f"sys.argv = ['pixmatcher', 'index', 'arrays:embeddings.npy', '-c', 'c', '--encoder', {encoder!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'timm', 'open_clip', 'httpx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    name = f"onnx:{tmp_path}/missing" if encoder.startswith("onnx:") else encoder
    with Collection.open(tmp_path / "c") as collection:
        assert [(each.name, each.fingerprint) for each in collection.encoders] == [(name, "")]
        assert [(s.name, s.dimension, s.text) for s in collection.spaces.values()] == [(space, 48, text)]
        first = next(collection.items())
        hits = search_similar(collection, first.id, k=3).hits
        assert hits[0].item.id == first.id
        assert len(hits) == 3
    assert "3 unchanged" in cli("index", "-c", "c", cwd=tmp_path).stdout
    assert cli("verify", "-c", "c", cwd=tmp_path).returncode == 0
    for query in ("a cat", "photo.png"):
        wrong = cli("search", query, "-c", "c", cwd=tmp_path)
        assert wrong.returncode != 0
        assert wrong.stderr.count("\n") == 1, wrong.stderr
        assert name in wrong.stderr


def test_an_encoder_that_is_installed_later_answers_by_the_imported_embeddings(
    tmp_path: Path, tiny: TinyEncoder
) -> None:
    """Its space has another name than the one that was recorded; the dimension says which is meant."""
    paint_many(tmp_path / "photos", 3)
    index(tmp_path / "photos", tmp_path / "own", encoders=["tiny"])
    with Collection.open(tmp_path / "own") as own:
        items = list(own.items())
        embeddings = own.embeddings([item.id for item in items], "visual")
    path = save(tmp_path / "saved", embeddings, uris=[item.uri for item in items])
    unregister_encoder("tiny")
    index(f"arrays:{path}?encoder=tiny", tmp_path / "imported")
    with Collection.open(tmp_path / "imported") as imported:
        assert list(imported.spaces) == ["visual"]
    with Collection.create(tmp_path / "c", [EncoderRecord("tiny", "", (Space("recorded", 48),))]) as collection:
        with pytest.raises(EncoderError, match=r"encoder tiny\. Unknown encoder 'tiny': install"):
            search(collection, Query(image=items[0].uri))
        register_encoder("tiny", lambda: tiny)
        assert search(collection, Query(image=items[0].uri)).space == "recorded"
    with (
        Collection.create(tmp_path / "d", [EncoderRecord("tiny", "", (Space("recorded", 47),))]) as collection,
        pytest.raises(EncoderError, match="has no space recorded of 47 values"),
    ):
        search(collection, Query(image=items[0].uri))


def test_pickled_objects_get_the_advice_that_works(tmp_path: Path) -> None:
    """The advised code is run, and the file that it writes is imported."""
    save(tmp_path, rows(3), name="right")
    right = np.load(tmp_path / "right.npy")
    lists = np.empty(3, object)
    lists[:] = [*right]
    for name, array in (("of_arrays", lists), ("of_numbers", right.astype(object))):
        path = tmp_path / f"{name}.npy"
        np.save(path, array, allow_pickle=True)
        with pytest.raises(SourceError, match=f"{name}.npy holds pickled objects") as caught:
            open_source(f"arrays:{path}?encoder={MOBILENET}")
        advice = re.search(r"numpy\.save\(.*\)(?=,)", str(caught.value))
        assert advice is not None
        exec(advice[0].replace("PATH", repr(str(path))), {"numpy": np})
        assert len(entries(f"arrays:{path}?encoder={MOBILENET}")) == 3
    np.save(tmp_path / "dict.npy", np.array({"a": 1}, object), allow_pickle=True)
    with pytest.raises(SourceError, match="no array: save the array"):
        open_source(f"arrays:{tmp_path}/dict.npy?encoder={MOBILENET}")
    np.save(tmp_path / "texts.npy", np.array(["a", "b", "c"], object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"astype\(str\)"):
        open_source(f"arrays:{tmp_path}/right.npy?encoder={MOBILENET}&categories={tmp_path}/texts.npy")


def test_urls_of_files_are_paths(tmp_path: Path) -> None:
    folder = tmp_path / "saved 100% ?"
    folder.mkdir()
    save(folder, rows(2))
    listed = [f"file://{tmp_path}/a%20photo%25.jpg", "file://other/b.jpg"]
    (tmp_path / "uris.json").write_text(json.dumps(listed))
    url = f"{folder / 'embeddings.npy'}".replace("%", "%25").replace(" ", "%20").replace("?", "%3F")
    spec = f"arrays:file://localhost{url}?encoder={MOBILENET}&uris=file://{tmp_path}/uris.json"
    source = open_source(spec)
    assert [entry.uri for entry in source.scan()] == [f"{tmp_path}/a photo%.jpg", "file://other/b.jpg"]
    assert [entry.uri for entry in open_source(source.spec).scan()] == [entry.uri for entry in source.scan()]
