"""Text files and tables, read line by line: valid rows are returned, and invalid ones are reported.

Lines may end with LF, CR LF or CR. They are UTF-8 or, with a byte order mark, UTF-16 or UTF-32; the file may
be compressed with gzip. Memory is bounded by `MAX_LINE`.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

from ..errors import SourceError
from .protocol import Unusable

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
_URL_FIELD = re.compile(r'\s*"?https?://\S+\s*')

Line: TypeAlias = "tuple[int, str] | Unusable"
"""The number of a line, from 1, and its text without the line end; or what is wrong with it."""
Row: TypeAlias = "tuple[int, list[str]] | Unusable"
"""The number of the first line of a row, and its fields; or what is wrong with it."""


def plain_name(name: str) -> str:
    """Return the name of a column for comparison: "Image_URL", "image url" and "imageURL" are equal."""
    return re.sub(r"[\s_-]+", "", name).casefold()


@contextmanager
def open_list(path: str) -> Iterator[io.BufferedIOBase]:
    """Open a file for reading, and decompress it if it is a gzip file. Raises `SourceError` if that fails."""
    with ExitStack() as stack:
        try:
            if not os.path.isfile(path):
                what = "is not a regular file" if os.path.lexists(path) else "does not exist"
                raise SourceError(f"{path} {what}: name a file.")
            file: io.BufferedIOBase = stack.enter_context(open(path, "rb"))
            head = file.read(2)
            file.seek(0)
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror or error}): check its permissions.") from error
        if not head:
            raise SourceError(f"{path} is empty: copy or download it again.")
        if head == b"\x1f\x8b":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        yield file


def read_lines(path: str) -> Iterator[Line]:
    """Yield the lines of a text file.

    Yield `Unusable` for lines that are too long, contain a NUL byte or are not in the encoding of the file, and for
    damage after which no line can be read. Raises `SourceError` if the file cannot be opened.
    """
    number = 0
    rest = b""
    with open_list(path) as file:
        blocks = _blocks(file)
        while True:
            try:
                block = next(blocks, b"")
            except (OSError, EOFError, zlib.error) as error:
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
                    for position, line in enumerate(lines, number + 1):
                        fault = _problem_of(line)
                        yield Unusable(f"{path}:{position}", *fault) if fault else (position, line)
                number += len(lines)
            if not block:
                return


def _blocks(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield the content in UTF-8, without its byte order mark, in blocks that are not empty."""
    # Before damage, read1 returns what can still be decompressed, and read does not.
    block = file.read1(_BLOCK)
    while len(block) < 4 and (more := file.read1(_BLOCK)):
        block += more
    encoding = next((name for mark, name in _MARKS if block.startswith(mark)), None)
    if encoding is None:
        block = block.removeprefix(codecs.BOM_UTF8) or file.read1(_BLOCK)
        while block:
            yield block
            block = file.read1(_BLOCK)
        return
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while True:
        text = decoder.decode(block, final=not block)
        if text:
            # Characters that could not be decoded must not count as text later.
            yield text.encode().replace("\ufffd".encode(), b"\xff")
        if not block:
            return
        block = file.read1(_BLOCK)


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


def read_rows(path: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table, its header first; blank lines are skipped.

    A field may be in double quotes, with doubled ones inside (RFC 4180), and may have several lines. If quotes are not
    closed, only the line that opens them is unusable, so that no other row is lost; in a table with tabs, where quotes
    often are text, the line is read as it is. Rows with another number of fields than the first are unusable.
    Raises `SourceError` if the file cannot be opened.
    """
    lines = read_lines(path)
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
        if not taken or not width or (len(fields) == width and not _look_like_rows(taken, delimiter, width)):
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


def _look_like_rows(taken: list[Line], delimiter: str, width: int) -> bool:
    """Return whether lines inside quotes look like rows with a URL; then the opening quote is an error."""
    for line in taken:
        fields = line[1].split(delimiter) if isinstance(line, tuple) else []
        if len(fields) >= width and any(map(_URL_FIELD.fullmatch, fields)):
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
