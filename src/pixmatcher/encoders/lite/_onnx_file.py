"""Read the nodes and constants of an ONNX file, as the package `onnx` is not installed.

An ONNX file is a message of Protocol Buffers, as https://github.com/onnx/onnx/blob/main/onnx/onnx.proto describes it.
Only what `visual.onnx` contains is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Constants: TypeAlias = "dict[str, npt.NDArray[Any]]"

# Numbers of the fields in onnx.proto.
_GRAPH = 7
_NODE, _INITIALIZER = 1, 5
_INPUT, _OUTPUT, _OPERATOR, _ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _INTEGER, _INTEGERS = 1, 3, 8
_SHAPE, _TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9
_TYPES: dict[int, Any] = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8"}


@dataclass(frozen=True)
class Node:
    """A node of the graph; the attributes are lists of integers."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, list[int]]


def read_onnx(data: bytes) -> tuple[list[Node], Constants]:
    """Return the nodes, in their order, and the constants by name. Raises `ValueError` if the file is damaged."""
    nodes: list[Node] = []
    constants: Constants = {}
    try:
        for number, graph in _fields(memoryview(data)):
            if number != _GRAPH:
                continue
            for kind, value in _fields(graph):
                if kind == _NODE:
                    nodes.append(_node(value))
                elif kind == _INITIALIZER:
                    name, constant = _constant(value)
                    constants[name] = constant
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"not an ONNX file as expected ({error!r})") from error
    return nodes, constants


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field: an integer, or a part of the message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(key & 7)
        if length is None:
            length, position = _varint(message, position)
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the integer at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _text(value: memoryview) -> str:
    return bytes(value).decode()


def _integers(value: Any) -> list[int]:
    """Return the integers of a repeated field: one, or all of them packed."""
    if isinstance(value, int):
        return [value]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(number)
    return found


def _node(message: memoryview) -> Node:
    inputs, outputs, operator, attributes = [], [], "", {}
    for number, value in _fields(message):
        if number == _INPUT:
            inputs.append(_text(value))
        elif number == _OUTPUT:
            outputs.append(_text(value))
        elif number == _OPERATOR:
            operator = _text(value)
        elif number == _ATTRIBUTE:
            name, integers = "", []
            for part, content in _fields(value):
                if part == _ATTRIBUTE_NAME:
                    name = _text(content)
                elif part in (_INTEGER, _INTEGERS):
                    integers += _integers(content)
            attributes[name] = integers
    return Node(operator, tuple(inputs), tuple(outputs), attributes)


def _constant(message: memoryview) -> tuple[str, npt.NDArray[Any]]:
    shape, kind, name, data = [], 0, "", memoryview(b"")
    for number, value in _fields(message):
        if number == _SHAPE:
            shape += _integers(value)
        elif number == _TYPE:
            kind = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _RAW_DATA:
            data = value
    return name, np.frombuffer(data, _TYPES[kind]).reshape(shape)
