"""WebDataset as a source: tar files as img2dataset writes them, patterns, and damaged files."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixmatcher import Collection, InvalidImageError, SourceError, index
from pixmatcher.sources import Entry, Unusable, _tar, open_source
from pixmatcher.sources.archives import open_path
from support import TinyEncoder, cli

File = tuple[str, bytes]


def picture(seed: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 16), (seed % 256, seed * 7 % 256, seed * 31 % 256)).save(file, kind)
    return file.getvalue()


def sample(key: str, seed: int, **details: object) -> list[File]:
    """The files of a sample as img2dataset names and orders them."""
    about = {"caption": f"caption of {key}", "url": f"https://images.example/{key}", "key": key, "status": "success"}
    return [
        (f"{key}.jpg", picture(seed)),
        (f"{key}.json", json.dumps(about | details).encode()),
        (f"{key}.txt", f"a picture of {key}\n".encode()),
    ]


def write(path: Path, files: Sequence[File], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000.5  # which takes an extended header in pax
            tar.addfile(info, io.BytesIO(content))
    return path


def shard(path: Path, count: int, first: int = 0) -> Path:
    return write(path, [file for n in range(first, first + count) for file in sample(f"{n:09}", n)])


def scan(spec: str) -> tuple[dict[str, Entry], list[Unusable]]:
    """Return the entries by their uris, and what cannot be used."""
    found = list(open_source(spec).scan())
    entries = [entry for entry in found if isinstance(entry, Entry)]
    assert len({entry.uri for entry in entries}) == len(entries)
    return {entry.uri: entry for entry in entries}, [entry for entry in found if isinstance(entry, Unusable)]


# What is found


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples(tmp_path: Path, tar_format: int) -> None:
    long = "folder/" + "n" * 90 + "/" + "k" * 60
    files = [
        *sample("000", 0, author="A. Author", license="CC BY 2.0", title="A title", height=16, label=3),
        ("001.webp", picture(1, "WEBP")),
        ("./b//002.PNG", picture(2, "PNG")),
        ("./b//002.txt", b"\xef\xbb\xbf  of two \r\n"),
        ("./b//002.CLS", b"cat\n"),
        ("b/002.json", b'{"caption": 5, "label": "not this one", "author": "", "title": ["x"]}'),
        ("003.txt", b"without an image"),
        ("._000.jpg", b"what another system leaves"),
        (f"{long}.jpg", picture(4)),
        (f"{long}.json", b'{"caption": "from the details", "label": "dog"}'),
        ("caf\u00e9.jpg", picture(5)),
        ("006.left.png", picture(6, "PNG")),
        ("006.right.png", picture(7, "PNG")),
        ("006.txt", b"both"),
        ("readme.md", b""),
    ]
    path = write(tmp_path / "a.tar", files, tar_format)
    entries, unusable = scan(f"webdataset:{path}")
    assert unusable == []
    values = {uri.removeprefix(f"{path}/"): (e.label, e.caption, dict(e.details)) for uri, e in entries.items()}
    assert values == {
        "000.jpg": (
            "3",
            "a picture of 000",
            {
                "url": "https://images.example/000",
                "author": "A. Author",
                "license": "CC BY 2.0",
                "title": "A title",
            },
        ),
        "001.webp": (None, None, {}),
        "b/002.PNG": ("cat", "of two", {}),
        f"{long}.jpg": ("dog", "from the details", {}),
        "caf\u00e9.jpg": (None, None, {}),
        "006.left.png": (None, "both", {}),
        "006.right.png": (None, "both", {}),
    }
    contents = dict(files)
    source = open_source(f"webdataset:{path}")
    for uri, entry in entries.items():
        name = uri.removeprefix(f"{path}/").replace("b/002", "./b//002")
        for opened in (source.open(uri), open_path(uri)):
            with opened as file:
                assert file.read() == contents[name]
                assert file.seek(0) == 0
        assert entry.modified is not None
        assert entry.modified.startswith("2023-11-14T")


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:05}.tar", 2, first=10 * number)
    shard(tmp_path / "deep" / "x.tar", 1, first=90)
    (tmp_path / "s-00000.parquet").write_text("")
    monkeypatch.chdir(tmp_path)
    for pattern, count in (
        ("s-00001.tar", 2),
        ("s-{00000..00002}.tar", 6),
        ("s-{00002..00000}.tar", 6),
        ("s-0000{0..1}.tar", 4),
        ("s-0000{0,2}.tar", 4),
        ("{s-0000{0,1},deep/x}.tar", 5),
        ("s-*.tar", 6),
        ("{s-0000[01],deep/?}.tar", 5),
        (".", 6),
        ("./deep", 1),
    ):
        entries, unusable = scan(f"webdataset:{pattern}")
        assert (len(entries), unusable) == (count, []), pattern
        spec = open_source(f"webdataset:{pattern}").spec
        assert spec.startswith(f"webdataset:{tmp_path}")
        assert open_source(spec).spec == spec
    # A file whose name looks like a pattern is that file.
    shutil.copy("deep/x.tar", "{a,b}[x].tar")
    assert list(scan("webdataset:{a,b}[x].tar")[0]) == [f"{tmp_path}/{{a,b}}[x].tar/000000090.jpg"]
    shutil.copy("deep/x.tar", "{one}.tar")
    assert len(scan("webdataset:{one}.tar")[0]) == 1
    for pattern, words in (
        ("s-{00007..00009}.tar", "has no tar files"),
        ("none.tar", "has no tar files"),
        ("none-*.tar", "has no tar files"),
        ("s-{0..99999999999}.tar", "more than 100,000"),
        ("{1..999}{1..999}{1..999}.tar", "more than 100,000"),
        ("{1..99999}{1..99999}.tar", "more than 100,000"),  # all of them would not fit into memory
        ("{" * 5000, "has no tar files"),
        ("https://data.example/{0..9}.tar", "download the shards"),
        ("s3://bucket/x.tar", "download the shards"),
        ("pipe:cat x.tar", "download the shards"),
    ):
        with pytest.raises(SourceError, match=words):
            open_source(f"webdataset:{pattern}")
    os.mkdir("empty")
    with pytest.raises(SourceError, match="has no tar files"):
        open_source("webdataset:empty")


def test_a_source_without_images_is_reported_by_its_spec(tiny: TinyEncoder, tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", 2)
    spec = f"webdataset:{tmp_path / 'x.tar'}"
    assert index(spec, tmp_path / "c", encoders=["tiny"]).added == 2
    (tmp_path / "x.tar").write_bytes(bytes(10240))
    report = index(spec, tmp_path / "c")
    assert [(failure.uri, failure.reason) for failure in report.failures] == [(spec, "no images any more")]


def test_indexed_refreshed_and_found_again(tiny: TinyEncoder, tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / "w" / f"{number:05}.tar", 4, first=10 * number)
    spec = f"webdataset:{tmp_path / 'w'}"
    report = index(spec, encoders=["tiny"])
    assert (report.added, report.failures, report.collection) == (12, [], tmp_path / "w" / ".pixmatcher")
    encoded = tiny.encoded
    assert index(collection=tmp_path / "w").unchanged == 12
    # Written again with the same images: they are read again, but not encoded.
    shard(tmp_path / "w" / "00000.tar", 4)
    assert index(collection=tmp_path / "w").unchanged == 12
    assert tiny.encoded == encoded
    # One image changed, one deleted, one added, and one complete tar file deleted.
    files = [file for n in (0, 1, 2, 30) for file in sample(f"{n:09}", 77 if n == 1 else n)]
    write(tmp_path / "w" / "00000.tar", files)
    (tmp_path / "w" / "00002.tar").unlink()
    report = index(collection=tmp_path / "w")
    assert (report.changed, report.added, report.removed, report.unchanged) == (1, 1, 5, 6)
    with Collection.open(tmp_path / "w") as collection:
        items = {item.uri.removeprefix(f"{tmp_path}/w/"): item for item in collection.items()}
        assert sorted(items) == sorted(
            [f"00000.tar/{n:09}.jpg" for n in (0, 1, 2, 30)] + [f"00001.tar/{n:09}.jpg" for n in (10, 11, 12, 13)]
        )
        assert items["00000.tar/000000030.jpg"].caption == "a picture of 000000030"
        assert items["00000.tar/000000030.jpg"].width == 24


def test_missing_and_broken_shards_keep_their_items(tiny: TinyEncoder, tmp_path: Path) -> None:
    for number in range(4):
        shard(tmp_path / f"{number}.tar", 4, first=10 * number)
    spec = f"webdataset:{tmp_path}/{{0..3}}.tar"
    assert index(spec, tmp_path / "c", encoders=["tiny"]).added == 16
    (tmp_path / "0.tar").unlink()
    content = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(content[: content.index(b"000000012.jpg") + 600])
    (tmp_path / "2.tar").write_text("no tar file")
    (tmp_path / "3.tar").write_bytes(gzip.compress((tmp_path / "3.tar").read_bytes()))
    report = index(collection=tmp_path / "c")
    assert {(failure.uri, failure.reason) for failure in report.failures} == {
        (str(tmp_path / "0.tar"), "missing shard"),
        (str(tmp_path / "1.tar"), "cut short"),
        (str(tmp_path / "2.tar"), "not a tar file"),
        (str(tmp_path / "3.tar"), "compressed tar file"),
    }
    assert (report.total, report.removed, report.unchanged) == (16, 0, 2)


# What may be wrong


def header(name: str, size: int | bytes, kind: bytes = b"0", more: bytes = b"\0") -> bytes:
    """Return a header of 512 bytes in the format ustar; `more` announces more blocks of the map of a sparse file."""
    block = bytearray(512)
    block[:100] = name.encode()[:100].ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[136:148] = b"%011o\0" % 0
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[482:483] = more
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


END = bytes(1024)
GOOD = header("good.jpg", len(picture(1))) + padded(picture(1))
LAST = header("last.jpg", len(picture(2))) + padded(picture(2))
BINARY = b"\x80" + (1 << 60).to_bytes(11, "big")


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header of records KEY=VALUE."""
    data = b"".join(b"%d %s\n" % (len(r) + 2 + len(str(len(r) + 4)), r) for r in records)
    return header("pax", len(data), kind) + padded(data)


