"""Text files and tables, read line by line: valid rows are returned, and invalid ones are reported.

Lines may end with LF, CR LF or CR. They are UTF-8, UTF-16 or UTF-32 (with a byte order mark, UTF-16 also without).
Lines that are not UTF-8 are in another encoding, which is found out (`_encodings.py`) and noted. The file may be
compressed with gzip. Memory is bounded by `MAX_LINE`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import logging
import os
import re
import zlib
from collections import deque
from collections.abc import Container, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from ..errors import SourceError
from ._encodings import MOST_SAMPLED, encoding_name, find_encoding
from .protocol import Unusable

_log = logging.getLogger("pixmatcher.sources")

MAX_LINE = 131_072
"""Longest line, and longest row over several lines, in characters: as long as Python's csv module takes a field."""
_MAX_LINES = 100
"""Most lines of one row inside quotes. The search for a closing quote ends there."""
_BLOCK = 1 << 18
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # first, because it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD = 64
"""The bytes at the beginning of a file by which its format is recognised."""
_SPREADSHEET = "is a spreadsheet, not a text file: save it there as CSV UTF-8"
_OTHER_FORMATS = (
    (b"PK\x03\x04", "is a spreadsheet or a zip file: save the table as CSV UTF-8, or unpack the zip file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _SPREADSHEET),
    (b"PAR1", "is a Parquet file: rename it to end with .parquet"),
    (b"%PDF-", "is a PDF file: save the list as text"),
    (b"BZh", "is compressed with bzip2: decompress it, or compress it with gzip"),
    (b"\xfd7zXZ\0", "is compressed with xz: decompress it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: decompress it, or compress it with gzip"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it"),
    (b"\x89PNG\r\n", "is an image: give its folder without urls:"),
    (b"\xff\xd8\xff", "is an image: give its folder without urls:"),
)
"""The first bytes of formats that are not text, and what to do."""
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?[,;|\t ]*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')
_DAMAGE_ERRORS = (OSError, EOFError, zlib.error)
_SURROGATE = re.compile("[\udc80-\udcff]")
_URL_FIELD = re.compile(r'\s*"?https?://\S+\s*')

Line: TypeAlias = "tuple[int, str] | Unusable"
"""The number of a line, from 1, and its text without the line end; or what is wrong with it."""
Row: TypeAlias = "tuple[int, list[str]] | Unusable"
"""The number of the first line of a row, and its fields; or what is wrong with it."""


def plain_name(name: str) -> str:
    """Return the name of a column for comparison: "Image_URL", "image url" and "imageURL" are equal."""
    return re.sub(r"[\s_\ufeff-]+", "", name).casefold()


@contextmanager
def open_list(path: str) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, and decompress it if it is a gzip file. Raises `SourceError` if that fails."""
    with ExitStack() as stack:
        try:
            if not os.path.isfile(path):
                what = "is not a regular file" if os.path.lexists(path) else "does not exist"
                raise SourceError(f"{path} {what}: name a file.")
            file: io.BufferedIOBase = stack.enter_context(open(path, "rb"))
            head = file.read(_HEAD)
            file.seek(0)
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from error
        if not head:
            raise SourceError(f"{path} is empty: copy or download it again.")
        if head.startswith(b"\x1f\x8b"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield file


def read_lines(path: str, notes: list[str] | None = None) -> Iterator[Line]:
    """Yield the lines of a text file.

    Yield `Unusable` for lines that are too long, contain a NUL byte or are not in the encoding of the file, and for
    damage after which no line can be read. If there are lines that are not UTF-8, a sentence that names their encoding
    is appended to `notes`; bytes that are not in that encoding become lone surrogates. Raises `SourceError` if the file
    cannot be opened or is not text.
    """
    number = 0
    rest = b""
    encoding = ""
    """The encoding of the lines that are not UTF-8; empty until there is one."""
    with open_list(path) as file:
        head, damage = _first_block(file)
        check_is_text(path, head)
        marked = _marked_encoding(head)
        blocks = _blocks(file, head, damage, marked)
        while True:
            try:
                block = next(blocks, b"")
            except _DAMAGE_ERRORS as error:
                yield Unusable(path, "damaged", f"after line {number:,}: {error}", contents_unknown=True)
                return
            data = rest + block
            end = _end_of_lines(data) if block else len(data)
            # If a line does not end, only enough of it is kept to report that it is too long.
            rest = data[end : end + 4 * MAX_LINE + 1]
            if end:
                lines, good = _split_lines(data[:end])
                if good:
                    yield from enumerate(lines, number + 1)
                else:
                    if not encoding and marked is None and (sample := _not_utf8(lines)):
                        encoding = find_encoding(sample)
                        _note_encoding(path, encoding, notes)
                    for position, line in enumerate(lines, number + 1):
                        text = _decoded(line, encoding)
                        fault = _problem_of(text)
                        yield Unusable(f"{path}:{position}", *fault) if fault else (position, text)
                number += len(lines)
            if not block:
                return


def _first_block(file: io.BufferedIOBase) -> tuple[bytes, Exception | None]:
    """Return the beginning of a file, by which its format is recognised, and the error that ends it, if any."""
    # Before damage, read1 returns what can still be decompressed, and read does not.
    block = b""
    try:
        block = file.read1(_BLOCK)
        while len(block) < _HEAD and (more := file.read1(_BLOCK)):
            block += more
    except _DAMAGE_ERRORS as error:
        return block, error
    return block, None


def _marked_encoding(head: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if the beginning of a file shows that it has this encoding, otherwise None."""
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked is None and len(head) >= 8:
        # Without a mark: the text of a list is mostly ASCII, so every second byte is zero.
        low, high = head[:_HEAD:2], head[1:_HEAD:2]
        if 0 not in low and high.count(0) > 0.8 * len(high):
            return "utf-16-le"
        if 0 not in high and low.count(0) > 0.8 * len(low):
            return "utf-16-be"
    return marked


def check_is_text(path: str, head: bytes) -> None:
    """Raise `SourceError`, which says what to do, if a list begins with the bytes of another format."""
    for mark, problem in _OTHER_FORMATS:
        if head.startswith(mark):
            raise SourceError(f"{path} {problem}.")
    if head[:_HEAD].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise SourceError(f"{path} is a web page: download the list itself.")


def _blocks(file: io.BufferedIOBase, head: bytes, error: Exception | None, marked: str | None) -> Iterator[bytes]:
    """Yield the content in UTF-8, without its byte order mark, in blocks; raise `error`, if given, after `head`."""
    decoder = codecs.getincrementaldecoder(marked)("replace") if marked else None
    block = head.removeprefix(codecs.BOM_UTF8)
    while True:
        if decoder is not None:
            # Characters that could not be decoded must not count as text later.
            if text := decoder.decode(block):
                yield text.encode().replace("\ufffd".encode(), b"\xff")
        elif block:
            yield block
        if error is not None:
            raise error
        block = file.read1(_BLOCK)
        if not block:
            if decoder is not None and (text := decoder.decode(b"", final=True)):
                yield text.encode().replace("\ufffd".encode(), b"\xff")
            return


def text_of(path: str, content: bytes, notes: list[str]) -> str:
    """Return the whole content of a text file in UTF-8 or, with a note, in the encoding that it probably has.

    Bytes that are not in that encoding become U+FFFD. For UTF-16 and UTF-32, see `json.detect_encoding`.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        begin = max(0, error.start - 100)
        encoding = find_encoding(content[begin : begin + 4 * MOST_SAMPLED].splitlines())
        _note_encoding(path, encoding, notes)
        return content.decode(encoding, "replace")


def _not_utf8(lines: list[str]) -> list[bytes]:
    """Return the lines that have lone surrogates, as the bytes that they were; lines that are too long cut."""
    return [line[:MAX_LINE].encode(errors="surrogateescape") for line in lines if _has_surrogate(line)]


def _decoded(line: str, encoding: str) -> str:
    """Return a line as text: if it has lone surrogates, in `encoding`, and with U+FFFD for bytes that are not in it."""
    if not encoding or not _has_surrogate(line):
        return line
    return line.encode(errors="surrogateescape").decode(encoding, "replace")


def _has_surrogate(line: str) -> bool:
    return not line.isascii() and _SURROGATE.search(line) is not None


def _note_encoding(path: str, encoding: str, notes: list[str] | None) -> None:
    note = (
        f"{path} is read as {encoding_name(encoding)}, as it is not UTF-8: if characters are wrong, save it as UTF-8."
    )
    _log.info("%s", note)
    if notes is not None and note not in notes:
        notes.append(note)


def _end_of_lines(data: bytes) -> int:
    """Return the end of the last complete line of the data, or 0."""
    end = data.rfind(b"\n") + 1
    # A CR at the very end may be the first half of CR LF.
    return end or data.rfind(b"\r", 0, len(data) - 1) + 1


def _split_lines(data: bytes) -> tuple[list[str], bool]:
    """Return the lines, and whether all are valid; bytes that are not UTF-8 become lone surrogates."""
    try:
        text = data.decode()
        good = "\0" not in text
    except UnicodeDecodeError:
        text = data.decode(errors="surrogateescape")
        good = False
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines, good and max(map(len, lines), default=0) <= MAX_LINE


def _problem_of(line: str) -> tuple[str, str] | None:
    """Return what is wrong with a line, a reason and a detail, or None."""
    if len(line) > MAX_LINE:
        return "too long", f"more than {MAX_LINE:,} characters in a line"
    if "\0" in line:
        return "NUL byte", "is it a text file?"
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return "wrong encoding", f"byte 0x{ord(line[error.start]) - 0xDC00:02X}: save the file as UTF-8"
    return None


def read_rows(
    path: str, delimiter: str | None = None, *, names: Container[str] = (), notes: list[str] | None = None
) -> Iterator[Row]:
    """Yield the rows of a table, its header first; blank lines are skipped.

    Without `delimiter`, it is the one that the first line names as Excel writes it (`sep=;`), or else the most frequent
    one of the header; one that makes a column of `names` (as `plain_name` returns them) has priority.

    A field may be in double quotes, with doubled ones inside (RFC 4180), and may have several lines. If quotes are not
    closed, only the line that opens them is unusable, so that no other row is lost; in a table with tabs, where quotes
    often are text, the line is read as it is. Rows with another number of fields than the first are unusable.
    `notes` is as in `read_lines`. Raises `SourceError` if the file cannot be opened.
    """
    lines = read_lines(path, notes)
    again: deque[Line] = deque()
    width = 0
    while True:
        line = again.popleft() if again else next(lines, None)
        if line is None:
            return
        if isinstance(line, Unusable):
            yield line
            continue
        number, text = line
        if not text or text.isspace():
            continue
        if delimiter is None:
            delimiter = _named_delimiter(text)
            if delimiter is not None:
                continue
            delimiter = _likely_delimiter(text, names)
        if '"' not in text:
            fields = text.split(delimiter)
        else:
            unquoted = _unquoted(text, lines, again, delimiter, width)
            if unquoted is None and delimiter == "\t" and width in (0, text.count("\t") + 1):
                unquoted = text.split("\t")
            if unquoted is None:
                detail = "a quote is not closed, or text follows a closed quote"
                yield Unusable(f"{path}:{number}", "broken quotes", detail)
                continue
            fields = unquoted
        if not width:
            width = len(fields)
        if len(fields) != width:
            yield Unusable(f"{path}:{number}", "wrong number of fields", f"{len(fields)}, the header has {width}")
            continue
        yield number, fields


def _named_delimiter(line: str) -> str | None:
    """Return the delimiter that a first line such as `sep=;` names, or None."""
    named = _SEPARATOR_LINE.fullmatch(line)
    return None if named is None else named[1]


def _likely_delimiter(header: str, names: Container[str]) -> str:
    """Return the delimiter of a header."""
    plain = _QUOTED.sub(lambda quoted: re.sub(r"[,;|\t]", " ", quoted[0]), header)

    def likelihood(delimiter: str) -> tuple[bool, int]:
        fields = plain.split(delimiter) if delimiter in plain else []
        return any(plain_name(field.strip(' "')) in names for field in fields), len(fields)

    return max(_DELIMITERS, key=likelihood)


def _unquoted(text: str, lines: Iterator[Line], again: deque[Line], delimiter: str, width: int) -> list[str] | None:
    """Return the fields of a row that begins with the line `text` and may continue in the next lines.

    None if its quotes are broken; then the lines that were read are put back into `again`.
    """
    taken: list[Line] = []
    try:
        fields = next(csv.reader(_lines_of_row(text, lines, again, taken), delimiter=delimiter, strict=True))
    except csv.Error:
        pass
    else:
        if not taken or not width or (len(fields) == width and not _look_like_rows(text, taken, delimiter, width)):
            return fields
    again.extendleft(reversed(taken))
    return None


def _lines_of_row(text: str, lines: Iterator[Line], again: deque[Line], taken: list[Line]) -> Iterator[str]:
    """Yield a line and, on demand, the next ones, which are appended to `taken`."""
    yield text + "\n"
    length = len(text)
    while len(taken) < _MAX_LINES and length <= MAX_LINE:
        line = again.popleft() if again else next(lines, None)
        if line is None:
            return
        taken.append(line)
        if isinstance(line, Unusable):
            return
        length += len(line[1])
        yield line[1] + "\n"


def _look_like_rows(text: str, taken: list[Line], delimiter: str, width: int) -> bool:
    """Return whether lines have, inside quotes that `text` opens, what looks like rows with a URL.

    Then the opening quote is an error. What follows the closing quote in the last line belongs to the row itself.
    """
    lines = [line[1] for line in taken if isinstance(line, tuple)]
    ends = [(text, text.rpartition('"')[2])] if text.count(delimiter) + 1 == width else []
    ends += [(line, line.partition('"')[0]) for line in lines[-1:]]
    for line, inside in [*ends, *zip(lines[:-1], lines, strict=False)]:
        fields = inside.split(delimiter)
        if len(fields) > 1 and len(line.split(delimiter)) >= width and any(map(_URL_FIELD.fullmatch, fields)):
            return True
    return False


def first_row(rows: Iterator[Row], path: str) -> tuple[int, list[str]]:
    """Return the first row, for a header. Raises `SourceError` if it cannot be read."""
    row = next(rows, None)
    if row is None:
        raise SourceError(f"{path} is empty: copy or download it again.")
    if isinstance(row, Unusable):
        raise SourceError(f"{path} cannot be read: its first line is not valid ({row.reason}: {row.detail}).")
    return row
