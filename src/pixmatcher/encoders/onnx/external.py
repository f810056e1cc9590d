"""Find the files with the weights of an ONNX file, without the library `onnx`.

An ONNX file is one message of Protocol Buffers, which has 2 GB at most. So large weights are in further files, whose
names the ONNX file contains. Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from ..._files import map_file

_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
}
"""The fields of each message that may contain tensors: number -> message."""
_DEEPEST = 100
_LONGEST_NAME = 4096


def external_files(path: Path) -> set[str]:
    """Return the names of the files with the weights of an ONNX file, relative to its folder.

    Raises `ValueError` if it is not an ONNX file, `OSError` if it cannot be read.
    """
    with path.open("rb") as file:
        try:
            content = map_file(file, os.fstat(file.fileno()).st_size)
        except ValueError as error:  # an empty file
            raise ValueError("it is empty") from error
        with contextlib.closing(content) if isinstance(content, mmap.mmap) else contextlib.nullcontext():
            found = set(_locations(content, 0, len(content), "model", 0))
    return found


def _locations(content: mmap.mmap | bytes, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    """Yield the names of external files in the part of a protobuf message from `start` to `end`."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deeply")
    if message == "external_data":
        entry = {number: content[a:b] for number, a, b in _fields(content, start, end) if b - a <= _LONGEST_NAME}
        if entry.get(1) == b"location":
            yield entry.get(2, b"").decode("utf-8")
        return
    for number, a, b in _fields(content, start, end):
        if inner := _INSIDE[message].get(number):
            yield from _locations(content, a, b, inner, depth + 1)


def _fields(content: mmap.mmap | bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, start and end of each field of a message that has a length."""
    while start < end:
        key, start = _varint(content, start, end)
        kind = key & 7
        if kind == 0:
            _, start = _varint(content, start, end)
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        elif kind == 2:
            length, start = _varint(content, start, end)
            if length > end - start:
                raise ValueError("it is cut off")
            yield key >> 3, start, start + length
            start += length
        else:
            raise ValueError("it is not an ONNX file")


def _varint(content: mmap.mmap | bytes, start: int, end: int) -> tuple[int, int]:
    """Return a number and the position after it (https://protobuf.dev/programming-guides/encoding/#varints)."""
    value = 0
    for place in range(start, min(end, start + 10)):
        byte = content[place]
        value |= (byte & 0x7F) << 7 * (place - start)
        if byte < 0x80:
            return value, place + 1
    raise ValueError("it is cut off")