# For each: the content, the images that are found, and the reported errors.
HOSTILE: dict[str, tuple[bytes, list[str], list[tuple[str, str]]]] = {
    "whole": (GOOD + LAST + END, ["good.jpg", "last.jpg"], []),
    "empty": (b"", [], [("not a tar file", "it is empty")]),
    "nothing in it": (END, [], []),
    "text": (b"hello " * 1000, [], [("not a tar file", "")]),
    "short": (b"hello", [], [("not a tar file", "")]),
    "compressed": (gzip.compress(GOOD + END), [], [("compressed tar file", "with gzip")]),
    "without an end": (GOOD + LAST, ["good.jpg", "last.jpg"], [("cut short", "without an end mark")]),
    "cut in a header": (GOOD + LAST[:300], ["good.jpg"], [("cut short", "without an end mark")]),
    "cut in an image": (GOOD + LAST[:700], ["good.jpg"], [("cut short", "the last in last.jpg")]),
    "damaged": (GOOD + b"x" * 512 + LAST + END, ["good.jpg"], [("damaged", "no header at byte")]),
    "flipped": (GOOD + b"L" + LAST[1:] + END, ["good.jpg"], [("damaged", "no header at byte")]),
    "giant": (GOOD + header("big.jpg", BINARY) + LAST, ["good.jpg"], [("cut short", "the last in big.jpg")]),
    "negative": (GOOD + header("n.jpg", b"\xff" * 12) + LAST, ["good.jpg"], [("damaged", "no header")]),
    "no number": (GOOD + header("n.jpg", b"99999999999\0") + LAST, ["good.jpg"], [("damaged", "no header")]),
    "link": (
        header("a.jpg", 0, b"2") + header("b.jpg", 512, b"1") + header("c.jpg", 0, b"3") + GOOD + END,
        ["good.jpg"],
        [
            ("not a usable file", "a.jpg: a link"),
            ("not a usable file", "b.jpg: a link"),
            ("not a usable file", "c.jpg: a device"),
        ],
    ),
    "folders": (header("x.jpg", 0, b"5") + header("y.jpg/", 0) + GOOD + END, ["good.jpg"], []),
    "outside": (
        b"".join(header(n, 0) for n in ("/etc/a.jpg", "../b.jpg", "x/../../c.jpg", "../d.txt")) + GOOD + END,
        ["good.jpg"],
        [
            ("not a usable file", "/etc/a.jpg: an unsafe name"),
            ("not a usable file", "../b.jpg: an unsafe name"),
            ("not a usable file", "x/../../c.jpg: an unsafe name"),
            ("not a usable file", "../d.txt: an unsafe name"),
        ],
    ),
    "twice": (GOOD + LAST + GOOD + END, ["good.jpg", "last.jpg"], [("same name twice", "good.jpg")]),
    "sparse": (
        header("s.jpg", 512, b"S", b"\1") + bytes(512) + bytes(512) + GOOD + END,
        ["good.jpg"],
        [("not a usable file", "s.jpg: a sparse file")],
    ),
    "endless sparse map": (header("s.jpg", 0, b"S", b"\1") + b"\1" * 5120, [], [("cut short", "the last in s.jpg")]),
    "sparse by pax": (
        pax(b"GNU.sparse.major=1", b"GNU.sparse.name=sparse.jpg") + header("x", 512) + bytes(512) + GOOD + END,
        ["good.jpg"],
        [("not a usable file", "sparse.jpg: a sparse file")],
    ),
    "pax": (
        pax(b"comment=x", kind=b"g") + pax(b"path=b/two.jpg", b"size=600") + header("x", 0) + bytes(1024) + END,
        ["b/two.jpg"],
        [],
    ),
    "wrong pax": (header("pax", 512, b"x") + b"99 path=b/two.jpg\n-5 a=b\n".ljust(512) + GOOD + END, ["good.jpg"], []),
    "outside by pax": (
        pax(b"path=/etc/x/two.jpg") + header("x", 0) + END,
        [],
        [("not a usable file", "/etc/x/two.jpg: an unsafe name")],
    ),
    "giant by pax": (
        GOOD + pax(b"size=8888888888888") + header("big.jpg", 0) + END,
        ["good.jpg"],
        [("cut short", "the last in big.jpg")],
    ),
    "pax bomb": (
        pax(b"path=" + b"x" * 2_000_000) + header("x.jpg", 0) + LAST + END,
        ["last.jpg"],
        [("not a usable file", "x.jpg: an extended header that is too long")],
    ),
    "giant name": (
        GOOD + header("././@LongLink", BINARY, b"L") + LAST + END,
        ["good.jpg"],
        [("cut short", "the last in ././@LongLink")],
    ),
    "texts": (
        b"".join(
            header(name, len(content)) + padded(content)
            for name, content in (
                ("a.jpg", b"1"), ("a.txt", b"\xff\xfe broken"), ("a.json", b'{"caption": "by json", "label": true}'),
                ("b.jpg", b"2"), ("b.json", b"{broken"),
                ("c.jpg", b"3"), ("c.json", b"[" * 100_000),
                ("d.jpg", b"4"), ("d.json", b'["no object"]'),
                ("e.jpg", b"5"), ("e.txt", b"x" * 1_048_577),
                ("f.jpg", b"6"), ("f.json", b'{"caption": "\\ud800\\u0000", "label": ' + b"9" * 5000 + b"}"),
            )
        )
        + END,
        ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"],
        [
            ("text cannot be read", "it is not UTF-8"),
            ("text cannot be read", "Expecting"),
            ("text cannot be read", "recursion"),
            ("text cannot be read", "not a JSON object"),
            ("text cannot be read", "longer than"),
            ("text cannot be read", "Exceeds the limit"),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tar_files(tmp_path: Path, name: str) -> None:
    content, images, problems = HOSTILE[name]
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    entries, unusable = scan(f"webdataset:{path}")
    assert [uri.removeprefix(f"{path}/") for uri in entries] == images
    assert len(unusable) == len(problems)
    for found, (reason, detail) in zip(unusable, problems, strict=True):
        assert found.reason == reason
        assert detail in found.detail
        assert found.uri.startswith(str(path))
    for uri in entries:
        with open_path(uri) as file:
            file.read()
    assert sorted(os.listdir(tmp_path)) == ["x.tar"]


def test_broken_texts_do_not_remove_the_images(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(HOSTILE["texts"][0])
    entries, _ = scan(f"webdataset:{path}")
    assert (entries[f"{path}/a.jpg"].caption, entries[f"{path}/a.jpg"].label) == ("by json", None)
    files = [("a.jpg", b"1"), ("a.json", b'{"caption": "x\\ud800y", "label": 7, "title": "a\\u0000b"}')]
    entries, unusable = scan(f"webdataset:{write(path, files)}")
    entry = entries[f"{path}/a.jpg"]
    assert (unusable, entry.caption, entry.label, entry.details) == ([], "x?y", "7", {"title": "a b"})


def test_broken_images_are_reported_and_the_run_continues(tiny: TinyEncoder, tmp_path: Path) -> None:
    files = [("0.jpg", picture(0)), ("1.jpg", b"no image"), ("2.jpg", picture(2)[:-40]), ("3.jpg", b"")]
    path = write(tmp_path / "x.tar", [*files, *sample("4", 4)])
    shard(tmp_path / "y.tar", 2)
    (tmp_path / "z.tar").mkdir()
    report = index(f"webdataset:{tmp_path}/[x-z].tar", tmp_path / "c", encoders=["tiny"])
    assert report.added == 4
    assert {failure.uri.removeprefix(f"{tmp_path}/"): failure.reason for failure in report.failures} == {
        "x.tar/1.jpg": "not an image",
        "x.tar/2.jpg": "truncated",
        "x.tar/3.jpg": "empty file",
        "z.tar": "not a regular file",
    }
    assert str(path) in {os.path.dirname(failure.uri) for failure in report.failures}


def test_missing_images_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "x.tar", 2)
    source = open_source(f"webdataset:{path}")
    for uri, reason in (
        (f"{path}/none.jpg", "missing"),
        (f"{path}/000000000.txt", "missing"),
        (f"{tmp_path}/y.tar/1.jpg", "missing"),
        ("/1.jpg", "missing"),
    ):
        with pytest.raises(InvalidImageError) as caught, source.open(uri):
            pass
        assert caught.value.reason == reason
    # A tar file that was replaced by another is read as it is now.
    with source.open(f"{path}/000000000.jpg") as file:
        before = file.read()
    write(path, sample("x", 9) + sample("000000000", 5))
    with source.open(f"{path}/000000000.jpg") as file:
        assert file.read() == picture(5) != before
    monkeypatch.setattr(_tar, "_MAX_IMAGE_BYTES", 10)
    with pytest.raises(InvalidImageError, match="too large"), source.open(f"{path}/000000000.jpg"):
        pass


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_random_bytes_never_crash_the_scan(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes are changed, removed and added: each listed image can be opened, or the error is reported."""
    path = tmp_path_factory.getbasetemp() / "random.tar"
    if not (whole := path.with_name("whole.tar")).exists():
        write(whole, [*sample("a" * 120, 1), *sample("b", 2), *sample("c", 3)])
    content = bytearray(whole.read_bytes()[: 24 * 512])
    for _ in range(data.draw(st.integers(0, 6))):
        place = 512 * data.draw(st.integers(0, 23)) + data.draw(st.sampled_from([*range(0, 512, 13), *range(120, 160)]))
        content[place] = data.draw(st.integers(0, 255))
    start = data.draw(st.integers(0, len(content)))
    del content[start : start + data.draw(st.sampled_from([0, 0, 1, 512, 1024]))]
    path.write_bytes(content + data.draw(st.binary(max_size=600)))
    source = open_source(f"webdataset:{path}")
    for found in source.scan():
        if isinstance(found, Entry):
            try:
                with source.open(found.uri) as file:
                    file.read()
            except InvalidImageError:
                pass
        else:
            assert found.uri.startswith(str(path))


def test_from_the_command_line(tmp_path: Path) -> None:
    photos = Path(__file__).parents[1] / "examples" / "photos"
    names = ("cat", "horse", "rocket")
    write(tmp_path / "0.tar", [(f"{name}.jpg", (photos / f"{name}.jpg").read_bytes()) for name in names])
    (tmp_path / "1.tar").write_text("no tar file")
    done = cli("index", "webdataset:{0..2}.tar", "-c", "c", cwd=tmp_path)
    assert done.returncode == 1
    assert "3 added, 2 failed" in done.stdout
    for name, reason in (("1.tar", "not a tar file"), ("2.tar", "missing shard")):
        assert f"{tmp_path / name}: {reason}" in done.stdout
    # By the path of a hit, and with a picture of the hits.
    hit = f"{tmp_path}/0.tar/horse.jpg"
    found = cli("search", hit, "-c", "c", "-k", "1", "--save-grid", "grid.png", cwd=tmp_path)
    assert (found.returncode, "0.tar/horse.jpg" in found.stdout.splitlines()[-1]) == (0, True)
    with Image.open(tmp_path / "grid.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 100
    wrong = cli("search", f"{tmp_path}/0.tar/zebra.jpg", "-c", "c", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "does not exist" in wrong.stderr
    assert "webdataset:" in cli("sources").stdout
