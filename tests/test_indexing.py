"""Indexing: only changed images are encoded, and the report counts the changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, EncoderError, IndexReport, SourceError, index
from pixmatcher.images import fit_image, open_image
from pixmatcher.sources.folder import as_date
from support import TinyEncoder, bound_by_permissions, cli, paint, paint_many


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images in three folders."""
    folder = tmp_path / "photos"
    paint_many(folder, 4)
    paint_many(folder / "trip", 2, first=10)
    paint_many(folder / "trip" / "day 2", 2, first=20)
    return folder


class Indexer:
    """Indexes with the small encoder, and counts the images that the last run encoded."""

    def __init__(self, encoder: TinyEncoder, collection: Path | None = None) -> None:
        self.encoder = encoder
        self.collection = collection
        self.encoded = 0

    def __call__(self, sources: Path | Sequence[Path], **options: object) -> IndexReport:
        before = self.encoder.encoded
        report = index(sources, self.collection, encoders=["tiny"], **options)  # type: ignore[arg-type]
        self.encoded = self.encoder.encoded - before
        check_items(report.collection, self.encoder)
        return report


@pytest.fixture
def run(tiny: TinyEncoder) -> Indexer:
    return Indexer(tiny)


def check_items(path: Path, encoder: TinyEncoder) -> None:
    """Check that each item belongs to its current file, and is found by it."""
    with Collection.open(path) as collection:
        assert collection.verify() == []
        items = list(collection.items())
        assert len({item.uri for item in items}) == len(items)
        for item in items:
            if not os.access(item.uri, os.R_OK):
                continue
            content = Path(item.uri).read_bytes()
            assert item.content_hash == hashlib.sha256(content).hexdigest()
            pixels = fit_image(open_image(content, min_side=encoder.recipe.min_side).image, encoder.recipe)[None]
            expected = encoder.encode_images(pixels)
            for space, vectors in expected.items():
                np.testing.assert_allclose(collection.embeddings([item.id], space), vectors, atol=1e-3)


def counts(report: IndexReport) -> dict[str, int]:
    """Return the numbers of a report that are not 0."""
    names = ("added", "changed", "moved", "removed", "unchanged")
    found = {name: getattr(report, name) for name in names} | {"failed": len(report.failures)}
    return {name: number for name, number in found.items() if number}


def ids(path: Path) -> dict[str, int]:
    with Collection.open(path) as collection:
        return {item.uri: item.id for item in collection.items()}


def test_the_first_run_and_a_second_one(run: Indexer, folder: Path) -> None:
    progress: list[tuple[int, int | None]] = []
    report = run(folder, progress=lambda p: progress.append((p.done, p.total)))
    assert report.collection == folder / ".pixmatcher"
    assert report.total == 8
    assert counts(report) == {"added": 8}
    assert run.encoded == 8
    assert progress[0] == (0, 8)
    assert progress[-1] == (8, 8)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    generation = (folder / ".pixmatcher" / "index" / "visual.json").read_text()
    assert counts(run(folder)) == {"unchanged": 8}
    assert run.encoded == 0
    # Nothing changed, so nothing derived is written again.
    assert (folder / ".pixmatcher" / "index" / "visual.json").read_text() == generation


