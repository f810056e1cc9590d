"""Tiny ImageNet as a source: unpacked and zipped, splits, labels and errors."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pixmatcher import Collection, CollectionError, SourceError, index
from pixmatcher.sources import Entry, open_source, tiny_imagenet
from support import TinyEncoder, cli, paint

CLASSES = {"n01443537": "goldfish, Carassius auratus", "n02124075": "Egyptian cat"}


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """Two classes: three train images of each, two val images, one test image."""
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(CLASSES):
        for image in range(3):
            paint(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 10 * number + image, kind="JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
        paint(root / "val" / "images" / f"val_{number}.JPEG", 100 + number, kind="JPEG")
    paint(root / "test" / "images" / "test_0.JPEG", 200, kind="JPEG")
    annotations = [f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n" for number, wnid in enumerate(CLASSES)]
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("\n".join(CLASSES))
    words = [f"{wnid}\t{name}\n" for wnid, name in CLASSES.items()]
    (root / "words.txt").write_text("".join([*words, "n00001740\tentity\n"]))
    return root


@pytest.fixture
def zipped(unpacked: Path) -> Path:
    return Path(shutil.make_archive(str(unpacked.parent / "tiny"), "zip", unpacked.parent, unpacked.name))


@pytest.fixture(params=["folder", "folder above", "zip"])
def place(request: pytest.FixtureRequest, unpacked: Path, zipped: Path) -> Path:
    return {"folder": unpacked, "folder above": unpacked.parent, "zip": zipped}[request.param]


def labels(spec: str) -> dict[str, str | None]:
    """Return the label of each image of a source by its file name."""
    found = list(open_source(spec).scan())
    assert all(isinstance(entry, Entry) for entry in found)
    return {Path(entry.uri).name: entry.label for entry in found if isinstance(entry, Entry)}


def test_splits_and_labels(place: Path) -> None:
    train = {f"{wnid}_{image}.JPEG": wnid for wnid in CLASSES for image in range(3)}
    val = {f"val_{number}.JPEG": wnid for number, wnid in enumerate(CLASSES)}
    assert labels(f"tiny-imagenet:{place}") == labels(f"tiny-imagenet:{place}?split=train") == train
    assert labels(f"tiny-imagenet:{place}?split=val") == val
    assert labels(f"tiny-imagenet:{place}?split=test") == {"test_0.JPEG": None}
    assert labels(f"tiny-imagenet:{place}?split=all") == {**train, **val, "test_0.JPEG": None}
    assert open_source(f"tiny-imagenet:{place}").label_names() == CLASSES


def test_images_in_unusual_folders(unpacked: Path, tmp_path: Path) -> None:
    train = unpacked / "train"
    (train / "n02124075" / "images" / "n02124075_0.JPEG").rename(train / "n02124075" / "n02124075_0.JPEG")
    (train / "n01443537" / "images" / "n01443537_0.JPEG").rename(train / "stray.JPEG")
    zipped = shutil.make_archive(str(tmp_path / "moved"), "zip", unpacked.parent, unpacked.name)
    for place in (unpacked, zipped):
        found = labels(f"tiny-imagenet:{place}")
        assert (found["n02124075_0.JPEG"], found["n02124075_1.JPEG"], found["stray.JPEG"]) == ("n02124075",) * 2 + (
            None,
        )
        assert len(found) == 6


def test_indexed_refreshed_and_shown(tiny: TinyEncoder, place: Path, tmp_path: Path) -> None:
    report = index(f"tiny-imagenet:{place}", tmp_path / "c", encoders=["tiny"])
    assert (report.total, report.added, report.failures) == (6, 6, [])
    again = index(collection=tmp_path / "c")
    assert (again.unchanged, again.added, again.removed) == (6, 0, 0)
    with Collection.open(tmp_path / "c") as collection:
        assert {item.label for item in collection.items()} == set(CLASSES)
        assert collection.label_names() == CLASSES
        [spec] = collection.sources()
        assert spec == f"tiny-imagenet:{place}"
        assert collection.forget(spec) == 6


def test_a_zip_file_written_again_with_the_same_images_is_unchanged(
    tiny: TinyEncoder, zipped: Path, tmp_path: Path
) -> None:
    index(f"tiny-imagenet:{zipped}", tmp_path / "c", encoders=["tiny"])
    with zipfile.ZipFile(zipped) as old, zipfile.ZipFile(tmp_path / "new.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (tmp_path / "new.zip").replace(zipped)
    assert index(collection=tmp_path / "c").unchanged == 6


def test_invalid_specs_are_refused(tmp_path: Path, unpacked: Path, zipped: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip file")
    (tmp_path / "cut.zip").write_bytes(zipped.read_bytes()[:-200])
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a.txt", "a")
    for spec, words in (
        ("tiny-imagenet:", "write it like"),
        (f"tiny-imagenet:{tmp_path / 'missing'}", "cannot be read"),
        (f"tiny-imagenet:{tmp_path / 'empty'}", "is not Tiny ImageNet"),
        (f"tiny-imagenet:{tmp_path / 'other.zip'}", "is not Tiny ImageNet"),
        (f"tiny-imagenet:{tmp_path / 'text.zip'}", "download it again"),
        (f"tiny-imagenet:{tmp_path / 'cut.zip'}", "download it again"),
        (f"tiny-imagenet:{unpacked}?split=none", "is not a split"),
        (f"tiny-imagenet:{unpacked}?spilt=val", "is not a split"),
    ):
        with pytest.raises(SourceError, match=words):
            open_source(spec)
    shutil.rmtree(unpacked / "test")
    with pytest.raises(SourceError, match="no images of the split test"):
        list(open_source(f"tiny-imagenet:{unpacked}?split=test").scan())
    (unpacked / "val" / "val_annotations.txt").unlink()
    with pytest.raises(SourceError, match="val_annotations"):
        list(open_source(f"tiny-imagenet:{unpacked}?split=val").scan())


def test_a_list_that_is_too_long_is_not_read(unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "_MAX_TEXT_BYTES", 1000)
    (unpacked / "words.txt").write_text("n00001740\tentity\n" * 1000)
    zipped = shutil.make_archive(str(tmp_path / "long"), "zip", unpacked.parent, unpacked.name)
    for place in (zipped, unpacked):
        with pytest.raises(SourceError, match=r"words.txt that can be read.*more than 1,000 bytes"):
            open_source(f"tiny-imagenet:{place}").label_names()
    (unpacked / "words.txt").unlink()
    os.mkfifo(unpacked / "words.txt")
    with pytest.raises(SourceError, match="a fifo"):
        open_source(f"tiny-imagenet:{unpacked}").label_names()


def test_a_wrong_call_leaves_no_collection_behind(tiny: TinyEncoder, unpacked: Path, tmp_path: Path) -> None:
    shutil.rmtree(unpacked / "test")
    with pytest.raises(SourceError, match="no images of the split test"):
        index(f"tiny-imagenet:{unpacked}?split=test", tmp_path / "c", encoders=["tiny"])
    assert not (tmp_path / "c").exists()
    index(f"tiny-imagenet:{unpacked}", tmp_path / "c", encoders=["tiny"])
    with pytest.raises(SourceError, match="no images of the split test"):
        index(f"tiny-imagenet:{unpacked}?split=test", tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection) == 6


def test_missing_names_of_labels_are_reported(tiny: TinyEncoder, unpacked: Path, tmp_path: Path) -> None:
    (unpacked / "words.txt").unlink()
    report = index(f"tiny-imagenet:{unpacked}", tmp_path / "c", encoders=["tiny"])
    assert report.added == 6
    assert [(f.uri, f.reason) for f in report.failures] == [(f"tiny-imagenet:{unpacked}", "no names of labels")]
    (unpacked / "words.txt").write_text("")
    assert index(collection=tmp_path / "c").failures == []


def test_damaged_images_of_a_zip_file_are_reported(tiny: TinyEncoder, zipped: Path, tmp_path: Path) -> None:
    content = bytearray(zipped.read_bytes())
    with zipfile.ZipFile(zipped) as archive:
        first = archive.getinfo("tiny-imagenet-200/train/n01443537/images/n01443537_0.JPEG")
    # In the middle of the content, after the local header, which states its own length.
    extra = int.from_bytes(content[first.header_offset + 28 : first.header_offset + 30], "little")
    content[first.header_offset + 30 + len(first.filename) + extra + first.compress_size // 2] ^= 0xFF
    zipped.write_bytes(content)
    report = index(f"tiny-imagenet:{zipped}", tmp_path / "c", encoders=["tiny"])
    assert (report.added, len(report.failures)) == (5, 1)
    assert report.failures[0].reason == "damaged"
    assert report.failures[0].uri == f"{zipped}/{first.filename}"


def test_a_zip_file_needs_a_collection(tiny: TinyEncoder, zipped: Path, unpacked: Path) -> None:
    with pytest.raises(CollectionError, match="-c FOLDER"):
        index(f"tiny-imagenet:{zipped}", encoders=["tiny"])
    assert index(f"tiny-imagenet:{unpacked}", encoders=["tiny"]).collection == unpacked / ".pixmatcher"


def test_a_folder_can_be_called_like_a_spec(tiny: TinyEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "tiny-imagenet:x" / "a.png", 1)
    monkeypatch.chdir(tmp_path)
    assert index("tiny-imagenet:x", encoders=["tiny"]).added == 1
    assert index(tmp_path / "tiny-imagenet:x").unchanged == 1


def test_from_the_command_line(zipped: Path, tmp_path: Path) -> None:
    spec = f"tiny-imagenet:{os.path.relpath(zipped, tmp_path)}?split=val"
    assert cli("index", spec, "-c", "c", cwd=tmp_path).returncode == 0
    found = cli("search", "goldfish", "-c", "c", "--save-grid", "grid.png", cwd=tmp_path)
    assert found.returncode == 0
    assert "Egyptian cat" in found.stdout
    with Image.open(tmp_path / "grid.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 100  # the images of the zip file, not empty cells
    assert "tiny-imagenet:" in cli("sources").stdout
    wrong = cli("index", "tiny-imagenet:missing.zip", "-c", "c", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)
