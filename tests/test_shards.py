"""Shards: the same split everywhere, the same collection as one run, and processes that are killed in between."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from memory_store import MemoryStore
from pixmatcher import Collection, CollectionError, ShardError, SourceError, index, index_shard, merge_shards
from pixmatcher._locks import FileLock
from pixmatcher._progress import Progress
from pixmatcher.export import export_arrays
from pixmatcher.indexing import MergeReport, Shard, numbers_text
from pixmatcher.indexing._shards import SourcePlace, digest_of
from pixmatcher.sources import Entry, open_source
from support import TinyEncoder, cli, paint, paint_many
from test_docs import check_command

HERE = str(Path(__file__).parent)


def run_shards(source: str | Path, count: int, to: Path, encoder: object = "tiny", **options: object) -> None:
    for number in range(1, count + 1):
        index_shard(source, f"{number}/{count}", to, encoders=encoder and [encoder], **options)  # type: ignore[arg-type]


def contents(path: str | Path) -> dict[str, tuple[object, ...]]:
    """All that a collection knows of each item, by uri: its fields, embeddings and thumbnail."""
    with Collection.open(path) as collection:
        assert collection.verify() == []
        items = [*collection.items()]
        rows = {space: collection.embeddings([item.id for item in items], space) for space in collection.spaces}
        return {
            item.uri: (
                dataclasses.replace(item, id=0, added=None),
                *(values[place].tobytes() for values in rows.values()),
                collection.thumbnail(item.content_hash),
            )
            for place, item in enumerate(items)
        }


def facts(path: str | Path) -> tuple[object, ...]:
    """What a collection knows beside its items."""
    with Collection.open(path) as collection:
        notes = [collection.folder_notes(spec) for spec in collection.sources()]
        records = collection.encoders
        return records, collection.sources(), notes, collection.failures(), collection.label_names()


def assert_same(one: str | Path, other: str | Path) -> None:
    assert contents(one) == contents(other)
    assert facts(one) == facts(other)


# ---- The split ----


def test_a_shard_is_written_as_number_and_count() -> None:
    assert Shard.parse("3/64") == Shard(3, 64)
    assert str(Shard(3, 64)) == "3/64"
    for text in ("0/64", "65/64", "1/0", "1/100000", "3", "3/", "/3", "a/b", "-1/4", "1/4/5", "1.0/4", "", "²/3"):
        with pytest.raises(ShardError) as caught:
            Shard.parse(text)
        assert str(caught.value).count(".") <= 2
        assert str(caught.value).endswith(".")


def test_numbers_as_slurm_writes_them() -> None:
    assert numbers_text([3, 7, 8, 9, 11, 12]) == "3,7-9,11-12"
    assert numbers_text([5]) == "5"
    assert numbers_text([]) == ""


def test_the_digest_of_a_name_never_changes() -> None:
    """Shards of another version or machine would not fit together."""
    assert digest_of("a/b.jpg") == 0x67ED673B4D9FCCAE
    assert digest_of("a", "1") == 0xCD85A665880B4301


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    from PIL import Image

    fields = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(file, "JPEG")
    return file.getvalue()


def make_tiny_imagenet(root: Path) -> Path:
    for number in range(40):
        paint(root / "train" / f"n{number % 4}" / "images" / f"n{number % 4}_{number}.JPEG", number, kind="JPEG")
    (root / "wnids.txt").write_text("n0\nn1\nn2\nn3\n")
    (root / "words.txt").write_text("n0\tgoldfish\nn1\tcat, house cat\nn9\tnot here\n")
    return root


def make_zip(path: Path) -> Path:
    folder = make_tiny_imagenet(path.parent / "unzipped" / "tiny-imagenet-200")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent))
    return path


def make_tar(path: Path, first: int, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            for name, data in ((f"{number:05}.jpg", picture(number)), (f"{number:05}.txt", b"number %d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def make_open_images(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{number:016x},train,http://127.0.0.1:9/{number}.jpg" for number in range(40)]
    (folder / "images.csv").write_text("ImageID,Subset,OriginalURL\n" + "\n".join(rows) + "\n")
    (folder / "labels.csv").write_text("ImageID,Source,LabelName,Confidence\n0000000000000001,verification,/m/01,1\n")
    return folder


def make_arrays(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "e.npy", np.random.default_rng(1).standard_normal((40, 960)).astype(np.float32))
    (folder / "uris.json").write_text(json.dumps([f"{number}.jpg" for number in range(40)]))
    return folder / "e.npy"


def make_source(kind: str, root: Path) -> str:
    """Make a source of 40 images of a kind in a folder, and return its spec."""
    if kind == "folder":
        for number, path in enumerate(paint_many(root / "photos", 40)):
            target = root / "photos" / "abc"[number % 3]
            target.mkdir(exist_ok=True)
            path.rename(target / path.name)
        return str(root / "photos")
    if kind == "tiny-imagenet":
        return f"tiny-imagenet:{make_tiny_imagenet(root / 'tiny-imagenet-200')}"
    if kind == "zip":
        return f"tiny-imagenet:{make_zip(root / 'tiny.zip')}"
    if kind == "tar":
        make_tar(root / "tars" / "00000.tar", 0, 20)
        make_tar(root / "tars" / "00001.tar", 20, 20)
        return f"webdataset:{root}/tars/{{00000..00001}}.tar"
    if kind == "urls":
        root.mkdir(parents=True, exist_ok=True)
        (root / "urls.txt").write_text("".join(f"http://127.0.0.1:9/{number}.jpg\n" for number in range(40)))
        return f"urls:{root}/urls.txt"
    if kind == "open-images":
        return f"open-images:{make_open_images(root / 'open')}"
    assert kind == "arrays"
    return f"arrays:{make_arrays(root / 'arrays')}?encoder=mobilenet_v3_large&uris={root / 'arrays' / 'uris.json'}"


KINDS = ("folder", "tiny-imagenet", "zip", "tar", "urls", "open-images", "arrays")


def split(spec: str, count: int) -> list[set[str]]:
    """The names of the entries of each shard."""
    source = open_source(spec)
    at = SourcePlace.of(source.spec)
    names = [at.name_of(found.uri) for found in source.scan() if isinstance(found, Entry)]
    assert len(names) == len(set(names)) == 40
    assert [at.uri_of(name) for name in names] == [f.uri for f in source.scan() if isinstance(f, Entry)]
    shards = [Shard(number, count) for number in range(1, count + 1)]
    parts = [{name for name in names if shard.has(digest_of(name))} for shard in shards]
    assert sum(map(len, parts)) == 40
    assert set().union(*parts) == set(names)
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_in_one_shard_wherever_the_source_is(tmp_path: Path, kind: str) -> None:
    here = make_source(kind, tmp_path / "here")
    elsewhere = make_source(kind, tmp_path / "mnt" / "else where")
    for count in (1, 3, 64):
        assert split(here, count) == split(elsewhere, count)


def test_the_split_is_the_same_in_another_process_and_no_image_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.jpg").symlink_to(tmp_path / "nowhere") if number == 7 else os.mkfifo(
            folder / f"{number}.jpg"
        ) if number == 8 else (folder / f"{number}.jpg").write_bytes(b"not read")
    code = (
        "import sys\nfrom pixmatcher.indexing._shards import Shard, SourcePlace, digest_of\n"
        "from pixmatcher.sources import Entry, open_source\nsource = open_source(sys.argv[1])\n"
        "at = SourcePlace.of(source.spec)\n"
        "print([at.name_of(f.uri) for f in source.scan() if isinstance(f, Entry) and Shard(2, 3).has(digest_of("
        "at.name_of(f.uri)))])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code, folder],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    (answer,) = answers
    assert 1 < answer.count(".jpg") < 28


# ---- The same collection as one run ----


@pytest.mark.parametrize("kind", ["folder", "tiny-imagenet", "zip", "tar"])
def test_merged_shards_are_the_collection_of_one_run(tiny: TinyEncoder, tmp_path: Path, kind: str) -> None:
    spec = make_source(kind, tmp_path)
    index(spec, tmp_path / "one", encoders=["tiny"])
    run_shards(spec, 3, tmp_path / "shards")
    assert tiny.encoded == 80
    merged = merge_shards(tmp_path / "shards", tmp_path / "merged")
    assert (merged.index.added, merged.index.total, merged.to_run_again) == (40, 40, "")
    assert_same(tmp_path / "one", tmp_path / "merged")
    again = merge_shards(tmp_path / "shards", tmp_path / "merged")
    assert (again.index.added, again.index.unchanged, again.index.total) == (0, 40, 40)
    assert_same(tmp_path / "one", tmp_path / "merged")
    report = index(spec, tmp_path / "merged")
    assert (report.unchanged, report.added, report.changed, report.removed) == (40, 0, 0, 0)
    assert tiny.encoded == 80


def test_copies_failures_and_incomplete_images_are_those_of_one_run(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number, path in enumerate(paint_many(photos, 20)):
        for copy in range(number % 3):
            shutil.copy(path, photos / f"copy-{number}-{copy}.png")
    for number in range(4):
        (photos / f"broken-{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    whole = picture(3, (400, 300))
    (photos / "cut.jpg").write_bytes(whole[: len(whole) - 60])
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / "dangling.png").symlink_to(photos / "nowhere.png")
    (photos / "film.mp4").write_bytes(b"a film")
    (photos / "without extension").write_bytes(picture(50))
    (photos / os.fsdecode(b"not-utf8-\xff.jpg")).write_bytes(picture(51))
    one = index(photos, tmp_path / "one", encoders=["tiny"], exclude=["copy-5-*"])
    run_shards(photos, 4, tmp_path / "shards", exclude=["copy-5-*"])
    merged = merge_shards(tmp_path / "shards", tmp_path / "merged").index
    assert sorted(f.uri for f in merged.failures) == sorted(f.uri for f in one.failures)
    assert len(merged.failures) == 6
    assert [i.uri for i in merged.incomplete] == [i.uri for i in one.incomplete] == [str(photos / "cut.jpg")]
    assert merged.passed_over == one.passed_over
    assert (merged.added, merged.total) == (one.added, one.total)
    assert_same(tmp_path / "one", tmp_path / "merged")
    report = index(photos, tmp_path / "merged")
    assert report.unchanged == one.total
    assert report.remembered == 4
    assert tiny.encoded == 2 * one.added


def test_saved_embeddings_in_shards(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 30)
    index(tmp_path / "photos", tmp_path / "c", encoders=["tiny"])
    with Collection.open(tmp_path / "c") as collection:
        export_arrays(collection, tmp_path / "arrays")
    spec = f"arrays:{tmp_path}/arrays/embeddings.npy"
    index(spec, tmp_path / "one")
    run_shards(spec, 3, tmp_path / "shards", None)
    merge_shards(tmp_path / "shards", tmp_path / "merged")
    assert_same(tmp_path / "one", tmp_path / "merged")
    with pytest.raises(SourceError, match="leave the encoders out"):
        index_shard(spec, "1/3", tmp_path / "shards", encoders=["tiny"])


def test_merging_into_a_collection_that_has_other_images(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "other", 5)
    paint_many(tmp_path / "photos", 20, first=3)
    index(tmp_path / "other", tmp_path / "c", encoders=["tiny"])
    run_shards(tmp_path / "photos", 2, tmp_path / "shards")
    report = merge_shards(tmp_path / "shards", tmp_path / "c").index
    assert (report.added, report.total) == (20, 25)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.sources() == [str(tmp_path / "other"), str(tmp_path / "photos")]
        assert collection.verify() == []
    assert index(None, tmp_path / "c").unchanged == 25


def test_merging_into_a_store_of_another_package(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos, 20)
    run_shards(photos, 2, tmp_path / "shards")
    one, merged = MemoryStore(), MemoryStore()
    index(photos, one)
    assert merge_shards(tmp_path / "shards", merged).index.added == 20
    assert merge_shards(tmp_path / "shards", merged).index.unchanged == 20
    assert index(photos, merged).unchanged == 20
    query = np.ones(48, np.float32)
    found, expected = (store.search(query, space="visual", k=20) for store in (merged, one))
    assert [hit.item.uri for hit in found] == [hit.item.uri for hit in expected]
    # This store keeps float32, of which shards keep float16.
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-2)


# ---- Running and merging again ----


def test_a_shard_that_is_run_again_encodes_only_what_is_new(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paths = paint_many(photos, 30)
    (photos / "broken.jpg").write_bytes(b"broken")
    run_shards(photos, 2, tmp_path / "shards")
    merge_shards(tmp_path / "shards", tmp_path / "c")
    again = [index_shard(photos, f"{number}/2", tmp_path / "shards", encoders=["tiny"]) for number in (1, 2)]
    assert [report.encoded for report in again] == [0, 0]
    assert sum(report.unchanged for report in again) == 31
    assert [len(report.failures) for report in again].count(1) == 1
    paint(paths[3], 100)  # changed
    paint_many(photos, 5, first=200)  # new
    paths[4].rename(photos / "moved.png")
    (photos / "broken.jpg").write_bytes(picture(60))
    again = [index_shard(photos, f"{number}/2", tmp_path / "shards", encoders=["tiny"]) for number in (1, 2)]
    assert sum(report.encoded for report in again) == 8
    assert [report.failures for report in again] == [[], []]
    report = merge_shards(tmp_path / "shards", tmp_path / "c").index
    assert (report.added, report.changed, report.unchanged, report.removed) == (7, 1, 28, 0)
    assert report.failures == []
    found = contents(tmp_path / "c")
    assert str(paths[4]) in found  # nothing is removed
    cleaned = index(photos, tmp_path / "c")
    assert (cleaned.removed, cleaned.unchanged, cleaned.added) == (1, 36, 0)
    index(photos, tmp_path / "one", encoders=["tiny"])
    assert_same(tmp_path / "one", tmp_path / "c")


def test_what_is_newer_in_the_collection_than_in_the_shards_is_kept(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos, shards, memory = tmp_path / "photos", tmp_path / "shards", MemoryStore()
    paths = paint_many(photos, 12)
    run_shards(photos, 2, shards)
    paint_many(photos, 2, first=50)
    for number, path in enumerate(paths[:4]):
        paint(path, 100 + number)
        seconds = path.stat().st_mtime + (60 if number < 3 else -60)  # the last is replaced by an earlier file
        os.utime(path, (seconds, seconds))
    index(photos, tmp_path / "c", encoders=["tiny"])
    index(photos, memory)
    expected = contents(tmp_path / "c")
    for target in (tmp_path / "c", memory):
        report = merge_shards(shards, target).index
        assert (report.added, report.changed, report.unchanged, report.total) == (0, 1, 8, 14)
        assert report.notes == [
            "3 images are kept as in the collection, which has later files than the shards: to take the files of now, "
            f"index {photos} into it."
        ]
    merged = contents(tmp_path / "c")
    assert {uri for uri in merged if merged[uri] != expected[uri]} == {str(paths[3])}
    assert index(photos, tmp_path / "c").changed == 1
    assert contents(tmp_path / "c") == expected
    run_shards(photos, 2, shards)
    assert merge_shards(shards, tmp_path / "c").index.notes == []


def test_merging_old_shards_keeps_what_the_collection_leaves_out(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos, shards = tmp_path / "photos", tmp_path / "shards"
    paint_many(photos, 6)
    paint(photos / ".hidden.png", 60)
    run_shards(photos, 2, shards)
    assert index(photos, tmp_path / "c", encoders=["tiny"], exclude=["00001.png"], hidden=True).total == 6
    expected = contents(tmp_path / "c")
    assert merge_shards(shards, tmp_path / "c").index.total == 7
    assert index(photos, tmp_path / "c").removed == 1
    assert contents(tmp_path / "c") == expected
    run_shards(photos, 2, tmp_path / "named", exclude=[])
    assert merge_shards(tmp_path / "named", tmp_path / "c").index.total == 7
    assert index(photos, tmp_path / "c").unchanged == 7


def test_what_failed_is_tried_again_on_request(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos, 3)
    paint(photos / "large.png", 9, size=(100, 100))
    for again in (False, True):
        report = index_shard(photos, "1/1", tmp_path / "s", encoders=["tiny"], max_pixels=5000, retry_failed=again)
        assert [Path(failure.uri).name for failure in report.failures] == ["large.png"]
        assert (report.encoded, report.unchanged) == ((0, 3) if again else (3, 0))
    merged = merge_shards(tmp_path / "s", tmp_path / "c").index
    assert [failure.reason for failure in merged.failures] == ["too many pixels"]


def test_missing_shards_are_named_and_joined_later(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos, 40)
    index(photos, tmp_path / "one", encoders=["tiny"])
    for number in (2, 4, 5):
        index_shard(photos, f"{number}/6", tmp_path / "shards", encoders=["tiny"])
    report = merge_shards(tmp_path / "shards", tmp_path / "c")
    assert (report.missing, report.to_run_again) == ([1, 3, 6], "1,3,6")
    stored = report.index.total
    assert 0 < stored < 40
    for number in (6, 1, 3):
        index_shard(photos, f"{number}/6", tmp_path / "shards", encoders=["tiny"])
    report = merge_shards(tmp_path / "shards", tmp_path / "c")
    assert (report.missing, report.to_run_again, report.index.added) == ([], "", 40 - stored)
    assert_same(tmp_path / "one", tmp_path / "c")


def test_shards_that_saw_different_images_are_named(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paths = paint_many(photos, 20)
    for number in (1, 2, 3):
        index_shard(photos, f"{number}/4", tmp_path / "shards", encoders=["tiny"])
    hidden = paths[0].rename(tmp_path / "away.png")  # as if its disk were not mounted on one machine
    index_shard(photos, "4/4", tmp_path / "shards", encoders=["tiny"])
    report = merge_shards(tmp_path / "shards", tmp_path / "c")
    assert (report.differing, report.to_run_again) == ([4], "4")
    hidden.rename(paths[0])
    index_shard(photos, "4/4", tmp_path / "shards", encoders=["tiny"])
    report = merge_shards(tmp_path / "shards", tmp_path / "c")
    assert (report.differing, report.index.total) == ([], 20)


def test_a_folder_that_one_machine_cannot_read_is_reported(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos / "a", 5)
    (photos / "b").mkdir()
    (photos / "b" / ".pixmatcherignore").write_bytes(b"#" * (1 << 19))  # too long to be read
    run_shards(photos, 3, tmp_path / "shards")
    report = merge_shards(tmp_path / "shards", tmp_path / "c")
    assert [(Path(f.uri).name, f.reason) for f in report.index.failures] == [("b", "folder cannot be read")]


def test_shards_that_are_written_during_a_merge(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos, shards = tmp_path / "photos", tmp_path / "shards"
    paths = paint_many(photos, 20)
    run_shards(photos, 2, shards)
    paint(paths[3], 100)

    def write_meanwhile(progress: Progress) -> None:
        run_shards(photos, 2, shards)

    with pytest.raises(ShardError, match="were written while they were merged: merge again"):
        merge_shards(shards, tmp_path / "c", progress=write_meanwhile)
    report = merge_shards(shards, tmp_path / "c")
    assert (report.index.added, report.index.total, report.to_run_again) == (1, 20, "")

    def delete_meanwhile(progress: Progress) -> None:
        shutil.rmtree(shards / "shard-00002-of-00002", ignore_errors=True)

    with pytest.raises(ShardError, match="merge again when that has finished"):
        merge_shards(shards, tmp_path / "d", progress=delete_meanwhile)


def test_what_was_forgotten_stays_forgotten(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos / "a", 5)
    paint_many(photos / "b", 5, first=10)
    run_shards(photos, 2, tmp_path / "shards")
    merge_shards(tmp_path / "shards", tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        assert collection.forget(photos / "b") == 5
    assert merge_shards(tmp_path / "shards", tmp_path / "c").index.total == 5
    assert index(photos, tmp_path / "c").unchanged == 5


# ---- Elsewhere ----


def test_shards_of_machines_where_the_source_is_in_different_folders(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "a" / "photos"
    paint_many(photos, 20)
    for number in range(8):
        (photos / f"dangling-{number}.png").symlink_to("nowhere.png")
    shutil.copytree(photos, tmp_path / "b" / "pictures", symlinks=True)
    index_shard(tmp_path / "a" / "photos", "1/2", tmp_path / "shards", encoders=["tiny"])
    index_shard(tmp_path / "b" / "pictures", "2/2", tmp_path / "shards", encoders=["tiny"])
    with pytest.raises(ShardError, match="say with --source where it is"):
        merge_shards(tmp_path / "shards", tmp_path / "c")
    (tmp_path / "a" / "photos").rename(tmp_path / "here")
    report = merge_shards(tmp_path / "shards", tmp_path / "c", source=tmp_path / "here")
    assert (report.index.total, report.to_run_again) == (20, "")
    index(tmp_path / "here", tmp_path / "one", encoders=["tiny"])
    assert facts(tmp_path / "c")[3] == facts(tmp_path / "one")[3]  # the failures
    found, expected = contents(tmp_path / "c"), contents(tmp_path / "one")
    assert found.keys() == expected.keys()
    assert all(found[uri][1:] == expected[uri][1:] for uri in found)
    # The times of copies differ, so they are read once more, but they are not encoded.
    encoded = tiny.encoded
    assert index(tmp_path / "here", tmp_path / "c").unchanged == 20
    assert tiny.encoded == encoded
    with pytest.raises(ShardError, match="not of tiny-imagenet"):
        merge_shards(
            tmp_path / "shards", tmp_path / "d", source=f"tiny-imagenet:{make_tiny_imagenet(tmp_path / 'tiny')}"
        )


# ---- Wrong calls and damage ----


def test_shards_that_do_not_belong_together(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos, shards = tmp_path / "photos", tmp_path / "shards"
    paint_many(photos, 10)
    index_shard(photos, "1/2", shards, encoders=["tiny"])

    class Other(TinyEncoder):
        fingerprint = "tiny-2"

    for message, shard, source, options in (
        ("2 shards, not 3", "1/3", photos, {}),
        ("tiny-1.*not tiny .tiny-2", "2/2", photos, {"encoders": [Other()]}),
        ("the option max_pixels", "2/2", photos, {"max_pixels": 10}),
        ("the option hidden", "2/2", photos, {"hidden": True}),
        ("the source folder", "2/2", f"tiny-imagenet:{make_tiny_imagenet(tmp_path / 't')}", {}),
    ):
        with pytest.raises(ShardError, match=message):
            index_shard(source, shard, shards, **{"encoders": ["tiny"], **options})  # type: ignore[arg-type]
    for folder in ("shard-00002-of-00002", "shard-00001-of-00003"):  # a copy under a wrong name
        shutil.copytree(shards / "shard-00001-of-00002", shards / folder)
        with pytest.raises(ShardError, match=rf"The folder {folder} in .* has the files of another shard: delete it"):
            merge_shards(shards, tmp_path / "c")
        shutil.rmtree(shards / folder)
    shutil.rmtree(tmp_path / "c")  # it has no items
    # Two that began at the same time with different options: the last file that both write wins.
    common = (shards / "shards.json").read_text()
    (shards / "shards.json").unlink()
    index_shard(photos, "2/2", shards, encoders=["tiny"], hidden=True)
    with pytest.raises(ShardError, match=r"The shard 1/2 .* the option hidden.*delete its folder shard-00001-of-00002"):
        merge_shards(shards, tmp_path / "c")
    (shards / "shards.json").write_text(common.replace('"format": 1', '"format": 2'))
    with pytest.raises(ShardError, match="newer version"):
        merge_shards(shards, tmp_path / "c")
    (shards / "shards.json").write_text(common[:100])
    with pytest.raises(ShardError, match=r"shards\.json is damaged"):
        merge_shards(shards, tmp_path / "c")
    with pytest.raises(ShardError, match="There are no shards in"):
        merge_shards(tmp_path / "nothing", tmp_path / "c")
    for place in ("", "http://host/x", "ftp://host/x"):
        with pytest.raises(ShardError, match="no place for shards"):
            index_shard(photos, "1/2", place, encoders=["tiny"])
    assert not (tmp_path / "c").exists()


def test_a_shard_of_one_folder_is_not_replaced_by_that_of_another(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "one", 3)
    paint(tmp_path / "other" / "something.png", 9)
    index_shard(tmp_path / "one", "1/1", tmp_path / "to", encoders=["tiny"])
    with pytest.raises(ShardError, match=r"is of .*one, and .*other has none of its images: name another place"):
        index_shard(tmp_path / "other", "1/1", tmp_path / "to", encoders=["tiny"])
    merge_shards(tmp_path / "to", tmp_path / "collection")
    assert {os.path.dirname(uri) for uri in contents(tmp_path / "collection")} == {str(tmp_path / "one")}


def test_a_collection_of_another_encoder_is_left_alone(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 4)

    class Other(TinyEncoder):
        name = "other"

    index(tmp_path / "photos", tmp_path / "c", encoders=[Other()])
    before = contents(tmp_path / "c")
    run_shards(tmp_path / "photos", 1, tmp_path / "shards")
    with pytest.raises(CollectionError, match="no embeddings of the encoder other"):
        merge_shards(tmp_path / "shards", tmp_path / "c")
    assert contents(tmp_path / "c") == before


def test_a_damaged_file_is_named_and_can_be_made_again(tiny: TinyEncoder, tmp_path: Path) -> None:
    photos, shards = tmp_path / "photos", tmp_path / "shards"
    paint_many(photos, 12)
    run_shards(photos, 1, shards)
    (part,) = shards.glob("shard-00001-of-00001/*.zip")
    merge_shards(shards, tmp_path / "one")
    expected = contents(tmp_path / "one")
    whole = part.read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 12):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        try:
            merge_shards(shards, tmp_path / "c")
        except ShardError:
            refused += 1
        else:
            assert contents(tmp_path / "c") == expected  # some bytes do not matter
    assert refused > 6
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"\.zip is damaged .* delete it, and encode its shard again"):
        merge_shards(shards, tmp_path / "c")
    with pytest.raises(ShardError, match=r"\.zip is damaged"):
        index_shard(photos, "1/1", shards, encoders=["tiny"])
    part.unlink()
    report = merge_shards(shards, tmp_path / "c")
    assert (report.unfinished, report.index.total, report.to_run_again) == ({1: 12}, 0, "1")
    assert index_shard(photos, "1/1", shards, encoders=["tiny"]).encoded == 12
    assert merge_shards(shards, tmp_path / "c").index.total == 12
    part = next(shards.glob("*/*.zip"))
    whole = part.read_bytes()
    # Encrypted; compressed in another way; the list of files begins before the file.
    for place in (whole.rindex(b"PK\1\2") + 8, whole.rindex(b"PK\1\2") + 10, whole.rindex(b"PK\5\6") + 14):
        part.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
        with pytest.raises(ShardError, match=r"\.zip is damaged"):
            index_shard(photos, "1/1", shards, encoders=["tiny"])
    part.write_bytes(whole)
    listing = shards / "shard-00001-of-00001" / "listing.jsonl"
    whole = listing.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = whole.replace(b"00003.png", b"00030.png")
    assert changed != whole
    for damaged in (whole[:-20], b"".join(lines[:-1]), b"".join(lines[:7]), b"".join(lines[:1]), b"", changed):
        listing.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"listing\.jsonl is damaged"):
            merge_shards(shards, tmp_path / "c")


def test_one_process_writes_a_shard(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 4)
    run_shards(tmp_path / "photos", 2, tmp_path / "shards")
    lock = FileLock(tmp_path / "shards" / "shard-00001-of-00002" / "lock")
    assert lock.acquire()
    with pytest.raises(ShardError, match=rf"The shard 1/2 in .* is being written by process {os.getpid()} on"):
        index_shard(tmp_path / "photos", "1/2", tmp_path / "shards", encoders=["tiny"])
    index_shard(tmp_path / "photos", "2/2", tmp_path / "shards", encoders=["tiny"])
    lock.release()
    index_shard(tmp_path / "photos", "1/2", tmp_path / "shards", encoders=["tiny"])


def test_parts_of_two_processes_at_once_count_together(tiny: TinyEncoder, tmp_path: Path) -> None:
    """Object stores have no locks: both processes write parts of the same images."""
    photos = tmp_path / "photos"
    paint_many(photos, 10)
    index(photos, tmp_path / "one", encoders=["tiny"])
    run_shards(photos, 1, tmp_path / "a")
    run_shards(photos, 1, tmp_path / "b")
    for part in (tmp_path / "b").glob("*/*.zip"):
        shutil.copy(part, tmp_path / "a" / "shard-00001-of-00001")
    assert len([*(tmp_path / "a").glob("*/*.zip")]) == 2
    assert index_shard(photos, "1/1", tmp_path / "a", encoders=["tiny"]).encoded == 0
    assert merge_shards(tmp_path / "a", tmp_path / "c").index.added == 10
    assert_same(tmp_path / "one", tmp_path / "c")


# ---- The command line ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard", "0/2", "--to", "s"), "There is no shard 0/2: the shards are 1/2 to 2/2."),
        (("--shard", "1/2"), "--shard and --to belong together"),
        (("--shard", "1/2", "--to", "s", "-c", "c"), "name one source, and leave out -c"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    paint(tmp_path / "photos" / "a.png", 1)
    failed = cli("index", "photos", *arguments, cwd=tmp_path)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    assert message in failed.stderr
    assert [*tmp_path.iterdir()] == [tmp_path / "photos"]


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    paint_many(photos, 12)
    (photos / "broken.jpg").write_bytes(b"broken")
    made = cli("index", "photos", "--shard", "1/2", "--to", "s", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "Shard 1/2 in s: " in made.stdout
    merged = cli("merge", "s", "-c", "c", cwd=tmp_path)
    assert merged.returncode == 1
    assert "Missing, of the shards 1 to 2: 2\n" in merged.stdout
    assert f"index {photos} --shard NUMBER/2 --to s\n" in merged.stdout
    rest = cli("index", "photos", "--shard", "2/2", "--to", "s", cwd=tmp_path)
    assert rest.returncode == 0
    assert ("not an image" in made.stdout) != ("not an image" in rest.stdout)
    merged = cli("merge", "s", "-c", "c", cwd=tmp_path)
    assert merged.returncode == 1  # of the broken image
    assert "12 images in" in merged.stdout
    assert "broken.jpg: not an image" in merged.stdout
    assert "shards 1 to 2" not in merged.stdout


def test_the_scripts_for_slurm_and_kubernetes_call_the_shards(tmp_path: Path) -> None:
    """Both are run as their systems run them, with a program that prints its arguments instead of `pixmatcher`."""
    import yaml

    program = tmp_path / "pixmatcher"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    deploy = Path(HERE).parent / "deploy"
    slurm = {"SLURM_ARRAY_TASK_ID": "64", "SOURCE": "/data/my photos", "PARTS": "/data/parts"}
    job = yaml.safe_load((deploy / "shards-job.yaml").read_text())["spec"]
    assert (job["completions"], job["completionMode"]) == (64, "Indexed")
    (container,) = job["template"]["spec"]["containers"]
    for command, variables, source, place in (
        (["bash", deploy / "shards.sbatch"], slurm, "/data/my photos", "/data/parts"),
        (
            [*container["command"], *container["args"]],
            {"JOB_COMPLETION_INDEX": "63"},
            "s3://photos/2026",
            "s3://photos-parts/2026",
        ),
    ):
        done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=True)
        arguments = done.stdout.splitlines()
        assert arguments == ["index", source, "--shard", "64/64", "--to", place]
        check_command(["pixmatcher", *arguments])
    assert "#SBATCH --array=1-64\n" in (deploy / "shards.sbatch").read_text()


# ---- Kills ----

DRIVER = """
# Runs a shard or a merge in a child, so that only the child is killed, and the next one need not import again.
import os, sys, time, signal
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
import pixmatcher.vector_index, pixmatcher.images, PIL.PngImagePlugin
from pixmatcher import encoders, index_shard, merge_shards
from pixmatcher.indexing import _merge, _shard_run, _store

