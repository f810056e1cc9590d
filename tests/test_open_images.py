"""Open Images as a source: its files are recognised, labels are joined to images, errors are reported."""

from __future__ import annotations

import csv
import gzip
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixmatcher import InvalidImageError, SourceError
from pixmatcher.sources import Entry, Source, Unusable, open_source

HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation\n"
)
CC_BY = "https://creativecommons.org/licenses/by/2.0/"


def image(
    image_id: str, subset: str = "validation", title: str = "A title", small: bool = True, rotation: str = "0.0"
) -> str:
    """Return a line of an image list."""
    thumbnail = f"https://c1.host/{image_id}_z.jpg?zz=1" if small else ""
    return (
        f"{image_id},{subset},https://farm3.host/{image_id}_o.jpg,https://host/photos/{image_id},{CC_BY},"
        f"https://host/people/ann/,Ann,{title},4405052,KFukvivpCM5QXl5SqKe41g==,{thumbnail},{rotation}\n"
    )


def original(image_id: str) -> str:
    return f"https://farm3.host/{image_id}_o.jpg"


IDS = [f"{number:016x}" for number in range(1, 7)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two splits, labels, names, boxes and other files."""
    place = tmp_path / "open-images"
    place.mkdir()
    lines = [image(IDS[0]), image(IDS[1], title='"An ""odd"", title"', small=False, rotation=""), image(IDS[2])]
    (place / "validation-images-with-rotation.csv").write_text(HEADER + "".join(lines))
    lines = [image(IDS[3], "train", rotation="90.0"), image(IDS[4], "train", rotation="nan")]
    (place / "train-images-boxable-with-rotation.csv").write_text(HEADER + "".join(lines))
    (place / "oidv7-val-annotations-human-imagelabels.csv").write_text(
        "ImageID,Source,LabelName,Confidence\n"
        f"{IDS[0]},verification,/m/cat,0\n"
        f"{IDS[0]},verification,/m/dog,1\n"
        f"{IDS[0]},verification,/m/pet,1\n"
        f"{IDS[1]},verification,/m/cat,1\n"
        "00000000000000ff,verification,/m/cat,1\n"
        f"{IDS[0]},verification,/m/animal,1\n"
    )
    (place / "validation-annotations-machine-imagelabels.csv").write_text(
        f"ImageID,Source,LabelName,Confidence\n{IDS[0]},machine,/m/tree,0.7\n{IDS[0]},machine,/m/dog,0.9\n"
        f"{IDS[2]},machine,/m/tree,0.6\n{IDS[2]},machine,/m/sky,0.8\n"
    )
    (place / "train-annotations-human-imagelabels.csv").write_text(
        f"ImageID,Source,LabelName,Confidence\n{IDS[3]},verification,/m/tree,1\n"
    )
    (place / "oidv7-class-descriptions.csv").write_text(
        'LabelName,DisplayName\n/m/cat,Cat\n/m/dog,"Dog, tame"\n/m/pet,Pet\n/m/animal,Animal\n/m/tree,Tree\n'
    )
    (place / "class-descriptions-boxable.csv").write_text("/m/sky,Sky\n/m/cat,Cat\n")
    (place / "validation-annotations-bbox.csv").write_text(
        f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n{IDS[1]},xclick,/m/box,1,0,1,0,1\n"
    )
    (place / "readme.txt").write_text("ImageID\n")
    (place / ".hidden.csv").write_bytes(b"\0\1")
    return place


def scan(source: Source | str) -> tuple[list[Entry], list[Unusable]]:
    found = list((open_source(source) if isinstance(source, str) else source).scan())
    return [f for f in found if isinstance(f, Entry)], [f for f in found if isinstance(f, Unusable)]


def labels(source: str) -> dict[str, str | None]:
    entries, unusable = scan(source)
    assert unusable == []
    return {entry.details["id"]: entry.label for entry in entries}


def test_images_with_their_labels_names_and_authors(folder: Path) -> None:
    source = open_source(f"open-images:{folder}")
    assert (source.spec, source.folder) == (f"open-images:{folder}", None)
    entries, unusable = scan(source)
    assert unusable == []
    by_id = {entry.details["id"]: entry for entry in entries}
    assert [*by_id] == [IDS[3], IDS[4], *IDS[:3]]
    first = by_id[IDS[0]]
    assert first.uri == original(IDS[0])
    assert first.urls == (f"https://c1.host/{IDS[0]}_z.jpg?zz=1", first.uri)
    assert first.label == "/m/dog"  # the first of the surest
    assert first.details == {
        "id": IDS[0],
        "author": "Ann",
        "license": CC_BY,
        "title": "A title",
        "page": f"https://host/photos/{IDS[0]}",
        "labels": "Pet, Animal, Tree",
    }
    second = by_id[IDS[1]]
    assert (second.urls, second.label, second.details["title"]) == ((second.uri,), "/m/cat", 'An "odd", title')
    assert "labels" not in second.details
    assert (by_id[IDS[2]].label, by_id[IDS[2]].details["labels"]) == ("/m/sky", "Tree")
    assert [entry.rotation for entry in entries] == [90, 0, 0, 0, 0]
    assert (by_id[IDS[3]].label, by_id[IDS[4]].label) == ("/m/tree", None)
    assert source.label_names() == {
        **{"/m/cat": "Cat", "/m/dog": "Dog, tame", "/m/pet": "Pet", "/m/animal": "Animal", "/m/tree": "Tree"},
        "/m/sky": "Sky",
    }
    with pytest.raises(InvalidImageError, match="missing"):
        source.open(first.uri)


def test_splits(folder: Path) -> None:
    validation = {IDS[0]: "/m/dog", IDS[1]: "/m/cat", IDS[2]: "/m/sky"}
    train = {IDS[3]: "/m/tree", IDS[4]: None}
    assert labels(f"open-images:{folder}?split=validation") == labels(f"open-images:{folder}?split=val") == validation
    assert labels(f"open-images:{folder}?split=train") == train
    assert labels(f"open-images:{folder}?split=all") == {**train, **validation}
    source = open_source(f"open-images:{folder}?split=Validation")
    assert open_source(source.spec).spec == source.spec
    with pytest.raises(SourceError, match="no images of the split test, but of train, validation"):
        scan(f"open-images:{folder}?split=test")
    with pytest.raises(SourceError, match="not valid"):
        open_source(f"open-images:{folder}?spilt=test")


def test_labels_for_all_splits_in_one_file_are_found(folder: Path) -> None:
    for name in ("oidv7-val-annotations-human-imagelabels.csv", "validation-annotations-machine-imagelabels.csv"):
        (folder / name).unlink()
    path = folder / "train-annotations-human-imagelabels.csv"
    path.write_text(path.read_text() + f"{IDS[1]},verification,/m/cat,1\n")
    assert labels(f"open-images:{folder}?split=validation") == {IDS[0]: None, IDS[1]: "/m/cat", IDS[2]: None}


def test_an_image_list_uses_the_labels_and_names_in_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    source = open_source("open-images:open-images/validation-images-with-rotation.csv")
    assert open_source(source.spec).spec == source.spec
    entries, unusable = scan(source)
    assert [(entry.details["id"], entry.label) for entry in entries] == [
        (IDS[0], "/m/dog"),
        (IDS[1], "/m/cat"),
        (IDS[2], "/m/sky"),
    ]
    assert unusable == []
    assert len(source.label_names()) == 6
    alone = folder.parent / "alone.csv"
    alone.write_bytes(gzip.compress((HEADER + image(IDS[0])).encode("utf-8-sig")))
    assert labels(f"open-images:{alone}") == {IDS[0]: None}


def test_the_version_depends_on_what_is_fetched(folder: Path) -> None:
    path = folder / "validation-images-with-rotation.csv"

    def version(line: str) -> str:
        path.write_text(HEADER + line)
        return next(entry.version for entry in scan(f"open-images:{path}")[0])

    first = version(image(IDS[0]))
    assert version(image(IDS[0], "train", "Other")) == first
    assert version(image(IDS[0], rotation="90")) != first
    assert version(image(IDS[0], small=False)) != first


def test_bad_rows_are_reported(folder: Path) -> None:
    images = folder / "validation-images-with-rotation.csv"
    images.write_bytes(
        (
            HEADER
            + image(IDS[0], title='"open')
            + image(IDS[1], rotation="45")
            + image(IDS[2]).replace("https://farm3", "ftp://farm3")
            + image(IDS[3]).replace("https://c1", "ftp://c1")
            + image(IDS[4], title="a\0b")
            + "short,line\n"
            + image(IDS[5], rotation="270")
        ).encode()
        + image(IDS[5], title="\xe9").encode("latin-1")
    )
    names = folder / "oidv7-class-descriptions.csv"
    names.write_text('LabelName,DisplayName\n/m/cat,Cat\n/m/dog,Dog, tame\n/m/pet,"Pet\n/m/tree,Tree\n')
    human = folder / "oidv7-val-annotations-human-imagelabels.csv"
    human.write_text(
        f"ImageID,Source,LabelName,Confidence\n{IDS[5]},x,/m/cat,maybe\n{IDS[5]},x,/m/dog,nan\n{IDS[5]},x,/m/dog,-1\n"
        f"{IDS[5]},x,/m/dog,1e9\n{IDS[5]},x,/m/pet\n{IDS[5]},x,,1\n{IDS[5]},x,/m/tree,0.5\n"
    )
    entries, unusable = scan(f"open-images:{images}")
    assert [(entry.details["id"], entry.rotation, entry.label) for entry in entries] == [
        (IDS[3], 0, "/m/tree"),
        (IDS[5], 270, "/m/tree"),
        (IDS[5], 0, "/m/tree"),
    ]
    assert entries[0].urls == (original(IDS[3]),)  # an invalid thumbnail URL is left out
    assert [(found.uri, found.reason) for found in unusable] == [
        (f"{names}:3", "wrong number of fields"),
        (f"{names}:4", "broken quotes"),
        *[(f"{human}:{line}", "wrong confidence") for line in (2, 3, 4, 5)],
        (f"{human}:6", "wrong number of fields"),
        (f"{images}:2", "broken quotes"),
        (f"{images}:3", "wrong rotation"),
        (f"{images}:4", "not a URL"),
        (f"{images}:6", "NUL byte"),
        (f"{images}:7", "wrong number of fields"),
    ]
    assert open_source(f"open-images:{images}").label_names() == {
        "/m/cat": "Cat",
        "/m/sky": "Sky",
        "/m/tree": "Tree",
    }


def test_invalid_specs_are_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "ids.txt").write_text("train/0000008e1f7c3a2b\ntrain/0000008e1f7c3a2c\n")
    ids = tmp_path / "ids"
    ids.mkdir()
    (ids / "image_ids.csv").write_text("ImageID\n0000008e1f7c3a2b\n")
    (tmp_path / "other").mkdir()
    no_split = tmp_path / "other" / "no-split.csv"
    no_split.write_text(f"ImageID,OriginalURL\n{IDS[0]},https://h/a.jpg\n")
    for rest, words in (
        ("", "write it like"),
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "fifo.csv", "is neither"),
        (tmp_path / "empty", "has no image list"),
        (tmp_path / "empty.csv", "is empty"),
        (tmp_path / "ids.txt", "without their URLs.*OriginalURL"),
        (ids, "image_ids.csv lists images without their URLs.*OriginalURL"),
        (folder / "validation-annotations-bbox.csv", "has no image list"),
        (folder / "oidv7-class-descriptions.csv", "has no image list"),
        (f"{no_split}?split=train", "no column Subset"),
    ):
        with pytest.raises(SourceError, match=words) as raised:
            scan(f"open-images:{rest}")
        assert "\n" not in str(raised.value)
    assert labels(f"open-images:{no_split}") == {IDS[0]: None}


def test_other_files_that_cannot_be_read_do_not_matter(folder: Path) -> None:
    (folder / "broken.csv").write_bytes(b"\0\0\n")
    entries, [bad] = scan(f"open-images:{folder}")
    assert len(entries) == 5
    assert (bad.uri, bad.reason) == (str(folder / "broken.csv"), "cannot be read")


def test_files_that_are_cut_short(folder: Path) -> None:
    for name in ("validation-images-with-rotation.csv", "oidv7-val-annotations-human-imagelabels.csv"):
        text = (folder / name).read_text()
        (folder / name).unlink()
        (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode() + os.urandom(5000).hex().encode())[:-2000])
    source = f"open-images:{folder}?split=validation"
    entries, [of_labels, of_images] = scan(source)
    assert {entry.details["id"]: entry.label for entry in entries} == {
        **{IDS[0]: "/m/dog", IDS[1]: "/m/cat", IDS[2]: "/m/sky"}
    }
    assert (of_labels.reason, of_labels.contents_unknown) == ("damaged", False)
    assert (of_images.uri, of_images.reason, of_images.contents_unknown) == (source, "damaged", True)


def test_labels_in_different_places_are_joined(tmp_path: Path) -> None:
    """Compared with a join in memory: ids in any order, in two files, more than are read at once."""
    rng = random.Random(4)
    ids = [f"{rng.getrandbits(64):016x}" for _ in range(3000)]
    rows = [(rng.choice(ids), f"/m/{rng.randrange(50)}", rng.choice(["0", "1", "0.5", "0.9"])) for _ in range(20_000)]
    (tmp_path / "images.csv").write_text(HEADER + "".join(image(image_id) for image_id in ids))
    for name, part in (("a-labels.csv", rows[:9000]), ("b-labels.csv", rows[9000:])):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([("ImageID", "LabelName", "Confidence"), *part])
    wanted: dict[str, tuple[float, str]] = {}
    for image_id, label, confidence in rows:
        if float(confidence) > wanted.get(image_id, (0.0, ""))[0]:
            wanted[image_id] = (float(confidence), label)
    found = labels(f"open-images:{tmp_path}")
    assert found == {image_id: wanted.get(image_id, (0, None))[1] for image_id in ids}


def test_many_labels_of_one_image(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text(HEADER + image(IDS[0]))
    lines = [f"{IDS[0]},/m/{number},0.5\n" for number in range(5000)] + [f"{IDS[0]},/m/best,1\n"]
    (tmp_path / "labels.csv").write_text("ImageID,LabelName,Confidence\n" + "".join(lines))
    [[entry], _] = scan(f"open-images:{tmp_path}")
    assert entry.label == "/m/best"
    assert entry.details["labels"].startswith("/m/0, /m/1, ")
    assert len(entry.details["labels"]) < 1000


def test_a_full_temporary_folder(tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no file system can be mounted")
    (tmp_path / "images.csv").write_text(HEADER + image(IDS[0]))
    with (tmp_path / "labels.csv").open("w") as file:
        file.write("ImageID,LabelName,Confidence\n")
        for number in range(20_000):
            file.write(f"{number:016x},/m/{'long' * 100},1\n")
    code = (
        "from pixmatcher.sources import _image_labels, open_source\n_image_labels._CACHE_KIB = 100\n"
        f"list(open_source('open-images:{tmp_path}').scan())"
    )
    environment = {**os.environ, "SQLITE_TMPDIR": str(small_disk)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert "SourceError: The labels of the images cannot be sorted" in run.stderr
    assert run.stderr.strip().endswith("set TMPDIR to a folder with more space.")
    assert list(small_disk.iterdir()) == []


def test_the_temporary_database_leaves_nothing_behind_a_killed_process(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "labels.csv").open("w") as file:
        file.write("ImageID,LabelName,Confidence\n")
        for number in range(20_000):
            file.write(f"{number:016x},/m/{'long' * 20},1\n")
    (tmp_path / "images.csv").write_text(HEADER + image(IDS[0]))
    code = (
        "from pixmatcher.sources import _image_labels, open_source\n_image_labels._CACHE_KIB = 100\n"
        f"print(next(open_source('open-images:{tmp_path}').scan()).label[:6], flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "SQLITE_TMPDIR": str(tmp_path / "temporary")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (run.stdout, run.returncode) == ("/m/lon\n", -9)
    assert list((tmp_path / "temporary").iterdir()) == []


PIECES = st.sampled_from(
    [b'"', b",", b"\n", b"\r\n", b"\0", b"\xff", b"1", b"0.5", b"/m/a", b"https://h/", b"90", b"train"]
)
contents = st.one_of(st.binary(max_size=100), st.lists(PIECES, max_size=40).map(b"".join))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images=contents, names=contents, confidences=contents, split=st.sampled_from(["", "?split=train"]))
def test_random_files_never_crash_the_scan(
    tmp_path: Path, images: bytes, names: bytes, confidences: bytes, split: str
) -> None:
    (tmp_path / "images.csv").write_bytes(b"ImageID,OriginalURL,Subset,Rotation\n" + images)
    (tmp_path / "names.csv").write_bytes(b"/m/a,Name\n" + names)
    (tmp_path / "labels.csv").write_bytes(b"ImageID,LabelName,Confidence\n1,/m/a,1\n" + confidences)
    source = open_source(f"open-images:{tmp_path}{split}")
    assert isinstance(source.label_names(), dict)
    try:
        entries, unusable = scan(source)
    except SourceError:
        return
    assert all(entry.uri.startswith("http") for entry in entries)
    assert all(found.uri.startswith(f"{tmp_path}/") or found.uri == source.spec for found in unusable)
