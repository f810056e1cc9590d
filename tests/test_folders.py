"""Folders as people have them: odd names, files of all kinds, patterns, disks that come and go, and `forget`."""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from pixmatcher import Collection, CollectionError, IndexReport, Item, SourceError, index, upgrade
from pixmatcher.indexing import list_passed_over
from pixmatcher.records import Entry, FolderNotes
from pixmatcher.sources._ignore import IgnoreRules, _without_backtracking, is_excluded
from pixmatcher.sources.folder import FolderSource
from support import TinyEncoder, bound_by_permissions, cli, paint, paint_many
from test_indexing import counts, ids
from test_stores import MemoryStore
from test_upgrade import NewTiny, new, release  # noqa: F401


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in three folders."""
    paint_many(tmp_path / "photos", 2)
    paint_many(tmp_path / "photos" / "trip", 2, first=10)
    paint_many(tmp_path / "photos" / "trip" / "day 2", 2, first=20)
    return tmp_path / "photos"


@pytest.fixture
def run(tiny: TinyEncoder, tmp_path: Path) -> Callable[..., IndexReport]:
    """Index into a collection outside the folder."""

    def run(sources: Path | Sequence[Path] | None, **options: object) -> IndexReport:
        encoders = None if sources is None else ["tiny"]
        return index(sources, tmp_path / "c", encoders=encoders, **options)  # type: ignore[arg-type]

    return run


def names(collection: Path, folder: Path) -> set[str]:
    return {os.path.relpath(uri, folder) for uri in ids(collection)}


opened_files: list[str] | None = None
"""The files that are opened, while it is a list."""


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and opened_files is not None:
        opened_files.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")


sys.addaudithook(_note_opened)


def opened_by(folder: Path, action: Callable[[], object]) -> set[str]:
    """Return the names of the files below a folder that an action opens."""
    global opened_files
    opened_files = []
    try:
        action()
        return {os.path.relpath(path, folder) for path in opened_files if path.startswith(f"{folder}/")}
    finally:
        opened_files = None


# The content decides

ODD_NAMES = [
    "photo.jpg_large",
    "photo.jpg ",
    "photo.jpg.",
    "photo.jpg~",
    "photo.jpeg.1",
    "photo.jpg!d",
    "photo.jpg.bak",
    "photo.jpg@w1280",
    "photo.jpg,v",
    "stereo.jps",
    "stereo.mpo",
    "sphere.insp",
    "GOPR0001.THM",
    "f_000a1b",
    "IMG 0001",
    "image.php",
    "download.tmp",
    "a.dat",
    "\udcff.\udcfe",
]


def test_images_with_unknown_names_are_found_by_their_content(run: Callable[..., IndexReport], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for seed, name in enumerate(ODD_NAMES):
        paint(folder / name, seed, kind=("JPEG", "PNG", "WEBP", "GIF")[seed % 4])
    (folder / "unknown.data").write_bytes(b"\0" * 600)
    (folder / "short").write_bytes(b"\xff")
    (folder / "empty").touch()
    report = run(folder)
    assert counts(report) == {"added": len(ODD_NAMES)}
    assert names(tmp_path / "c", folder) == {*ODD_NAMES}
    assert report.passed_over == {"other": {"": 2, ".data": 1}}
    assert counts(run(folder)) == {"unchanged": len(ODD_NAMES)}
    paint(folder / "IMG 0001", 100, kind="PNG")
    (folder / "a.dat").write_bytes(b"no image any more")
    assert counts(run(folder)) == {"changed": 1, "removed": 1, "unchanged": len(ODD_NAMES) - 2}


def test_known_files_are_never_opened_and_unknown_ones_once(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.PDF", "c.txt", "d.zip", "e.xmp", "Thumbs.db", "g.mp3", "h.py"):
        paint(folder / name, 1, kind="PNG")
    paint(folder / "image", 80, kind="PNG")
    (folder / "other").write_bytes(b"text")
    (folder / "drawing.svg").write_bytes(b"<svg/>")
    source = FolderSource(str(folder))
    found = opened_by(folder, lambda: list(source.scan()))
    assert found == {"image", "other", "drawing.svg"}
    again = FolderSource(str(folder))
    again.restore(source.folder_notes())
    assert opened_by(folder, lambda: list(again.scan())) == set()
    assert again.folder_notes() == source.folder_notes()
    # The same in a whole run, and in one from the collection's own sources.
    assert counts(index(folder, tmp_path / "c", encoders=["tiny"])) == {"added": 7}
    assert opened_by(folder, lambda: index(folder, tmp_path / "c")) == set()
    assert opened_by(folder, lambda: index(collection=tmp_path / "c")) == set()
    paint(folder / "other", 81, kind="PNG")
    assert opened_by(folder, lambda: index(collection=tmp_path / "c")) == {"other"}
    assert opened_by(folder, lambda: index(collection=tmp_path / "c")) == set()
    # Moved together with its collection, a folder is known as before.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("photos", "c"):
        (tmp_path / name).rename(moved / name)
    assert opened_by(moved / "photos", lambda: index(collection=moved / "c")) == set()


def test_damaged_notes_are_not_believed(folder: Path) -> None:
    (folder / "other").write_bytes(b"text")
    source = FolderSource(str(folder))
    list(source.scan())
    kept = source.folder_notes().judged
    for judged in (b"", b"x", kept[:-1], kept[:8], b"\0" * 24, kept[::-1]):
        again = FolderSource(str(folder))
        again.restore(FolderNotes(judged=judged))
        assert len(list(again.scan())) == 6
        assert again.folder_notes() == source.folder_notes()


def test_files_that_are_no_regular_files_are_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    os.mkfifo(folder / "fifo.mp4")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "random.xyz").symlink_to("/dev/urandom")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(folder / "socket"))
    source = FolderSource(str(folder))
    assert opened_by(folder, lambda: list(source.scan())) == set()
    assert list(source.scan()) == []


def test_an_unreadable_file_of_an_unknown_kind(open_folder: Path) -> None:
    folder = open_folder / "photos"
    paint(folder / "image", 1, kind="PNG")
    paint(folder / "below" / "image", 2, kind="PNG")
    (folder / "other").write_bytes(b"text")
    for inner in (open_folder, folder, folder / "below"):
        inner.chmod(0o777)
    (folder / "other").chmod(0o000)

    def indexed(exit_code: int) -> str:
        done = cli("index", folder, "-c", open_folder / "c", preexec_fn=bound_by_permissions())
        assert done.returncode == exit_code, done
        return done.stdout

    assert "2 added" in indexed(0)
    (folder / "image").chmod(0o000)
    (folder / "below").chmod(0o444)
    for _ in range(2):
        text = indexed(1)
        assert "2 images in" in text
        assert "1 x permission denied" in text
        assert "1 x cannot be read" in text
    (folder / "image").chmod(0o644)
    (folder / "below").chmod(0o755)
    assert "2 images in" in indexed(0)


# What is passed over is reported


def test_files_that_are_passed_over_are_counted_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint(folder / "a.png", 1)
    for name in ("v.mp4", "w.MOV", "m.mp3", "doc.pdf", "z.zip", "d.xcf", "x.xmp", "data", ".hidden.png", "Thumbs.db"):
        (folder / name).write_bytes(b"something")
    (folder / ".git").mkdir()
    done = cli("index", "photos", "-c", "c", "--exclude", "z.zip", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        "Passed over: 2 videos, 1 audio file, 1 document, 1 image of a format that is not supported, 2 other files, "
        "2 hidden files or folders, 1 excluded file or folder. `pixmatcher info -c c` shows more.\n"
    )
    info = cli("info", "-c", tmp_path / "c").stdout
    assert (
        "passed over  1 .mov, 1 .mp3, 1 .mp4, 1 .pdf, 1 .xcf, 1 .xmp, 1 without extension, 2 hidden files or folders, "
        "1 excluded file or folder; add --passed-over to list them\n"
    ) in info
    assert f"options      --exclude z.zip for {folder}\n" in info
    listed = cli("info", "-c", tmp_path / "c", "--passed-over").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["hidden", f"{folder}/.git"],
        ["hidden", f"{folder}/.hidden.png"],
        ["image", f"{folder}/d.xcf"],
        ["other", f"{folder}/data"],
        ["document", f"{folder}/doc.pdf"],
        ["audio", f"{folder}/m.mp3"],
        ["video", f"{folder}/v.mp4"],
        ["video", f"{folder}/w.MOV"],
        ["other", f"{folder}/x.xmp"],
        ["excluded", f"{folder}/z.zip"],
    ]


def test_a_folder_without_images_says_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    assert "nothing to index" in cli("index", folder).stdout
    for name in ("a.mp4", "b.mp4", "c"):
        (folder / name).write_bytes(b"something")
    done = cli("index", folder)
    assert done.returncode == 0
    assert "no images among 3 files: 2 .mp4, 1 without extension\n" in done.stdout
    assert done.stderr.startswith("Passed over: 2 videos, 1 other file.")


def test_strange_extensions_are_counted_together(tmp_path: Path) -> None:
    for number in range(700):
        (tmp_path / f"file.x{number}").write_bytes(b"a")
    (tmp_path / f"file.{'long' * 20}").write_bytes(b"a")
    source = FolderSource(str(tmp_path))
    assert list(source.scan()) == []
    found = source.folder_notes().passed_over["other"]
    assert sum(found.values()) == 701
    assert len(found) == 500


# Patterns

PATTERNS = [
    *("*", "*/", "a", "a/", "/a", "/a/", "foo/*", "foo/**", "**/foo", "a/**/b", "*.jpg", "!*.jpg", "!keep.jpg", "!*/"),
    *("!a", "!/a/", "!foo/", "f?o", "[ab]", "!foo/a", "/foo/*", "# c", "", "a/*", "!a/b", "a\\ b", "*/x.png", "/*"),
    *("!/foo", "**/a/", "!**/a/", "!", "/", "a**", "**b", "[!a]*", "[^f]oo", "a[]]b", "[[:alpha:]].png", "[a", "\\"),
    *("tail\\ ", "tail ", "a/**", "**", "/**/a", "*a*b", "?*", "[z-a]", "[a-f]oo", "\\!a", "a//b", "**/**/a", "a\\"),
    *("foo/**/**/b", "[[:foo:]]", "[A-Z]oo", "[a\\-c]", "*.[jp][pn]g", "foo[!x]*", "*[!0-9]*.png", "foo/**/", "[[]"),
    *("tab\t", "tail\\  ", "**/*/**", "[]x]*", "a[!b]b", "?*?", "*/**", "*a*a*b", "**/a/**/b/**", "a***", "//a", "a//"),
]


def listed_by_rules(folder: str, rules: tuple[IgnoreRules, ...] = ()) -> Iterator[str]:
    lines = Path(folder, ".gitignore")
    if lines.exists():
        rules = (IgnoreRules.parse(folder, lines.read_text().split("\n")), *rules)
    for child in os.scandir(folder):
        if child.name.startswith(".git") or is_excluded(rules, child.path, child.is_dir()):
            continue
        if child.is_dir():
            yield from listed_by_rules(child.path, rules)
        else:
            yield child.path


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("seed", range(40))
def test_patterns_mean_what_they_mean_to_git(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    folders = [tmp_path]
    for _ in range(6):
        folders.append(chosen.choice(folders) / chosen.choice(["a", "b", "foo", "a b"]))
        folders[-1].mkdir(exist_ok=True, parents=True)
    for folder in folders:
        for name in chosen.sample(["a", "b", "foo", "bar.jpg", "x.png", "keep.jpg", "Foo", "aab", "a]b", "tail "], 3):
            if not (folder / name).exists():
                (folder / name).touch()
    for folder in {tmp_path, *chosen.sample(folders, 2)}:
        (folder / ".gitignore").write_text("\n".join(chosen.choices(PATTERNS, k=chosen.randint(1, 4))))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    command = ["git", "-C", tmp_path, "ls-files", "-z", "-o", "--exclude-per-directory=.gitignore"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    expected = {name for name in listed if name and not name.endswith(".gitignore")}
    assert {os.path.relpath(path, tmp_path) for path in listed_by_rules(str(tmp_path))} == expected


def test_a_hostile_pattern_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / ("a" * 200)).mkdir()
    for name in ("b.png", f"{'a' * 200}.png"):
        paint(tmp_path / ("a" * 200) / name, 1)
    lines = ["*a" * 60 + "b", "[a-b]*" * 40 + "c", "/".join(["**/a*"] * 40) + "/b", "**/" * 500 + "b", "?" * 5000, "["]
    (tmp_path / ".pixmatcherignore").write_text("\n".join(lines))
    assert len(list(FolderSource(str(tmp_path)).scan())) == 2
    for line in ("**/a/" * 30 + "b", "/a/" + "**/a/a*/" * 30 + "**/b", "**/*/" * 30 + "b"):
        rules = [IgnoreRules.parse("/top", [line])]
        assert not is_excluded(rules, f"/top/{'a/' * 2000}a", is_folder=True)
        assert is_excluded(rules, f"/top/{'a/' * 2000}b", is_folder=True)


def parts(alphabet: str) -> st.SearchStrategy[str]:
    return st.lists(st.text(alphabet, min_size=1, max_size=6), min_size=1, max_size=6).map("/".join)


@given(parts("ab**?"), parts("ab"))
def test_expressions_without_backtracking_match_the_same(pattern: str, path: str) -> None:
    expression, _ = GitIgnoreSpecPattern.pattern_to_regex(f"/{pattern}")
    assert expression is not None
    changed = _without_backtracking(expression)
    assert bool(re.fullmatch(changed, path)) == bool(re.fullmatch(expression, path))
    assert bool(re.search(changed, path)) == bool(re.search(expression, path))


@given(st.lists(st.text("ab/*?[]!^-\\\\#. :alph\0\n\udc80", max_size=12), max_size=4), st.text("ab/-]\\\\", min_size=1))
def test_any_pattern_is_read(lines: list[str], path: str) -> None:
    is_excluded([IgnoreRules.parse("/top", lines)], f"/top/{path}", is_folder=True)


def test_ignore_files_in_folders(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    (folder / ".pixmatcherignore").write_bytes(b"\xef\xbb\xbf# mine\r\n/trip/*.png\r\n!/trip/00010.png\r\nprivate/\r\n")
    (folder / "trip" / "day 2" / ".pixmatcherignore").write_text("*\n!*21.png\n")
    paint(folder / "private" / "a.png", 30)
    paint(folder / "a" / "private" / "a.png", 31)
    paint(folder / "private.png", 32)
    report = run(folder)
    assert names(tmp_path / "c", folder) == {
        *("00000.png", "00001.png", "trip/00010.png", "trip/day 2/00021.png", "private.png")
    }
    assert report.passed_over == {"excluded": {"": 4}}
    # The command line counts more than a file.
    run(folder, exclude=["!private/", "!00011.png", "private.png"])
    assert names(tmp_path / "c", folder) == {
        *("00000.png", "00001.png", "trip/00010.png", "trip/00011.png", "trip/day 2/00021.png", "private/a.png"),
        "a/private/a.png",
    }


def test_an_ignore_file_that_cannot_be_used_keeps_its_folder_out(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path
) -> None:
    run(folder)
    (folder / "trip" / ".pixmatcherignore").write_bytes(b"*.png\n" * 200_000)
    paint(folder / "trip" / "new.png", 40)
    report = run(folder)
    assert [(failure.uri, failure.reason) for failure in report.failures] == [
        (str(folder / "trip"), "folder cannot be read")
    ]
    assert ".pixmatcherignore has more than" in report.failures[0].detail
    assert report.total == 6
    assert "new.png" not in " ".join(names(tmp_path / "c", folder))


def test_options_are_kept_until_others_are_given(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    paint(folder / ".secret" / ".a.png", 50)
    (folder / "._a.png").write_bytes(b"metadata of macOS")
    assert counts(run(folder, exclude=["day 2/", "*1.png"], hidden=True)) == {"added": 3}
    for sources in (None, folder):
        assert counts(run(sources)) == {"unchanged": 3}
    assert names(tmp_path / "c", folder) == {"00000.png", "trip/00010.png", ".secret/.a.png"}
    assert counts(run(None, hidden=False)) == {"removed": 1, "unchanged": 2}
    assert counts(run(None)) == {"unchanged": 2}
    assert counts(run(folder, exclude=["*0.png"])) == {"added": 3, "removed": 2}
    assert counts(run(folder, exclude=[""])) == {"added": 3, "unchanged": 3}
    with Collection.open(tmp_path / "c") as collection:
        assert collection.folder_notes(str(folder)).exclude == ()
    assert counts(run(FolderSource(str(folder), exclude=["trip"]))) == {"removed": 4, "unchanged": 2}  # type: ignore[arg-type]
    assert counts(run(None)) == {"unchanged": 2}


def test_everything_may_be_excluded(run: Callable[..., IndexReport], folder: Path) -> None:
    """An empty source keeps its items, as its disk may be away, but not if the user excludes all."""
    run(folder)
    assert counts(run(folder, exclude=["*"])) == {"removed": 6}
    assert counts(run(folder, exclude=[])) == {"added": 6}
    paint(folder.parent / "dots" / ".a" / "a.png", 60)
    assert counts(run(folder.parent / "dots", hidden=True)) == {"added": 1}
    assert counts(run(folder.parent / "dots", hidden=False)) == {"removed": 1}


def test_options_are_those_of_folders(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://example.org/a.png\n")
    with pytest.raises(SourceError, match="options of folders"):
        run(f"urls:{tmp_path}/list.txt", exclude=["a"])  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


def test_options_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    paint(folder / ".hidden.png", 50)
    collection = ("-c", tmp_path / "c")
    assert (
        "4 added" in cli("index", folder, *collection, "--exclude", "day*", "--exclude", "*11.png", "--hidden").stdout
    )
    assert "4 unchanged" in cli("index", *collection).stdout
    assert "options      --exclude 'day*' --exclude '*11.png' --hidden for" in cli("info", *collection).stdout
    done = cli("index", folder, *collection, "--exclude", "", "--no-hidden")
    assert "3 added, 1 removed, 3 unchanged" in done.stdout
    assert "--exclude" not in cli("info", *collection).stdout


def test_a_store_without_notes(tiny: TinyEncoder, folder: Path) -> None:
    store = MemoryStore()
    assert index(folder, store, exclude=["trip/"]).added == 2
    assert index(folder, store).added == 4


def test_collections_of_old_versions_get_notes(tmp_path: Path) -> None:
    with zipfile.ZipFile(Path(__file__).parent / "data" / "collection-0.1.0.zip") as saved:
        saved.extractall(tmp_path)
    photos = tmp_path / "photos"
    with Collection.open(photos) as collection:
        assert collection.folder_notes(str(photos)) == FolderNotes()
        assert collection.count_to_forget(photos / "sub") == 1
    with Collection.open(photos) as collection:
        assert collection.forget(photos / "sub") == 1
        assert collection.folder_notes(str(photos)) == FolderNotes(forgotten=("sub",))
        assert len(collection) == 2


# Disks that are away


def test_items_of_an_emptied_folder_stay(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    run(folder)
    (folder / "trip").rename(tmp_path / "away")
    (folder / "trip").mkdir()
    (folder / "empty").mkdir()
    for name in (None, "Thumbs.db", ".keep"):
        if name:
            (folder / "trip" / name).touch()
        report = run(folder)
        assert counts(report) == {"unchanged": 2, "failed": 1}
        assert (report.failures[0].uri, report.failures[0].reason) == (str(folder / "trip"), "no images any more")
        assert "is its disk mounted" in report.failures[0].detail
        assert report.total == 6
    shutil.rmtree(folder / "trip")
    (tmp_path / "away").rename(folder / "trip")
    assert counts(run(folder)) == {"unchanged": 6}
    # A folder that is deleted, and one that has other files now, have lost their images.
    for path in (folder / "trip" / "day 2").iterdir():
        path.unlink()
    (folder / "trip" / "day 2" / "notes.txt").touch()
    assert counts(run(folder)) == {"removed": 2, "unchanged": 4}
    shutil.rmtree(folder / "trip")
    assert counts(run(folder)) == {"removed": 2, "unchanged": 2}


def test_a_folder_with_hidden_images_or_a_collection_is_not_empty(
    run: Callable[..., IndexReport], folder: Path, tiny: TinyEncoder
) -> None:
    paint(folder / "dots" / ".a.png", 50)
    paint(folder / "dots" / ".b.png", 51)
    index(folder / "trip" / "day 2", encoders=["tiny"])
    assert counts(run(folder, hidden=True)) == {"added": 8}
    (folder / "dots" / ".a.png").unlink()
    for path in (folder / "trip" / "day 2").glob("*.png"):
        path.unlink()
    assert counts(run(folder)) == {"removed": 3, "unchanged": 5}


def test_images_moved_out_of_a_folder_are_moved(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    run(folder)
    before = {os.path.basename(uri): item_id for uri, item_id in ids(tmp_path / "c").items()}
    for path in (folder / "trip" / "day 2").iterdir():
        path.rename(folder / path.name)
    assert counts(run(folder)) == {"moved": 2, "unchanged": 4}
    assert {os.path.basename(uri): item_id for uri, item_id in ids(tmp_path / "c").items()} == before


def test_items_behind_a_link_stay_while_its_target_is_away(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path
) -> None:
    paint_many(tmp_path / "disk" / "album", 3, first=40)
    single = paint(tmp_path / "disk" / "single.png", 50)
    (folder / "album").symlink_to(tmp_path / "disk" / "album")
    (folder / "whole").symlink_to(tmp_path / "disk")
    (folder / "linked.png").symlink_to(single)
    assert counts(run(folder)) == {"added": 11}
    (tmp_path / "disk").rename(tmp_path / "aside")
    report = run(folder)
    assert counts(report)["unchanged"] == 6
    assert report.total == 11
    assert {(os.path.basename(f.uri), f.reason) for f in report.failures} == {
        ("album", "no images any more"),
        ("whole", "no images any more"),
        ("linked.png", "dangling link"),
    }
    (tmp_path / "disk").mkdir()  # an empty mount point
    assert run(folder).total == 11
    (tmp_path / "disk").rmdir()
    (tmp_path / "aside").rename(tmp_path / "disk")
    assert counts(run(folder)) == {"unchanged": 11}
    (folder / "album").unlink()
    (folder / "whole").unlink()
    (folder / "linked.png").unlink()
    assert counts(run(folder)) == {"removed": 5, "unchanged": 6}


@pytest.fixture
def disk(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A mounted disk with three images, in the folder."""
    place = folder / "media" / "disk"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("these tests may not mount a disk")
    try:
        paint_many(place / "album", 3, first=40)
        yield place
    finally:
        if os.path.ismount(place):
            subprocess.run(["umount", place], check=True)