def test_an_encoder_is_loaded_at_most_once_a_run_and_only_if_needed(
    run: Indexer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[int] = []
    monkeypatch.setattr(run.encoder, "load_images", lambda: loads.append(1))
    run(folder)
    assert len(loads) == 1
    run(folder)
    assert len(loads) == 1
    paint(folder / "new.png", 99)
    run(folder)
    assert len(loads) == 2


def test_the_fields_of_an_item(run: Indexer, tmp_path: Path) -> None:
    path = paint(tmp_path / "photos" / "a.jpg", 1, size=(64, 48))
    run(path.parent)
    with Collection.open(path.parent) as collection:
        [item] = collection.items()
    assert (item.uri, item.width, item.height, item.format) == (str(path), 64, 48, "JPEG")
    assert item.bytes == path.stat().st_size
    assert item.content_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert item.modified is not None
    assert item.modified.endswith("+00:00")


def test_added_changed_and_deleted(run: Indexer, folder: Path) -> None:
    run(folder)
    before = ids(folder)
    paint(folder / "new.png", 100)
    paint(folder / "00001.png", 101)
    (folder / "00002.png").unlink()
    report = run(folder)
    assert counts(report) == {"added": 1, "changed": 1, "removed": 1, "unchanged": 6}
    assert run.encoded == 2
    assert report.total == 8
    after = ids(folder)
    assert str(folder / "00002.png") not in after
    assert after[str(folder / "00001.png")] == before[str(folder / "00001.png")]


def test_moved_files_are_not_encoded_again_and_keep_their_ids(run: Indexer, folder: Path) -> None:
    run(folder)
    before = ids(folder)
    (folder / "00000.png").rename(folder / "renamed.png")
    (folder / "trip").rename(folder / "journey")
    assert counts(run(folder)) == {"moved": 5, "unchanged": 3}
    assert run.encoded == 0
    after = ids(folder)
    assert after[str(folder / "renamed.png")] == before[str(folder / "00000.png")]
    assert sorted(after.values()) == sorted(before.values())


def test_copied_and_touched_files_are_not_encoded_again(run: Indexer, folder: Path) -> None:
    run(folder)
    shutil.copy(folder / "00000.png", folder / "copy.png")
    os.utime(folder / "00001.png", (1, 1))
    assert counts(run(folder)) == {"added": 1, "unchanged": 8}
    assert run.encoded == 0
    assert counts(run(folder)) == {"unchanged": 9}


def test_a_file_too_large_to_read_at_once(run: Indexer, folder: Path) -> None:
    path = folder / "00000.png"
    with path.open("r+b") as file:
        file.truncate(65 << 20)  # data after the picture is part of the content; as a hole it uses no disk space
    assert counts(run(folder)) == {"added": 8}
    path.rename(folder / "trip" / "renamed.png")
    assert counts(run(folder)) == {"moved": 1, "unchanged": 7}
    assert run.encoded == 0


def test_swapped_files_are_not_encoded_again(run: Indexer, folder: Path) -> None:
    run(folder)
    one, two, aside = folder / "00000.png", folder / "00001.png", folder / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    assert counts(run(folder)) == {"changed": 2, "unchanged": 6}
    assert run.encoded == 0


def test_a_file_is_moved_and_another_one_gets_its_name(run: Indexer, folder: Path) -> None:
    run(folder)
    (folder / "00000.png").rename(folder / "zzz.png")
    paint(folder / "00000.png", 100)
    assert counts(run(folder)) == {"added": 1, "changed": 1, "unchanged": 7}
    assert run.encoded == 1


def test_a_file_is_moved_over_another_one(run: Indexer, folder: Path) -> None:
    run(folder)
    before = ids(folder)
    (folder / "00000.png").replace(folder / "00001.png")
    assert counts(run(folder))["unchanged"] == 6
    assert run.encoded == 0
    after = ids(folder)
    assert len(after) == 7
    assert after[str(folder / "00001.png")] in (before[str(folder / "00000.png")], before[str(folder / "00001.png")])


def test_copies_replace_deleted_originals_in_many_files(run: Indexer, tmp_path: Path) -> None:
    """Many files have the same content; some are moved, some are deleted."""
    folder = tmp_path / "photos"
    original = paint(folder / "0.png", 1)
    for n in range(1, 30):
        shutil.copy(original, folder / f"{n}.png")
    run(folder)
    for n in range(10):
        (folder / f"{n}.png").rename(folder / f"moved {n}.png")
    for n in range(10, 20):
        (folder / f"{n}.png").unlink()
    assert counts(run(folder)) == {"moved": 10, "removed": 10, "unchanged": 10}
    assert run.encoded == 0


def test_a_run_of_several_commits(run: Indexer, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 1100)
    assert counts(run(folder, workers=3)) == {"added": 1100}
    for path in list(folder.glob("*.png"))[:1050]:
        path.chmod(0o640)
    folder.rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere"
    assert counts(run(folder)) == {"unchanged": 1100}
    assert run.encoded == 0


def test_hidden_files_and_collections_are_skipped(run: Indexer, folder: Path, tmp_path: Path) -> None:
    paint(folder / ".hidden.png", 50)
    paint(folder / ".hidden" / "a.png", 51)
    paint(folder / "@eaDir" / "thumbnail.png", 52)
    paint(folder / "notes.txt", 53, kind="PNG")
    inner = Indexer(run.encoder, folder / "inner collection")
    inner(folder / "trip")
    paint(folder / "inner collection" / "vectors" / "a.png", 54)
    assert counts(run(folder)) == {"added": 8}
    # Other files in the folder of a collection belong to the user.
    paint(folder / "inner collection" / "a.png", 55)
    assert counts(run(folder)) == {"added": 1, "unchanged": 8}


def test_a_collection_is_created_inside_a_folder_of_other_files(tiny: TinyEncoder, folder: Path) -> None:
    report = index(folder, folder, encoders=["tiny"])
    assert report.collection == folder / ".pixmatcher"
    assert report.total == 8
    assert index(folder, folder).collection == folder / ".pixmatcher"
    # No second collection is created, also if the first one is damaged.
    (folder / ".pixmatcher" / "collection.json").write_text("garbage")
    with pytest.raises(CollectionError, match="damaged"):
        index(folder, folder)


def test_a_collection_in_another_folder(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    run = Indexer(tiny, tmp_path / "deep" / "collection")
    assert run(folder).collection == tmp_path / "deep" / "collection"
    assert not (folder / ".pixmatcher").exists()
    assert counts(run(folder)) == {"unchanged": 8}


def test_overlapping_sources(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    run = Indexer(tiny, tmp_path / "c")
    assert counts(run([folder, folder / "trip"])) == {"added": 8}
    assert run.encoded == 8
    assert counts(run([folder / "trip", folder])) == {"unchanged": 8}
    (folder / "trip" / "00010.png").unlink()
    assert counts(run([folder / "trip", folder])) == {"removed": 1, "unchanged": 7}


def test_items_deleted_from_an_overlapping_source_are_removed(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    run = Indexer(tiny, tmp_path / "c")
    paint(folder / ".hidden" / "a.png", 50)
    run(folder / ".hidden")
    run(folder / "trip")
    assert counts(run(folder)) == {"added": 4, "unchanged": 4}
    (folder / "trip" / "00010.png").unlink()
    (folder / "trip" / "00011.png").rename(folder / "renamed.png")
    # Files outside this source are not treated as deleted.
    assert counts(run(folder)) == {"moved": 1, "removed": 1, "unchanged": 6}
    (folder / "renamed.png").rename(folder / "trip" / "back.png")
    assert counts(run(folder / "trip")) == {"added": 1, "unchanged": 2}
    assert counts(run(folder)) == {"removed": 1, "unchanged": 7}
    # An empty folder may be a disk that is not mounted.
    (folder / "trip").rename(tmp_path / "aside")
    (folder / "trip").mkdir()
    assert "removed" not in counts(run(folder))


def test_a_refresh_continues_if_a_source_is_missing(
    tiny: TinyEncoder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Indexer(tiny, tmp_path / "c")
    other = tmp_path / "other"
    paint_many(other, 2, first=40)
    run([folder, other])
    folder.rename(tmp_path / "aside")
    paint(other / "new.png", 50)
    report = index(collection=tmp_path / "c")
    assert counts(report) == {"added": 1, "unchanged": 2, "failed": 1}
    assert [(failure.uri, failure.reason) for failure in report.failures] == [(str(folder), "missing source")]
    assert "does not exist" in report.failures[0].detail
    assert report.total == 11
    with Collection.open(tmp_path / "c") as collection:
        with pytest.raises(CollectionError, match="is not a source of"):
            collection.forget(tmp_path / "aside")
        monkeypatch.chdir(tmp_path)
        assert collection.forget("photos") == 8
    assert counts(index(collection=tmp_path / "c")) == {"unchanged": 3}


def test_a_run_reports_its_own_sources_only(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    run = Indexer(tiny, tmp_path / "c")
    broken(folder / "broken.png")
    paint_many(tmp_path / "other", 1, first=40)
    assert counts(run(folder)) == {"added": 8, "failed": 1}
    assert counts(run(tmp_path / "other")) == {"added": 1}


def test_a_folder_of_photos_is_not_mistaken_for_a_collection(tiny: TinyEncoder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert index(tmp_path / "empty", tmp_path / "empty", encoders=["tiny"]).collection.name == ".pixmatcher"
    paint(tmp_path / "e" / "index" / "a.png", 1)
    assert index(tmp_path / "e" / "index", tmp_path / "e", encoders=["tiny"]).collection.name == ".pixmatcher"
    paint(tmp_path / "empty" / "a.png", 2)
    assert index(tmp_path / "empty").added == 1


def test_an_invalid_modification_date_is_left_out() -> None:
    assert as_date(300_000_000_000) is None
    assert as_date(0) == "1970-01-01T00:00:00+00:00"


def test_three_sources_and_a_move_between_them(tiny: TinyEncoder, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for number, folder in enumerate(folders):
        paint_many(folder, 3, first=10 * number)
    run = Indexer(tiny, tmp_path / "collection")
    progress: list[tuple[int, int | None]] = []
    assert counts(run(folders, progress=lambda p: progress.append((p.done, p.total)))) == {"added": 9}
    assert progress[-1] == (9, 9)
    assert [total for _, total in progress] == [9] * len(progress)
    before = ids(tmp_path / "collection")
    (folders[0] / "00000.png").rename(folders[2] / "new.png")
    (folders[2] / "00020.png").rename(folders[1] / "new.png")
    assert counts(run(folders)) == {"moved": 2, "unchanged": 7}
    assert run.encoded == 0
    assert sorted(ids(tmp_path / "collection").values()) == sorted(before.values())
    # A run over one source does not change the items of the others.
    paint(folders[1] / "newer.png", 50)
    assert counts(run(folders[1])) == {"added": 1, "unchanged": 4}
    assert len(ids(tmp_path / "collection")) == 10


def test_several_sources_need_a_collection(tiny: TinyEncoder, folder: Path) -> None:
    with pytest.raises(CollectionError, match="-c"):
        index([folder, folder / "trip"], encoders=["tiny"])


def test_unknown_and_missing_sources_are_refused(tiny: TinyEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, words in (("missing", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(SourceError, match=words):
            index(tmp_path / name, tmp_path / "c", encoders=["tiny"])
    for nothing in ("", []):
        with pytest.raises(SourceError, match="name a folder of images"):
            index(nothing, tmp_path / "c", encoders=["tiny"])
    assert not (tmp_path / "c").exists()


def test_linked_folders_and_files(run: Indexer, folder: Path, tmp_path: Path) -> None:
    paint_many(tmp_path / "outside", 3, first=60)
    single = paint(tmp_path / "single.png", 70)
    (folder / "a link").symlink_to(tmp_path / "outside")
    (folder / "twice").symlink_to(tmp_path / "outside")
    (folder / "back").symlink_to(folder / "trip")
    (folder / "linked.png").symlink_to(single)
    report = run(folder)
    assert counts(report) == {"added": 12}
    found = ids(folder)
    assert str(folder / "a link" / "00060.png") in found
    assert not any("twice" in uri or "back" in uri for uri in found)
    # Images found through a link follow changes of its target.
    paint(single, 71)
    (tmp_path / "outside" / "00060.png").unlink()
    assert counts(run(folder)) == {"changed": 1, "removed": 1, "unchanged": 10}


def test_symlink_loops_dangling_links_and_fifos_are_reported(run: Indexer, folder: Path) -> None:
    (folder / "trip" / "up").symlink_to(folder)
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "nowhere.png").symlink_to(folder / "never was.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    paint(folder / "folder.png" / "inside.png", 90)
    report = run(folder)
    assert {failure.uri: failure.reason for failure in report.failures} == {
        str(folder / "trip" / "up"): "symlink loop",
        str(folder / "self.png"): "symlink loop",
        str(folder / "nowhere.png"): "dangling link",
        str(folder / "fifo.png"): "not a regular file",
    }
    assert report.added == 9
    for name in ("trip/up", "self.png", "nowhere.png", "fifo.png"):
        (folder / name).unlink()
    assert counts(run(folder)) == {"unchanged": 9}


def broken(path: Path) -> Path:
    """Write an image that is cut short."""
    paint(path, 200, size=(400, 300))
    os.truncate(path, path.stat().st_size // 2)
    return path


def test_a_failure_is_tried_again_only_when_the_file_changes(run: Indexer, folder: Path) -> None:
    path = broken(folder / "broken.png")
    [failure] = run(folder).failures
    assert (failure.uri, failure.reason) == (str(path), "truncated")
    status = path.stat()
    assert counts(run(folder)) == {"unchanged": 8, "failed": 1}
    done: list[tuple[int, int]] = []
    run(folder, progress=lambda p: done.append((p.done, p.total)))
    assert done == [(0, 0)]
    run(folder, retry_failed=True, progress=lambda p: done.append((p.done, p.total)))
    assert done[-1] == (1, 1)
    paint(path, 200)
    assert path.stat().st_mtime_ns != status.st_mtime_ns
    assert counts(run(folder)) == {"added": 1, "unchanged": 8}
    broken(path).unlink()
    assert counts(run(folder)) == {"removed": 1, "unchanged": 8}


def test_a_failure_is_tried_again_after_its_cause_was_removed(run: Indexer, folder: Path) -> None:
    path = paint(folder / "large.png", 60, size=(200, 100))
    done: list[tuple[int, int]] = []
    for _ in range(2):
        done.clear()
        [failure] = run(folder, max_pixels=10_000, progress=lambda p: done.append((p.done, p.total))).failures
        assert (failure.uri, failure.reason) == (str(path), "too many pixels")
    assert done == [(0, 0)]
    assert counts(run(folder, max_pixels=20_000)) == {"added": 1, "unchanged": 8}


def test_the_failure_of_a_deleted_file_is_removed(run: Indexer, folder: Path) -> None:
    path = broken(folder / "broken.png")
    run(folder)
    path.unlink()
    assert counts(run(folder)) == {"unchanged": 8}


def test_the_item_of_an_image_that_is_damaged_later_is_removed(run: Indexer, folder: Path) -> None:
    run(folder)
    broken(folder / "00001.png")
    report = run(folder)
    assert counts(report) == {"removed": 1, "unchanged": 7, "failed": 1}
    assert str(folder / "00001.png") not in ids(folder)


def test_items_stay_if_a_source_folder_is_suddenly_empty(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    run = Indexer(tiny, tmp_path / "c")
    run(folder)
    folder.rename(tmp_path / "aside")
    folder.mkdir()
    [failure] = run(folder).failures
    assert (failure.uri, failure.reason) == (str(folder), "no images any more")
    assert "is its disk mounted" in failure.detail
    assert len(ids(tmp_path / "c")) == 8
    folder.rmdir()
    (tmp_path / "aside").rename(folder)
    assert counts(run(folder)) == {"unchanged": 8}


def test_items_are_removed_if_a_folder_with_its_collection_has_no_images_left(run: Indexer, folder: Path) -> None:
    run(folder)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    shutil.rmtree(folder / "trip")
    report = run(folder)
    assert counts(report) == {"removed": 8}
    assert report.total == 0


def test_another_encoder_is_refused(run: Indexer, folder: Path) -> None:
    run(folder)
    with pytest.raises(CollectionError, match="made with the encoders tiny"):
        index(folder, encoders=["lite"])
    with pytest.raises(EncoderError, match="Unknown encoder 'none'"):
        index(folder / "trip", encoders=["none"])
    assert not (folder / "trip" / ".pixmatcher").exists()
    run.encoder.fingerprint = "tiny-2"
    with pytest.raises(EncoderError, match="another version of the encoder tiny"):
        index(folder)


def test_an_encoder_that_fails_ends_the_run_and_finished_items_stay(run: Indexer, folder: Path) -> None:
    run(folder)
    paint_many(folder / "more", 40, first=300)

    class FailingError(Exception):
        pass

    class Failing(TinyEncoder):
        def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            if self.encoded >= 12:
                raise FailingError
            return super().encode_images(pixels)

    good = run.encoder.encode_images
    failing = Failing()
    run.encoder.encode_images = failing.encode_images  # type: ignore[method-assign]
    with pytest.raises(FailingError):
        index(folder)
    run.encoder.encode_images = good  # type: ignore[method-assign]
    stored = len(ids(folder)) - 8
    assert stored <= 12
    assert counts(run(folder)) == {"added": 40 - stored, "unchanged": 8 + stored}


# Folders and files without read permission. Root ignores permissions, so a restricted process runs these tests.

BOUND = """
import sys
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
from pixmatcher import encoders, index
encoders.register_encoder("tiny", TinyEncoder)
report = index(sys.argv[2], encoders=["tiny"])
print(report.total, report.added, report.removed, report.unchanged)
for failure in report.failures:
    print(failure.uri, failure.reason, sep=": ")
"""


def bound_index(folder: Path) -> list[str]:
    command = [sys.executable, "-c", BOUND, str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound_by_permissions())
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_items_of_unreadable_files_stay(open_folder: Path) -> None:
    folder = open_folder / "photos"
    paint_many(folder, 2)
    paint_many(folder / "closed", 3, first=10)
    paint_many(folder / "not to be entered" / "below", 3, first=20)
    paint(folder / "z.png", 30)
    for inner in (open_folder, folder):
        inner.chmod(0o777)
    assert bound_index(folder)[0] == "9 9 0 0"
    (folder / "closed").chmod(0o000)
    (folder / "not to be entered").chmod(0o444)
    (folder / "z.png").chmod(0o000)
    (folder / "00000.png").unlink()
    expected = [
        "8 0 1 1",
        f"{folder}/closed: folder cannot be read",
        f"{folder}/not to be entered/below: folder cannot be read",
        f"{folder}/z.png: permission denied",
    ]
    assert bound_index(folder) == expected
    expected[0] = "8 0 0 1"
    assert bound_index(folder) == expected
    (folder / "closed").chmod(0o755)
    (folder / "not to be entered").chmod(0o755)
    (folder / "z.png").chmod(0o644)
    assert bound_index(folder) == ["8 0 0 8"]


def test_items_of_files_in_an_unreadable_folder_stay(open_folder: Path) -> None:
    folder = open_folder / "photos"
    paint_many(folder / "a", 3)
    for inner in (open_folder, folder):
        inner.chmod(0o777)
    assert bound_index(folder)[0] == "3 3 0 0"
    (folder / "a").chmod(0o444)
    lines = bound_index(folder)
    assert lines[0] == "3 0 0 0"
    assert [line.rsplit(": ")[1] for line in lines[1:]] == ["cannot be read"] * 3
    (folder / "a").chmod(0o755)
    assert bound_index(folder) == ["3 0 0 3"]


def test_an_unreadable_source_folder(open_folder: Path) -> None:
    folder = open_folder / "photos"
    paint_many(folder, 1)
    folder.chmod(0o000)
    done = cli("index", folder, "-c", open_folder / "c", preexec_fn=bound_by_permissions())
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(folder) in "".join(done.stderr.split("\n"))
    assert "readable" in done.stderr or "read" in done.stderr


# Interruption

INTERRUPTED = """
import os, signal, sys, threading, time
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
from pixmatcher import encoders, indexing
from pixmatcher.cli import main

class Slow(TinyEncoder):
    def encode_images(self, pixels):
        time.sleep(0.1)
        return super().encode_images(pixels)

encoders.register_encoder("tiny", Slow)
sys.argv[1:] = ["index", sys.argv[2], "--encoder", "tiny"]
main()
"""


def test_finished_items_stay_after_an_interrupt(run: Indexer, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 800)
    command = [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        vectors = folder / ".pixmatcher" / "vectors" / "visual.f16"
        while not (vectors.exists() and vectors.stat().st_size):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    stored = len(ids(folder))
    assert 0 < stored < 800
    report = run(folder)
    assert counts(report) == {"added": 800 - stored, "unchanged": stored}
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "Error: stopped. What is done is kept: run the same command again to continue.\n"
