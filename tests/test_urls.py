"""Lists of URLs as sources: formats, columns, and errors in lists."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pixmatcher import InvalidImageError, SourceError
from pixmatcher.sources import Entry, Source, Unusable, open_source, urls
from pixmatcher.sources._image_urls import normal_url, written_url
from pixmatcher.sources.text_tables import MAX_LINE
from pixmatcher.sources.urls import UrlListSource
from support import bound_by_permissions, cli

ROWS = [
    {"url": "https://host/a.jpg", "caption": "a cat, asleep", "label": "cat", "id": "7"},
    {"url": "http://host:8080/b%20c.png?w=1&h=2", "caption": 'the "big" dog', "label": "dog", "id": "008"},
    {"url": "https://other.example/c", "caption": "ein Käfer", "label": "", "id": "x-9"},
]


def scan(source: Source | str) -> tuple[list[Entry], list[Unusable]]:
    """Return the entries of a source, and its unusable rows."""
    found = list((open_source(source) if isinstance(source, str) else source).scan())
    return [f for f in found if isinstance(f, Entry)], [f for f in found if isinstance(f, Unusable)]


def uris(source: str) -> list[str]:
    entries, unusable = scan(source)
    assert unusable == []
    return [entry.uri for entry in entries]


def problems(unusable: list[Unusable]) -> list[tuple[str, str]]:
    """Return the place and the reason of each unusable row."""
    return [(found.uri.rpartition(":")[2], found.reason) for found in unusable]


def as_table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["url", "caption", "label", "id"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet(columns: dict[str, object], **options: object) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def columns_of(rows: list[dict[str, str]]) -> dict[str, list[str]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


WRITERS: dict[str, Callable[[], bytes]] = {
    "list.csv": lambda: as_table(","),
    "list.tsv": lambda: as_table("\t"),
    "semicolons.csv": lambda: as_table(";"),
    "list.json": lambda: json.dumps(ROWS).encode(),
    "columns.json": lambda: json.dumps(columns_of(ROWS)).encode(),
    "by-row.json": lambda: json.dumps(
        {name: {str(row): value for row, value in enumerate(values)} for name, values in columns_of(ROWS).items()}
    ).encode(),
    "list.jsonl": lambda: "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "list.NDJSON": lambda: "".join(json.dumps(row) + "\r\n" for row in ROWS).encode("utf-16"),
    "list.parquet": lambda: as_parquet(columns_of(ROWS)),
    "list.csv.gz": lambda: gzip.compress(as_table(",")),
    "list.json.gz": lambda: gzip.compress(json.dumps(ROWS).encode("utf-16")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_entries(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(WRITERS[name]())
    monkeypatch.chdir(tmp_path)
    source = open_source(f"urls:{name}")
    assert source.spec == f"urls:{tmp_path / name}"
    assert open_source(source.spec).spec == source.spec
    assert (source.folder, source.label_names()) == (None, {})
    entries, unusable = scan(source)
    assert unusable == []
    for entry, row in zip(entries, ROWS, strict=True):
        assert (entry.uri, entry.urls, entry.rotation, entry.modified) == (row["url"], (row["url"],), 0, None)
        assert (entry.caption, entry.label, entry.details) == (row["caption"], row["label"] or None, {"id": row["id"]})
    with pytest.raises(InvalidImageError, match="missing"):
        source.open(entries[0].uri)


def test_a_list_of_urls_only(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\n# a comment\n https://h/a.jpg \r\nhttps://h/b.jpg#top\n\nhttps://h/c c.jpg")
    (tmp_path / "list.json").write_text('["https://h/a.jpg", "https://h/b.jpg#top", "https://h/c c.jpg"]')
    (tmp_path / "list.jsonl").write_text('"https://h/a.jpg"\n"https://h/b.jpg#top"\n"https://h/c c.jpg"\n')
    for name in ("list.txt", "list.json", "list.jsonl"):
        assert uris(f"urls:{tmp_path / name}") == ["https://h/a.jpg", "https://h/b.jpg", "https://h/c%20c.jpg"]


@pytest.mark.parametrize(
    ("header", "row", "caption", "label", "details"),
    [
        ("SAMPLE_ID,URL,TEXT,LICENSE", "1,U,t,cc-by", "t", None, {"id": "1", "license": "cc-by"}),  # LAION
        ("id,url,text,width", "1,U,t,3", "t", None, {"id": "1"}),  # COYO
        ("image_path,caption,key,Image URL", "p,t,00001,U", "t", None, {"id": "00001"}),  # img2dataset
        ("ImageID,OriginalURL,Author,Title", "ab,U,Ann,A b", None, None, {"id": "ab", "author": "Ann", "title": "A b"}),
        ("photo_image_url,photo_description", "U,t", None, None, {}),  # Unsplash
        ("Label , img_url,description", "cat,U,t", "t", "cat", {}),
        ("link,text,caption,id,id", "U,no,t,1,2", "t", None, {"id": "1"}),
    ],
)
def test_columns_are_found_by_their_usual_names(
    tmp_path: Path, header: str, row: str, caption: str | None, label: str | None, details: dict[str, str]
) -> None:
    (tmp_path / "list.csv").write_text(f"{header}\n{row.replace('U', 'https://h/x.jpg')}\n")
    [[entry], _] = scan(f"urls:{tmp_path / 'list.csv'}")
    assert entry.uri == "https://h/x.jpg"
    assert (entry.caption, entry.label, entry.details) == (caption, label, details)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_columns_can_be_chosen(tmp_path: Path, kind: str) -> None:
    rows = [{"url": "https://h/thumb", "Big&One": "https://h/big", "what": "cat", "text": "t", "a+b": "x y", "n": "5"}]
    path = tmp_path / f"list.{kind}"
    if kind == "csv":
        path.write_text(",".join(rows[0]) + "\n" + ",".join(rows[0].values()))
    else:
        path.write_bytes(as_parquet(columns_of(rows)) if kind == "parquet" else json.dumps(rows[0]).encode())
    source = open_source(f"urls:{path}?url=big%26one&label=what&caption=a%2Bb&id=n")
    assert open_source(source.spec).spec == source.spec
    [[entry], _] = scan(source)
    assert (entry.uri, entry.label, entry.caption, entry.details) == ("https://h/big", "cat", "x y", {"id": "5"})


def test_columns_without_a_header_are_chosen_by_number(tmp_path: Path) -> None:
    path = tmp_path / "cc3m.tsv"
    path.write_text('a "cat"\thttps://h/a.jpg\n"dog" and \'pup\'\thttps://h/b.jpg\n')
    entries, unusable = scan(f"urls:{path}?url=2&caption=1")
    assert [(entry.uri, entry.caption) for entry in entries] == [
        ("https://h/a.jpg", 'a "cat"'),
        ("https://h/b.jpg", "\"dog\" and 'pup'"),
    ]
    assert unusable == []
    with pytest.raises(SourceError, match=r"no column '3'.*1 to 2"):
        scan(f"urls:{path}?url=3")
    with pytest.raises(SourceError, match=r"no column of URLs.*url=1"):
        scan(f"urls:{path}")


def test_a_missing_column_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    contents = {
        "a.csv": b"Address,Words\nhttps://h/a.jpg,a\n",
        "a.json": b'[{"Address": "https://h/a.jpg", "Words": "a"}]',
        "a.jsonl": b'{"Address": "https://h/a.jpg", "Words": "a"}',
        "a.parquet": as_parquet({"Address": ["https://h/a.jpg"], "Words": ["a"]}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=r"no column of URLs, but 'Address', 'Words'.*\?url=NAME"):
            scan(f"urls:{tmp_path / name}")
        with pytest.raises(SourceError, match=r"no column 'None', but 'Address', 'Words'.*\?caption=NAME"):
            scan(f"urls:{tmp_path / name}?url=address&caption=None")
        assert uris(f"urls:{tmp_path / name}?url=address") == ["https://h/a.jpg"]


def test_a_question_mark_in_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, url in (("a.csv", "plain"), ("a.csv?id=n.csv", "odd")):
        Path(name).write_text(f"url,id,m\nhttps://h/{url},1,2\n")
    for rest, url, number in (
        ("a.csv?id=m", "plain", "2"),
        ("a.csv?id=n.csv", "odd", "1"),
        ("a.csv?id=n.csv?id=m", "odd", "2"),
    ):
        source = open_source(f"urls:{rest}")
        assert open_source(source.spec).spec == source.spec
        [[entry], _] = scan(source)
        assert (entry.uri, entry.details["id"]) == (f"https://h/{url}", number)


def test_a_base_url_for_file_names(tmp_path: Path) -> None:
    (tmp_path / "image_urls.json").write_text('{"0": "a.jpg", "1": "b c#1?.jpg", "2": "http://x/d%20.jpg", "3": ""}')
    for base in ("https://host/folder/", "https://host/folder"):
        source = open_source(f"urls:{tmp_path / 'image_urls.json'}?base={base}")
        assert open_source(source.spec).spec == source.spec
        entries, unusable = scan(source)
        assert [(entry.uri, entry.details) for entry in entries] == [
            ("https://host/folder/a.jpg", {"id": "0"}),
            ("https://host/folder/b%20c%231%3F.jpg", {"id": "1"}),
            ("http://x/d%20.jpg", {"id": "2"}),
        ]
        assert problems(unusable) == [("4", "not a URL")]
    with pytest.raises(SourceError, match=r"file names: give .*\?base=https://host/folder/"):
        scan(f"urls:{tmp_path / 'image_urls.json'}")
    (tmp_path / "list.csv").write_text("url\nx/a.jpg\n/b.jpg\nhttps://other/c.jpg\n//third/d.jpg\n../e%20f.jpg?w=1\n")
    assert uris(f"urls:{tmp_path / 'list.csv'}?base=https://host/folder/") == [
        "https://host/folder/x/a.jpg",
        "https://host/b.jpg",
        "https://other/c.jpg",
        "https://third/d.jpg",
        "https://host/e%20f.jpg?w=1",
    ]


def test_the_version_depends_only_on_what_is_fetched(tmp_path: Path) -> None:
    def versions(content: str) -> list[str]:
        (tmp_path / "list.csv").write_text(content)
        return [entry.version for entry in scan(f"urls:{tmp_path / 'list.csv'}")[0]]

    first = versions("url,caption\nhttps://h/a,one\nhttps://h/b,two\n")
    assert versions("id,label,caption,url\n1,x,other,https://h/a\n2,y,words,https://h/b\n") == first
    assert first[0] != first[1]


# What is wrong with rows

A, B, C, D = (f"https://h/{name}.jpg" for name in "abcd")


@pytest.mark.parametrize(
    ("rows", "good", "bad"),
    [
        # An open quote, followed by nothing, by rows, and by rows with quotes
        (f'{A},"open\n', [], [("2", "broken quotes")]),
        (f'{A},one\n{B},"open\n{C},three\n{D},four\n', [A, C, D], [("3", "broken quotes")]),
        (f'{A},"open\n{B},"two, quoted"\n{C},three\n', [B, C], [("2", "broken quotes")]),
        (f'{A},"open\n{B},closes"\n{C},three\n', [B, C], [("2", "broken quotes")]),
        (f'{A},"open\n{B},"open too\n{C},"three"\n', [C], [("2", "broken quotes"), ("3", "broken quotes")]),
        (f'"{A},one\n"{B}",two\n{C},three\n', [B, C], [("2", "broken quotes")]),
        (f'{A},"open\n' + f"{B},two\n" * 300 + f'{C},"three"\n', [B] * 300 + [C], [("2", "broken quotes")]),
        (f'{A},"open {"x" * 100_000}\n{"y" * 100_000},{B}\n', [], [("2", "broken quotes"), ("3", "not a URL")]),
        # Text after a closed quote
        (f'{A},"one" two\n{B},three\n', [B], [("2", "broken quotes")]),
        # All in order
        (f'{A},"one\n\ntwo ""three""\n,"\n{B},5" wide\n{C},""\n', [A, B, C], []),
        (f'\n{A},one\r\n  \n\r\n"{B}","two"\n', [A, B], []),
        # A quote that is open before the URL of its line
        (f'"{A},one\nfoo 5",two\n{C},three\n', [C], [("2", "broken quotes"), ("3", "not a URL")]),
        # Fields too few and too many
        (f"{A}\n{B},two,three\n{C},four\n", [C], [("2", "wrong number of fields"), ("3", "wrong number of fields")]),
        (f'{A},"one",\n{B},two\n', [B], [("2", "wrong number of fields")]),
        # Content that is not text, and content that is too long
        (f"{A},o\0ne\n{B},two\n", [B], [("2", "NUL byte")]),
        (f"{A},{'x' * MAX_LINE}\n{B},two\n", [B], [("2", "too long")]),
        (f"{A},{'é' * 3 * MAX_LINE}\n{B},two\n", [B], [("2", "too long")]),
        (
            f'{A},"{"x" * 4 * MAX_LINE}"\n{B},two\n{C},"{"y" * 5 * MAX_LINE}',
            [B],
            [("2", "too long"), ("4", "too long")],
        ),
        # Invalid URLs
        (f",one\nftp://h/x,two\n{C},three\n", [C], [("2", "not a URL"), ("3", "not a URL")]),
    ],
)
def test_bad_rows_are_reported_and_the_others_are_not_lost(
    tmp_path: Path, rows: str, good: list[str], bad: list[tuple[str, str]]
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(f"url,caption\n{rows}".encode())
    entries, unusable = scan(f"urls:{path}")
    assert [entry.uri for entry in entries] == good
    assert problems(unusable) == bad
    assert all(found.uri.startswith(f"{path}:") and found.detail for found in unusable)


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_captions_of_several_lines_before_the_url(tmp_path: Path, delimiter: str, quote: str) -> None:
    captions = ["one\ntwo", 'the ""third""\n\nline', "four"]
    rows = [f'"{caption}"{delimiter}{quote}{url}{quote}' for caption, url in zip(captions, (A, B, C), strict=True)]
    (tmp_path / "list.csv").write_bytes("\r\n".join([f"caption{delimiter}url", *rows]).encode())
    entries, unusable = scan(f"urls:{tmp_path / 'list.csv'}")
    assert unusable == []
    assert [(e.uri, e.caption) for e in entries] == [(A, "one\ntwo"), (B, 'the "third"\n\nline'), (C, "four")]


ENCODINGS = {
    "UTF-8 with its mark": lambda text: text.encode("utf-8-sig"),
    "CR LF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 of the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_and_line_ends(tmp_path: Path, encoding: str) -> None:
    # Longer than one read, so that characters and line ends are split.
    text = "url,caption\n" + "".join(f"https://h/{number},für {number}\n" for number in range(40_000))
    (tmp_path / "list.csv").write_bytes(ENCODINGS[encoding](text))
    entries, unusable = scan(f"urls:{tmp_path / 'list.csv'}")
    assert unusable == []
    assert [entry.caption for entry in entries] == [f"für {number}" for number in range(40_000)]


CODE_PAGES = {
    "cp1252": "caf\u00e9 \u00e0 la cr\u00e8me \u2013 5 \u20ac",
    "cp1250": "p\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148",
    "cp1251": "\u041a\u043e\u0448\u043a\u0430 \u043d\u0430 \u0434\u0438\u0432\u0430\u043d\u0435",
    "cp1253": "\u0397 \u03b3\u03ac\u03c4\u03b1 \u03c3\u03c4\u03bf\u03bd \u03ba\u03b1\u03bd\u03b1\u03c0\u03ad",
    "cp1255": "\u05d7\u05ea\u05d5\u05dc \u05e2\u05dc \u05d4\u05e1\u05e4\u05d4",
    "cp1256": "\u0642\u0637\u0629 \u0639\u0644\u0649 \u0627\u0644\u0623\u0631\u064a\u0643\u0629",
    "cp932": "\u30bd\u30d5\u30a1\u306e\u4e0a\u306e\u732b",
    "gb18030": "\u6c99\u53d1\u4e0a\u7684\u732b",
    "cp949": "\uc18c\ud30c \uc704\uc758 \uace0\uc591\uc774",
    "mac_roman": "caf\u00e9 \u00e0 la cr\u00e8me",
    "cp850": "caf\u00e9 \u00e0 la cr\u00e8me",
}
"""A caption in each code page."""


@pytest.mark.parametrize("encoding", CODE_PAGES)
@pytest.mark.parametrize("kind", ["csv", "tsv", "txt", "jsonl", "json"])
def test_the_encoding_of_a_code_page_is_found_and_noted(tmp_path: Path, encoding: str, kind: str) -> None:
    caption = CODE_PAGES[encoding]
    path = tmp_path / f"list.{kind}"
    rows = [{"url": "https://h/a", "caption": caption}, {"url": "https://h/b", "caption": "plain"}]
    if kind.startswith("json"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]"
    else:
        delimiter = ";" if kind == "csv" else "\t"
        text = "\r\n".join(delimiter.join(row) for row in (rows[0].keys(), *(row.values() for row in rows)))
    path.write_bytes(text.encode(encoding))
    source = UrlListSource(str(path))
    entries, unusable = scan(source)
    assert unusable == []
    assert [(entry.uri, entry.caption) for entry in entries] == [("https://h/a", caption), ("https://h/b", "plain")]
    (note,) = source.notes
    assert note.startswith(f"{path} is read as ")
    assert encoding in note.replace("Mac Roman", "mac_roman").replace("GB18030", "gb18030")


def test_a_list_in_utf_8_has_no_note(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("url,caption\nhttps://h/a,\u732b\n", encoding="utf-8")
    source = UrlListSource(str(path))
    scan(source)
    assert source.notes == []


def test_single_lines_and_bytes_in_another_encoding_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    source = UrlListSource(_written(path, b"url,caption\n"))
    utf8, other = "\u732b \u00e9".encode(), b"caf\xe9 \x81"
    path.write_bytes(
        b"url,caption\nhttps://h/1,%b\nhttps://h/2,%b\nhttps://h/\xe9,c\nhttps://h/\x81,d\n" % (utf8, other)
    )
    entries, [bad] = scan(source)
    assert [(entry.uri, entry.caption) for entry in entries] == [
        ("https://h/1", "\u732b \u00e9"),
        ("https://h/2", "caf\u00e9 \ufffd"),
        ("https://h/%C3%A9", "c"),
    ]
    assert problems([bad]) == [("5", "not a URL")]
    assert "not in the encoding" in bad.detail
    scan(source)
    assert len(source.notes) == 1


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(
        "url,caption\nhttps://h/a,one\n".encode("utf-16")
        + b"\x00\xd8\n\x00"
        + "https://h/c,c".encode("utf-16-le")
        + b"x"
    )
    entries, unusable = scan(f"urls:{path}")
    assert [entry.uri for entry in entries] == ["https://h/a"]
    assert problems(unusable) == [("3", "wrong encoding"), ("4", "wrong encoding")]
    assert "UTF-8" in unusable[0].detail
    for encoding in ("utf-16-le", "utf-16-be"):  # without a mark
        path.write_bytes("url,caption\nhttps://h/a,f\u00fcr \u732b\n".encode(encoding))
        entries, unusable = scan(f"urls:{path}")
        assert ([entry.caption for entry in entries], unusable) == (["f\u00fcr \u732b"], [])


@pytest.mark.parametrize(
    "head",
    [
        "sep=;\r\nurl;caption",
        '"sep=;"\r\nurl;caption',
        "SEP=;\nurl;caption",
        "sep=;\rurl;caption",
        "url;caption",
        "\ufeffsep=;\r\nurl;caption",
        'id, number;url;"caption"',
        '"id (a, b, c)";url;caption',
    ],
)
def test_semicolons_as_excel_writes_them(tmp_path: Path, head: str) -> None:
    end = "\r" if "\r" in head and "\n" not in head else "\r\n"
    first = "7;" if "id" in head else ""
    rows = [f'{first}https://h/a.jpg;"a ""big"" dog; asleep\non two lines"', f"{first}https://h/b.jpg;a, b"]
    path = tmp_path / "list.csv"
    path.write_bytes((end.join([head, *rows]) + end).encode())
    entries, unusable = scan(f"urls:{path}")
    assert unusable == []
    assert [entry.uri for entry in entries] == ["https://h/a.jpg", "https://h/b.jpg"]
    assert " ".join(entries[0].caption.split()) == 'a "big" dog; asleep on two lines'
    assert entries[1].caption == "a, b"


def test_unicode_text_of_excel(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("Caption\tURL\r\n\u732b\thttps://h/a.jpg\r\n".encode("utf-16"))
    assert [(entry.uri, entry.caption) for entry in scan(f"urls:{path}")[0]] == [("https://h/a.jpg", "\u732b")]
    path.write_text("https://h/a.jpg\ta caption\n7\thttps://h/b.jpg\n")
    assert uris(f"urls:{path}") == ["https://h/a.jpg", "https://h/b.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("list.csv", b"PK\x03\x04\x14\0\x06\0", "save the table as CSV UTF-8"),
        ("list.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "is a spreadsheet"),
        ("list.xlsx", b"PK\x03\x04", "save it as CSV UTF-8"),
        ("list.txt", b"%PDF-1.7\n", "is a PDF file"),
        ("list.csv", b"PAR1" + bytes(10), "rename it to end with .parquet"),
        ("list.jsonl", b"BZh91AY", "compressed with bzip2"),
        ("list.json", b"<!DOCTYPE html><html>", "is a web page"),
        ("list.txt", b"\n<html>", "is a web page"),
        ("list.csv.gz", gzip.compress(b"PK\x03\x04", mtime=0), "CSV UTF-8"),
        ("list.txt", b"\xff\xd8\xff\xe0" + bytes(20), "is an image"),
    ],
)
def test_files_of_other_formats_are_refused_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=re.escape(words)):
        scan(f"urls:{tmp_path / name}")


# URLs


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("HTTPS://User:Pa%20ss@Host.Example:443/A.jpg", "https://User:Pa%20ss@host.example:443/A.jpg"),
        ("  https://h/a b.jpg\t", "https://h/a%20b.jpg"),
        ("https://h", "https://h/"),
        ("https://h?x=1", "https://h/?x=1"),
        ("https://h/50%.jpg?q=%zz&r=%41", "https://h/50%25.jpg?q=%25zz&r=%41"),
        ("https://h/käfer.jpg?ä=ö#x", "https://h/k%C3%A4fer.jpg?%C3%A4=%C3%B6"),
        ("https://bücher.example/a", "https://xn--bcher-kva.example/a"),
        ("https://faß.example/a", "https://xn--fa-hia.example/a"),
        ("https://h/a\x01\x7f.jpg", "https://h/a%01%7F.jpg"),
        ("https://h/a\nb.jpg", "https://h/ab.jpg"),
        ('https://h/"a"<b>{c}`^\\d', "https://h/%22a%22%3Cb%3E%7Bc%7D%60%5E%5Cd"),
        ("https://h/a[1]|(2);v=1,2!*'", "https://h/a[1]|(2);v=1,2!*'"),
        ("http://[2001:DB8::1]:80/a", "http://[2001:db8::1]:80/a"),
        ("http://under_score.example./a", "http://under_score.example./a"),
    ],
)
def test_urls_are_normalised(written: str, meant: str) -> None:
    assert normal_url(written) == meant
    assert normal_url(meant) == meant


URL = "https://h.example/a.jpg"


@pytest.mark.parametrize(
    "written",
    [
        '"{}"',
        "'{}'",
        "`{}`",
        "<{}>",
        "< {} >",
        "<URL:{}>",
        "URL: {}",
        "url:{}",
        "[text]({})",
        '![alt]({} "title")',
        "[{}](text)",
        "[https://other.example/]({})",
        "[{}]",
        "({})",
        "{{{}}}",
        "{},",
        "{};",
        "{}.",
        '"{}",',
        "'{}';",
        "- {}",
        "* [x]({})",
        "1. {}",
        '<img src="{}" alt="x">',
        '<a href="{}">text</a>',
        '="{}"',
        '=HYPERLINK("{}","text")',
        "\u201c{}\u201d",
        "\u201e{}\u201c",
        "\xab{}\xbb",
        "{}>",
        '{}"',
        '"{}',
        '["{}",',
        '"url": "{}",',
        "<<{}>>",
        "({}).",
    ],
)
def test_urls_in_quotes_and_brackets(tmp_path: Path, written: str) -> None:
    (tmp_path / "list.txt").write_text(f"https://h/first\n{written.format(URL)}\nhttps://h/last\n")
    assert uris(f"urls:{tmp_path / 'list.txt'}") == ["https://h/first", URL, "https://h/last"]
    (tmp_path / "list.json").write_text(json.dumps([{"url": written.format(URL)}]))
    assert uris(f"urls:{tmp_path / 'list.json'}") == [URL]


@pytest.mark.parametrize(
    "written",
    [
        "https://h/Cat_(animal)",
        "https://h/a,",
        "https://h/a;",
        "https://h/a'",
        "https://h/a)",
        "https://h/?x=[1]",
        "https://h/view(a.jpg)",
        "https://h/?r=https://b/a.jpg",
        "https://[::1]/a.jpg",
        "https://h/a.",
        "https://h/a.jpg?w=1;h=2",
    ],
)
def test_what_belongs_to_a_url_stays_in_it(tmp_path: Path, written: str) -> None:
    for around in ("{}", "({})", "[text]({})", "<{}>", '"{}"'):
        if written == "https://h/a)" and around not in ("{}", "<{}>", '"{}"'):
            continue  # nobody can say to what the bracket belongs
        (tmp_path / "list.txt").write_text(f"{around.format(written)}\nhttps://h/last\n")
        assert uris(f"urls:{tmp_path / 'list.txt'}") == [written, "https://h/last"]


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_separator_at_the_end_of_every_line(tmp_path: Path, separator: str) -> None:
    for last in ("", separator):
        (tmp_path / "list.txt").write_text(f"https://h/a{separator}\nhttps://h/b{separator} \n\nhttps://h/c{last}\n")
        assert uris(f"urls:{tmp_path / 'list.txt'}") == ["https://h/a", "https://h/b", "https://h/c"]


@given(st.text(st.sampled_from("https://h.a,;<>[](){}\"'` =-\u201c\u201d\u00ab\n\t"), max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_around_a_url_is_read_or_refused(text: str) -> None:
    for given_text in (text, f"https://{text}", f"{text}https://h/a.jpg{text}"):
        written = written_url(given_text)
        assert len(written) <= len(given_text)
        assert written_url(written) == written or "://" in written


@pytest.mark.parametrize(
    "text",
    [
        *("", " \t ", "a.jpg", "/a.jpg", "//host/a.jpg", "www.host.example/a.jpg", "file:///etc/passwd", "ftp://h/a"),
        *("data:image/png;base64,AAAA", "javascript:alert(1)", "https:/h/a", "https:a", "https://", "https:///a"),
        *("https://h:99999/a", "https://h:x/a", "https://a b/c", "https://%68/a", "https://h\\@x/a", "https://[::1/a"),
        *("https://[v1.x]/a", "https://..h/a", "https://h/" + "x" * 9000, "https://h/\ud800", "https://\ud800/a"),
        *("https://" + "é" * 300 + "/a", "https://\u3002/a", "http s://h/a", "https\x00://h/a", "\x1b[31mhttps"),
    ],
)
def test_invalid_urls_are_reported(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        normal_url(text)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 300
    (tmp_path / "list.json").write_text(json.dumps([text, "https://h/a"]))
    entries, [bad] = scan(f"urls:{tmp_path / 'list.json'}")
    assert ([entry.uri for entry in entries], bad.uri) == (["https://h/a"], f"{tmp_path / 'list.json'}:1")
    assert (bad.reason, bad.detail) == ("not a URL", str(raised.value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30), st.text(max_size=60))
@example("[::1]", "")
@example("a@b", "?#?")
def test_every_accepted_url_can_be_fetched(host: str, rest: str) -> None:
    try:
        url = normal_url(f"http://{host}/{rest}")
    except ValueError:
        return
    assert normal_url(url) == url
    assert url.isascii()
    assert url.isprintable()
    assert " " not in url
    assert httpx.URL(url).host
    assert httpx.URL(url).raw_host.decode() == re.sub(r"^http://(?:[^@/]*@)?\[?([^/\]]*?)\]?(?::\d*)?/.*", r"\1", url)


# Complete files


def test_invalid_specs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "a.docx").write_text("url\n")
    (tmp_path / "a.csv").write_text("url\nhttps://h/a\n")
    for rest, words in (
        ("", "write it like"),
        ("missing.csv", "does not exist"),
        ("folder.csv", "is not a file"),
        ("fifo.csv", "is not a file"),
        ("a.docx", r"unknown kind.*\.jsonl"),
        ("a.csv?nothing", r"\?nothing are not valid.*url="),
        ("a.csv?url=", "not valid"),
        ("a.csv?url=a&url=b", "not valid"),
        ("a.csv?split=val", "not valid"),
        ("a.csv?base=host/folder", r"\?base= is not a URL"),
        ("a.csv?base=https://h/?get=", r"\?base= is not a URL"),
    ):
        with pytest.raises(SourceError, match=words) as raised:
            open_source(f"urls:{tmp_path / rest if rest else ''}")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "json", "jsonl", "parquet"])
def test_an_empty_file_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"a.{kind}").touch()
    with pytest.raises(SourceError, match="is empty"):
        scan(f"urls:{tmp_path / f'a.{kind}'}")


def test_an_unreadable_file(open_folder: Path) -> None:
    path = open_folder / "a.csv"
    path.write_text("url\nhttps://h/a\n")
    path.chmod(0)
    code = f"from pixmatcher.sources import open_source\nlist(open_source('urls:{path}').scan())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, preexec_fn=bound_by_permissions()
    )
    assert "SourceError" in run.stderr
    assert "Permission denied" in run.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"url": "https://h/a"}, {"url": "https', "not complete JSON"),
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 200_000, "nested too deep"),
        ('{"url": "https://h/a"}\n{"url": "https://h/b"}\n', r"rename it to \.jsonl"),
        ('"https://h/a"', "is not a list of URLs"),
        ("{}", "is not a list of URLs"),
        ('{"a": {"b": 1}}', "no column of URLs, but 'a'"),
        ("[\xff]", "not complete JSON"),
    ],
)
def test_invalid_json_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SourceError, match=words):
        scan(f"urls:{tmp_path / 'a.json'}")


def test_json_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.dumps(ROWS).encode()
    monkeypatch.setattr(urls, "MAX_JSON", len(content))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content, mtime=0))
    assert len(uris(f"urls:{tmp_path / 'a.json.gz'}")) == 3
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(content + b" " * 1_000_000, mtime=0))
    with pytest.raises(SourceError, match="save it as jsonl"):
        scan(f"urls:{tmp_path / 'a.json.gz'}")


def test_odd_values_of_json(tmp_path: Path) -> None:
    rows = [
        '{"url": "https://h/a", "id": 12345678901234567890, "label": true, "caption": null}',
        '{"url": "https://h/b", "id": 1.50, "label": NaN, "caption": "x\\u0000y\\ud800z"}',
        '{"url": null}',
        '{"url": ["https://h/c"]}',
        '{"other": 1}',
        '{"url": "https://h/d", "caption": ["x"], "label": {"a": 1}, "id": ' + "9" * 5000 + "}",
        '{"url": "https://h/e", "caption": "' + "x" * (MAX_LINE + 1) + '"}',
        "17",
        "[" * 3000 + "]" * 3000,
        '{"url": "https://h/f"',
    ]
    (tmp_path / "a.json").write_text("[" + ",".join(rows[:-2]) + "]")
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    for name, more in (("a.json", []), ("a.jsonl", ["9", "10"])):
        entries, unusable = scan(f"urls:{tmp_path / name}")
        assert [(entry.uri, entry.label, entry.caption) for entry in entries] == [
            ("https://h/a", "true", None),
            ("https://h/b", None, "xy?z"),
            ("https://h/d", None, None),
        ]
        assert [entry.details["id"] for entry in entries] == ["12345678901234567890", "1.50", "9" * 5000]
        assert [number for number, _ in problems(unusable)] == ["3", "4", "5", "7", "8", *more]
        assert unusable[3].reason == "too long"


def test_a_compressed_list_that_is_cut_short(tmp_path: Path) -> None:
    text = "url\n" + "".join(f"https://h/{os.urandom(8).hex()}\n" for _ in range(50_000))
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(text.encode())[:-200_000])
    source = open_source(f"urls:{path}")
    entries, [bad] = scan(source)
    assert 0 < len(entries) < 50_000
    assert [entry.uri for entry in entries] == text.split("\n")[1 : len(entries) + 1]
    # The rest of the list is unknown, so no item of the source may be removed.
    assert (bad.uri, bad.reason, bad.contents_unknown) == (source.spec, "damaged", True)
    path.write_bytes(b"\x1f\x8b" + os.urandom(50))
    with pytest.raises(SourceError, match="first line is not valid"):
        scan(source)


# Parquet


def test_odd_values_of_parquet(tmp_path: Path) -> None:
    invalid = pa.Array.from_buffers(
        pa.string(), 4, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"ab\xffc")]
    )
    columns = {
        "url": pa.array([b"https://h/a", b"https://h/\xff", None, b"https://h/d"], pa.binary()),
        "caption": invalid,
        "label": pa.array([3, None, 5, 6]),
        "id": pa.array([1.5, None, float("nan"), float("nan")]),
        "title": pa.array([{"x": 1}] * 4),
    }
    (tmp_path / "a.parquet").write_bytes(as_parquet(columns))
    entries, unusable = scan(f"urls:{tmp_path / 'a.parquet'}")
    assert [(entry.uri, entry.caption, entry.label, entry.details) for entry in entries] == [
        ("https://h/a", "a", "3", {"id": "1.5"}),
        ("https://h/d", "c", "6", {}),
    ]
    assert problems(unusable) == [("2", "not a URL"), ("3", "not a URL")]
    (tmp_path / "b.parquet").write_bytes(as_parquet({"url": [[1], [2]], "id": ["a", "b"]}))
    assert problems(scan(f"urls:{tmp_path / 'b.parquet'}")[1]) == [("1", "not a URL"), ("2", "not a URL")]


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    names = [f"https://h/{os.urandom(8).hex()}" for _ in range(20_000)]
    whole = as_parquet({"url": names}, row_group_size=2000, use_dictionary=False, write_page_checksum=True)
    source = f"urls:{path}"
    for content in (whole[:-1000], b"PAR1", b"url\nhttps://h/a\n", b"PAR1" + os.urandom(100) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(SourceError, match="cannot be read as parquet"):
            scan(source)
    path.write_bytes(whole[: len(whole) // 2] + bytes(200) + whole[len(whole) // 2 + 200 :])
    entries, [bad] = scan(source)
    assert 0 < len(entries) < 20_000
    assert [entry.uri for entry in entries] == names[: len(entries)]
    assert (bad.uri, bad.reason, bad.contents_unknown) == (source, "damaged", True)


def test_parquet_without_pyarrow(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(as_parquet({"url": ["https://h/a"]}))
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        f"from pixmatcher.sources import open_source\nlist(open_source('urls:{tmp_path / 'a.parquet'}').scan())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr.strip().endswith("needs pyarrow: pip install 'pixmatcher[parquet]'.")


# Whatever is in a list

TEXTS = [
    '"',
    '""',
    ",",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "{",
    "}",
    "[",
    "]",
    '{"url": "',
    '"}',
    "url",
    "caption",
    "#",
    " ",
    "a",
]
URLS = ["https://h/", "http://", "url,caption\n", "url\tcaption\n", "x" * MAX_LINE]
MARKS = [b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08", b"\xc3\xa9"]
PIECES = st.sampled_from([*(text.encode() for text in TEXTS + URLS), *MARKS])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["csv", "csv", "tsv", "txt", "json", "jsonl", "parquet"]),
    start=st.sampled_from([b"", b"url,caption\n", b"url\tcaption\r\n", b"\xff\xfeu\0r\0l\0\n\0"]),
    content=st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join)),
    packed=st.booleans(),
)
def test_random_lists_never_crash_the_scan(
    tmp_path: Path, kind: str, start: bytes, content: bytes, packed: bool
) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(gzip.compress(start + content, mtime=0) if packed else start + content)
    try:
        entries, unusable = scan(f"urls:{path}")
    except SourceError:
        return
    assert all(entry.uri.startswith("http") and entry.urls == (entry.uri,) for entry in entries)
    for found in unusable:
        assert found.uri == f"urls:{path}" if found.contents_unknown else found.uri.startswith(f"{path}:")
        assert f"{found.reason}{found.detail}".isprintable()


captions = st.text(st.sampled_from('abc ,;\t"\n'), max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(captions, max_size=8), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_correctly_written_csv_is_read(tmp_path: Path, texts: list[str], quoting: int) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerows([["url", "caption"], *([f"https://h/{n}", text] for n, text in enumerate(texts))])
    entries, unusable = scan(f"urls:{path}")
    assert unusable == []
    assert [entry.caption or "" for entry in entries] == [text.strip() for text in texts]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["plain", '"quoted"', '"with, comma"', '"a ""b"" c"', '""', '5" wide']), max_size=8),
    st.data(),
)
def test_an_open_quote_loses_no_other_row(tmp_path: Path, texts: list[str], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(texts)))
    lines = [f"https://h/{n},{text}" for n, text in enumerate(texts)]
    lines.insert(at, 'https://h/broken,"open')
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["url,caption", *lines]) + "\n")
    entries, unusable = scan(f"urls:{path}")
    assert [entry.uri for entry in entries] == [f"https://h/{n}" for n in range(len(texts))]
    assert problems(unusable) == [(str(at + 2), "broken quotes")]


def test_a_long_list_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("url,caption\n")
        for number in range(200_000):
            file.write(f"https://host.example/{number:08}.jpg,{'some words ' * 6}\n")
    code = (
        "import resource\nfrom pixmatcher.sources import open_source\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"found = open_source('urls:{path}').scan()\nfirst, before = next(found), peak()\n"
        "print(1 + sum(1 for _ in found), peak() / before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    count, growth = run.stdout.split()
    assert int(count) == 200_000
    assert float(growth) < 1.3  # of some 20 MB
    assert path.stat().st_size > 19_000_000


def test_a_long_parquet_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    # One group of rows, as long as the file
    path.write_bytes(as_parquet({"url": [f"https://h/{os.urandom(32).hex()}" for _ in range(200_000)]}))
    code = (
        "import pyarrow\nfrom pixmatcher.sources import open_source\n"
        f"print(sum(1 for _ in open_source('urls:{path}').scan()), pyarrow.default_memory_pool().max_memory())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    count, most = map(int, run.stdout.split())
    assert count == 200_000
    assert most < 8 << 20
    assert path.stat().st_size > 10_000_000


def test_an_endless_line_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"https://h/a\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\nhttps://h/b\n")
    source = open_source(f"urls:{path}")
    tracemalloc.start()
    try:
        entries, unusable = scan(source)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert [entry.uri for entry in entries] == ["https://h/a", "https://h/b"]
    assert problems(unusable) == [("2", "too long")]


def test_the_command_sources_shows_examples_that_a_shell_accepts() -> None:
    shown = cli("sources").stdout
    # The examples can be copied into a shell, for which ? and & are special characters. A long one has several lines.
    lines = [line for line in shown.replace("\\\n", "").splitlines() if line.startswith("    pixmatcher index")]
    examples = [shlex.split(line, comments=True) for line in lines]
    assert all(re.fullmatch(r"[^?&{}*]*", re.sub("'[^']*'", "", line)) for line in lines)
    assert ["pixmatcher", "index", "urls:photos.csv?url=link&caption=title", "-c", "photos"] in examples
    assert "urls:" in shown
    assert "open-images:" in shown