def test_items_of_a_disk_that_is_not_mounted_stay(
    run: Callable[..., IndexReport], folder: Path, disk: Path, tmp_path: Path
) -> None:
    assert counts(run(folder)) == {"added": 9}
    assert counts(run(folder)) == {"unchanged": 9}
    subprocess.run(["umount", disk], check=True)
    for change in (lambda: None, (disk / "NOT MOUNTED.txt").touch, lambda: shutil.rmtree(folder / "media")):
        change()
        report = run(None)
        assert [(failure.uri, failure.reason) for failure in report.failures] == [(str(disk), "no images any more")]
        assert report.total == 9
    # An image that is at the place of the mount point is one, and does not change what is missing.
    paint(disk / "new.png", 70)
    assert counts(run(None)) == {"added": 1, "unchanged": 6, "failed": 1}
    shutil.rmtree(folder / "media")
    with Collection.open(tmp_path / "c") as collection:
        assert collection.forget(disk) == 4
        assert collection.folder_notes(str(folder)).mounts == ("media/disk",)
    assert counts(run(None)) == {"unchanged": 6}
    with Collection.open(tmp_path / "c") as collection:
        assert collection.folder_notes(str(folder)).mounts == ()


def test_a_disk_that_is_excluded_or_forgotten_is_not_missed(
    run: Callable[..., IndexReport], folder: Path, disk: Path
) -> None:
    run(folder)
    subprocess.run(["umount", disk], check=True)
    assert counts(run(folder)) == {"unchanged": 6, "failed": 1}
    assert counts(run(folder, exclude=["media/"])) == {"removed": 3, "unchanged": 6}
    assert counts(run(folder, exclude=[])) == {"unchanged": 6}