encoders.register_encoder("tiny", TinyEncoder)
_store._FLUSH_ITEMS = _merge._BATCH = 4  # many commits
_shard_run._PART_ITEMS = 12
for line in sys.stdin:
    what, delay = line.split()
    child = os.fork()
    if not child:
        if what == "merge":
            merge_shards(sys.argv[3], sys.argv[4])
        else:
            index_shard(sys.argv[2], what, sys.argv[3], encoders=["tiny"], workers=2)
        os._exit(0)
    if float(delay) >= 0:
        time.sleep(float(delay))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_shards_and_merges_killed_repeatedly_lose_nothing(tiny: TinyEncoder, tmp_path: Path) -> None:
    """40 kills or more at random moments of shards and of merges, which run in any order."""
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201
    chance = random.Random(seed)
    photos, shards, merged = (tmp_path / name for name in ("photos", "shards", "merged"))
    paint_many(photos, 240)
    for number in range(8):
        (photos / f"broken-{number}.jpg").write_bytes(b"\xff\xd8 broken")
    index(photos, tmp_path / "one", encoders=["tiny"])
    killed = {"merge": 0, "shard": 0}
    after_kill = 0
    command = [sys.executable, "-c", DRIVER, HERE, str(photos), str(shards), str(merged)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None

        def run(what: str, delay: float) -> int:
            print(what, delay, file=driver.stdin, flush=True)
            ready, _, _ = select.select([driver.stdout], [], [], 60)
            assert ready, "the run hangs"
            return int(driver.stdout.readline())  # type: ignore[union-attr]

        assert run("1/3", -1) == 0
        longest = {"merge": 0.2, "shard": 0.2}
        while min(killed.values()) < 20 or after_kill <= 5:
            kind = chance.choice(("merge", "shard"))
            what = kind if kind == "merge" else f"{chance.randint(1, 3)}/3"
            code = run(what, chance.uniform(0, longest[kind]))
            assert code in (0, -signal.SIGKILL)
            killed[kind] += code < 0
            # Most runs must be killed and some must end, also on a busy machine.
            longest[kind] *= 0.8 if code == 0 else 1.1
            if code == 0 and what != "1/3" and chance.random() < 0.3:  # begin again
                shutil.rmtree(merged if kind == "merge" else shards / f"shard-{what[0]:0>5}-of-00003")
            if code < 0 and Collection.locate(merged) is not None:
                with Collection.open(merged) as collection:
                    assert {problem.part for problem in collection.verify()} <= {"index"}
                    after_kill += len(collection) > 0
        for what in ("1/3", "2/3", "3/3", "merge"):
            assert run(what, -1) == 0
        driver.stdin.close()
        assert driver.wait(120) == 0
    assert after_kill > 3
    assert_same(tmp_path / "one", merged)
    assert not [*shards.rglob("*.new")]


@pytest.mark.slow
def test_a_shard_killed_loses_only_its_unfinished_part(tmp_path: Path) -> None:
    photos, shards, merged = (tmp_path / name for name in ("photos", "shards", "merged"))
    paint_many(photos, 300)
    command = [sys.executable, "-c", DRIVER, HERE, str(photos), str(shards), str(merged)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        delay = 0.05
        while True:
            print("1/1", delay, file=driver.stdin, flush=True)
            code = int(driver.stdout.readline())
            parts = [*shards.glob("*/*.zip")]
            if code < 0 and parts:
                break
            assert code < 0, "it was not killed"
            delay += 0.02
        driver.stdin.close()
    done = sum(len(_results(part)) for part in parts)
    assert done >= 12 * len(parts)
    encoder = TinyEncoder()
    report = index_shard(photos, "1/1", shards, encoders=[encoder])
    assert report.unchanged == done
    assert report.encoded == encoder.encoded == 300 - done


def _results(part: Path) -> list[Mapping[str, object]]:
    with zipfile.ZipFile(part) as archive:
        return [json.loads(line) for line in archive.read("results.jsonl").splitlines()]


def test_what_a_killed_process_leaves_is_deleted_by_the_next_run(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 4)
    code = (
        "import os, sys\nsys.path.insert(0, sys.argv[1])\nfrom support import TinyEncoder\n"
        "from pixmatcher import index_shard\nfrom pixmatcher.indexing import _shard_places\n"
        "_shard_places.copyfileobj = lambda *_: os._exit(9)\n"  # as it writes its first file, shards.json
        "index_shard(sys.argv[2], '1/2', sys.argv[3], encoders=[TinyEncoder()])"
    )
    shards = tmp_path / "shards"
    killed = subprocess.run([sys.executable, "-c", code, HERE, tmp_path / "photos", shards])
    assert killed.returncode == 9
    (left,) = shards.rglob("*.new")
    assert left.name.startswith("shards.json.")
    index_shard(tmp_path / "photos", "1/2", shards, encoders=["tiny"])
    assert not [*shards.rglob("*.new")]


def test_the_files_of_a_part_are_plain(tiny: TinyEncoder, tmp_path: Path) -> None:
    """Other programs can read them: a zip file of JSON lines, NumPy arrays and JPEG files."""
    spec = make_source("tar", tmp_path)
    run_shards(spec, 1, tmp_path / "shards")
    (path,) = (tmp_path / "shards").glob("*/*.zip")
    results = _results(path)
    assert len(results) == 40
    arrays = np.load(path, allow_pickle=False)
    rows = arrays["embeddings/visual"] if "embeddings/visual" in arrays else arrays["embeddings/visual.npy"]
    assert rows.shape == (40, 48)
    assert rows.dtype == np.float16
    with zipfile.ZipFile(path) as archive:
        names: Iterable[str] = archive.namelist()
        assert archive.testzip() is None
        jpegs = [archive.read(name) for name in names if name.startswith("thumbnails/")]
    assert len(jpegs) == 40
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in jpegs)


def test_the_report_names_what_to_run_again() -> None:
    from pixmatcher import IndexReport

    report = MergeReport(IndexReport(Path("c")), "photos", "s", 9, [1, 2, 3], {5: 2, 9: 1}, [3, 4])
    assert report.to_run_again == "1-5,9"
