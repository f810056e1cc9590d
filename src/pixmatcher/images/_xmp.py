"""XMP: orientation and date of a photo in the XML that photo editors write (ISO 16684-1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.parsers import expat

from ._dates import iso_date
from ._limits import MAX_METADATA_BYTES

_MAX_VALUE = 64
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMESPACES = {
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
}
_ORIENTATION = "tiff:Orientation"
_DATES = (
    "exif:DateTimeOriginal",
    "photoshop:DateCreated",
    "exif:DateTimeDigitized",
    "xmp:CreateDate",
    "tiff:DateTime",
)
"""The properties that say when a photo was taken, the first that counts first."""
_NAMES = {f"{_NAMESPACES[p.partition(':')[0]]} {p.partition(':')[2]}": p for p in (_ORIENTATION, *_DATES)}
_USUAL_NAMES = "|".join((_ORIENTATION, *_DATES))
_TEXTUAL = re.compile(
    rf"<(?P<element>{_USUAL_NAMES})(?:\s[^<>]{{0,200}})?>\s{{0,20}}(?P<text>[^<>]{{1,64}})<"
    rf"|[\s\"'](?P<attribute>{_USUAL_NAMES})\s{{0,20}}=\s{{0,20}}[\"'](?P<value>[^\"'<>]{{1,64}})[\"']"
)


@dataclass(frozen=True)
class XmpValues:
    """What an XMP packet says, as far as it is valid."""

    orientation: int | None = None
    """1 to 8."""
    taken: str | None = None
    """ISO 8601."""


def read_xmp(packet: bytes) -> XmpValues:
    """Return what an XMP packet says. What is damaged is left out; no error is raised.

    Only properties of the image itself count, not those of the images that it was made from. Entities are refused. The
    time is proportional to the length.
    """
    text = _decoded(packet[:MAX_METADATA_BYTES])
    found = _Parser().properties(text)
    if found is None:  # not the structure of XMP: take what looks like a property
        found = {}
        for match in _TEXTUAL.finditer(re.sub(r"<!--.*?(?:-->|\Z)", "", text, flags=re.S)):
            found.setdefault(match["element"] or match["attribute"], match["text"] or match["value"])
    orientation = found.get(_ORIENTATION, "").strip()
    dates = (iso_date(found.get(name, ""), partial=True) for name in _DATES)
    return XmpValues(
        int(orientation) if re.fullmatch("[1-8]", orientation) else None,
        next((date for date in dates if date is not None), None),
    )


def _decoded(packet: bytes) -> str:
    """Return the text of a packet in UTF-8, UTF-16 or UTF-32, from its first "<" on."""
    start = packet[:4]
    if start.startswith((b"\xff\xfe\0\0", b"<\0\0\0")):
        encoding = "utf-32-le"
    elif start.startswith((b"\0\0\xfe\xff", b"\0\0\0<")):
        encoding = "utf-32-be"
    elif start.startswith((b"\xff\xfe", b"<\0")):
        encoding = "utf-16-le"
    elif start.startswith((b"\xfe\xff", b"\0<")):
        encoding = "utf-16-be"
    else:
        encoding = "utf-8"
    text = packet.decode(encoding, "replace")
    return text[max(text.find("<"), 0) :].rstrip(" \t\r\n\0")


class _RefusedError(Exception):
    """The XML has a document type, which XMP never has: it could define entities."""


class _Parser:
    """Collects the properties of the image: children, and attributes, of the nodes within `rdf:RDF`."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._depth = 0
        self._rdf = 0
        """The depth of the first `rdf:RDF`, or 0."""
        self._property = ""
        self._text: list[str] = []

    def properties(self, text: str) -> dict[str, str] | None:
        """Return the values of the properties by their usual names; None if the text is no XMP or is damaged.

        Raises nothing.
        """
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        parser.StartDoctypeDeclHandler = self._refuse
        try:
            parser.Parse(text, True)  # a declared encoding does not count
        except _RefusedError:
            return {}
        except expat.ExpatError:
            if not self._found:
                return None
        return self._found if self._rdf else None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if not self._rdf:
            self._rdf = self._depth if name == f"{_RDF} RDF" else 0
        elif self._depth == self._rdf + 1:
            for attribute, value in attributes.items():
                self._keep(attribute, value)
        elif self._depth == self._rdf + 2:
            self._property, self._text = name, []

    def _end(self, name: str) -> None:
        if self._property and self._depth == self._rdf + 2:
            self._keep(self._property, "".join(self._text))
            self._property = ""
        self._depth -= 1

    def _data(self, text: str) -> None:
        if self._property and len(self._text) < _MAX_VALUE:
            self._text.append(text[:_MAX_VALUE])

    def _keep(self, name: str, value: str) -> None:
        if name in _NAMES:
            self._found.setdefault(_NAMES[name], value.strip()[:_MAX_VALUE])

    def _refuse(self, *_: object) -> None:
        raise _RefusedError