def test_an_emptied_folder_of_another_source_in_the_collection(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path
) -> None:
    run([folder / "trip", folder])
    shutil.rmtree(folder / "trip" / "day 2")
    (folder / "trip" / "day 2").mkdir()
    report = run(folder)
    assert counts(report) == {"unchanged": 4, "failed": 1}
    assert report.total == 6


def test_an_upgrade_does_not_remove_images_of_a_disk_that_is_away(
    tiny: TinyEncoder,
    new: NewTiny,  # noqa: F811
    folder: Path,
    tmp_path: Path,
) -> None:
    index(folder, encoders=["tiny"], hidden=True)
    paint(folder / ".hidden.png", 60)
    index(folder)
    (folder / "trip").rename(tmp_path / "away")
    (folder / "trip").mkdir()
    release(new)
    report = upgrade(folder, without_missing=True)
    assert (report.finished, report.encoded, report.removed) == (False, 3, 0)
    assert report.missing_sources == [str(folder / "trip")]
    (folder / "trip").rmdir()
    (tmp_path / "away").rename(folder / "trip")
    assert upgrade(folder).finished
    assert len(ids(folder)) == 7


# Forget


def test_a_part_of_a_folder_is_forgotten_until_it_is_indexed_by_name(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "trip" / "broken.png").write_bytes(b"no image")
    (folder / "link").symlink_to(folder / "trip")
    paint(folder / "trip 2" / "a.png", 70)
    run(folder)
    with Collection.open(tmp_path / "c") as collection:
        assert collection.count_to_forget(folder / "trip") == 4
        assert len(collection) == 7
        monkeypatch.chdir(folder)
        assert collection.forget("trip/") == 4
        assert collection.failures() == []
    for sources in (None, folder):
        assert counts(run(sources)) == {"unchanged": 3}
    with Collection.open(tmp_path / "c") as collection:
        assert collection.folder_notes(str(folder)).forgotten == ("trip",)
        assert collection.forget(folder / "00001.png") == 1
    assert counts(run(None)) == {"unchanged": 2}
    assert counts(run(folder / "trip" / "day 2")) == {"added": 2}
    assert counts(run(None)) == {"unchanged": 4}
    assert counts(run(folder / "trip")) == {"added": 2, "unchanged": 2, "failed": 1}
    with Collection.open(tmp_path / "c") as collection:
        assert collection.folder_notes(str(folder)).forgotten == ("00001.png",)
        # Sources below are forgotten too.
        assert collection.forget(folder / "trip") == 4
        assert collection.sources() == [str(folder)]
    assert counts(run(None)) == {"unchanged": 2}
    with Collection.open(tmp_path / "c") as collection:
        assert collection.forget(folder) == 2
    assert counts(run(folder)) == {"added": 7, "failed": 1}


def test_forgotten_folders_move_with_their_collection(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> None:
    index(folder, encoders=["tiny"])
    with Collection.open(folder) as collection:
        assert collection.forget(folder / "trip" / "day 2") == 2
    moved = folder.rename(tmp_path / "moved")
    assert counts(index(moved)) == {"unchanged": 4}


def test_what_is_not_in_a_collection_cannot_be_forgotten(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path
) -> None:
    run(folder)
    shutil.rmtree(folder / "trip")
    with Collection.open(tmp_path / "c") as collection:
        for place in (tmp_path, folder / "never", f"{folder} 2", "urls:list.txt", ""):
            with pytest.raises(CollectionError, match="is not a source of"):
                collection.forget(place)
        assert collection.forget(folder / "trip" / "day 2") == 2  # a folder that is missing
        assert collection.forget(folder / "trip") == 2
        assert len(collection) == 2


def test_images_that_moved_out_of_a_source_that_is_empty_now(
    run: Callable[..., IndexReport], folder: Path, tmp_path: Path
) -> None:
    sources = [folder, folder.with_name("others")]
    paint_many(sources[1], 2, first=100)
    run(sources)
    (folder / "trip").rename(tmp_path / "away")
    for path in folder.glob("*.png"):
        path.rename(sources[1] / path.name)
    report = run(None)
    assert (report.moved, report.added, report.removed, report.total) == (2, 0, 0, 8)
    assert [(failure.uri, failure.reason) for failure in report.failures] == [(str(folder), "no images any more")]
    (tmp_path / "away").rename(sources[1] / "trip")
    report = run(None)
    assert (report.moved, report.added, report.removed, report.total) == (4, 0, 0, 8)
    assert report.failures == []


def test_forget_takes_file_urls(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    run(folder)
    done = cli("forget", (folder / "trip" / "day 2").as_uri(), "-c", tmp_path / "c")
    assert done.returncode == 0, done
    assert "2 images of" in done.stdout
    assert "Later runs leave it out" in done.stderr
    image = folder / "00000.png"
    with Collection.open(tmp_path / "c") as collection:
        assert collection.forget(image.as_uri()) == 1
        assert len(collection) == 3
    assert counts(run(folder)) == {"unchanged": 3}


def test_files_of_a_collection_in_a_folder_of_any_name_are_not_passed_over(folder: Path, tiny: TinyEncoder) -> None:
    report = index(folder, folder / "c", encoders=["tiny"])
    assert report.passed_over == {}
    assert index(folder, folder / "c").passed_over == {}


@pytest.fixture
def large(tiny: TinyEncoder, folder: Path, tmp_path: Path) -> Path:
    """A collection with 1,002 items, most of them in one folder that is missing."""
    index(folder, tmp_path / "c", encoders=["tiny"], exclude=["trip/"])
    with Collection.open(tmp_path / "c") as collection:
        items = [Item(str(folder / "many" / f"{number}.png"), f"{number:064}") for number in range(1000)]
        values = np.random.default_rng(1).standard_normal((1000, 48), dtype=np.float32)
        collection.add(items, {"visual": values, "semantic": values[:, :24]}, source=str(folder))
    return tmp_path / "c"


def test_forget_asks_before_it_removes_thousands(large: Path, folder: Path) -> None:
    refused = cli("forget", folder / "many", "-c", large)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "1,000 images of" in refused.stderr
    assert "--yes" in refused.stderr
    assert cli("forget", folder, "-c", large).returncode == 2
    for answer, left in ((b"n\n", 1002), (b"\n", 1002), (b"\x04", 1002), (b"y\n", 2)):
        controller, terminal = pty.openpty()
        command = [sys.executable, "-m", "pixmatcher", "forget", str(folder / "many"), "-c", str(large)]
        os.write(controller, answer)
        done = subprocess.run(command, stdin=terminal, capture_output=True, timeout=60, check=False)
        os.close(terminal)
        os.close(controller)
        assert done.returncode == 0, done
        assert b"Remove 1,000 images of" in done.stderr
        with Collection.open(large) as collection:
            assert len(collection) == left


def test_forget_without_question(large: Path, folder: Path) -> None:
    done = cli("forget", folder / "00001.png", "-c", large)
    assert "1 image of" in done.stdout
    assert done.stderr == "Note: Later runs leave it out.\n"
    done = cli("forget", "many", "-c", large, "--yes", cwd=folder)
    assert "1,000 images of" in done.stdout
    assert done.stderr == "Note: Later runs leave it out, until you run `pixmatcher index many -c ../c`.\n"
    done = cli("forget", folder / "trip" / "00010.png", "-c", large)
    assert f"until you run `pixmatcher index {folder}/trip -c {large}`" in done.stderr
    info = cli("info", "-c", large).stdout
    assert f"forgotten    00001.png, many, trip/00010.png in {folder}\n" in info


def test_passed_over_files_of_a_collection(run: Callable[..., IndexReport], folder: Path, tmp_path: Path) -> None:
    (folder / "a.mp4").touch()
    run(folder, exclude=["day 2/"])
    with Collection.open(tmp_path / "c") as collection:
        assert [*list_passed_over(collection)] == [
            ("video", str(folder / "a.mp4")),
            ("excluded", str(folder / "trip" / "day 2")),
        ]


def test_the_version_of_an_entry_does_not_depend_on_its_name(folder: Path) -> None:
    os.link(folder / "00000.png", folder / "other name")
    found = {os.path.basename(e.uri): e.version for e in FolderSource(str(folder)).scan() if isinstance(e, Entry)}
    assert found["other name"] == found["00000.png"]
