"""Why an image cannot be decoded, in words: the reason and the detail for what Pillow and its libraries raised.

Their texts are made for programmers: codes ("decoder error -2"), numbers alone (of a tag that is missing), parts of the
file. A text that is not known here is quoted only if it consists of words.
"""

from __future__ import annotations

import re

CUT_OFF = "the file is cut off before the end of the image"
"""The detail where the end of a file is missing."""

_TOO_LITTLE_MEMORY = re.compile("out of memory|memory allocation error(?!.*limit)|error -9", re.I)
_CUT_OFF = re.compile(
    "truncated|not enough|insufficient|reached eof|requires a buffer|expected to read|end of file|no compressed data",
    re.I,
)
_UNSUPPORTED = re.compile(
    "unsupported|unimplemented|unknown (pixel|PCX|TGA) mode|not available|not installed|not (yet )?supported"
    "|not implemented|cannot handle|no decoder|unable to determine",
    re.I,
)

_DETAILS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            "broken data stream|decod(er|ing) error|unrecognized data stream|error -?[0-9]+|buffer overrun"
            "|unknown error|bad configuration|while decompressing|codec configuration|decode (frame|image)"
            "|next frame|decoding of (color|alpha)|decoder plugin|cannot decode|decompress",
            re.I,
        ),
        "the compressed data is damaged",
    ),
    (re.compile("checksum", re.I), "a checksum does not fit the data"),
    (re.compile("palette", re.I), "its palette is damaged"),
    (re.compile("quantization", re.I), "its quantization table is damaged"),
    (re.compile("tile|extend outside|buffer is not large", re.I), "its size and its data do not fit together"),
    (re.compile("token|channel value|invalid literal", re.I), "it has something else where a number must be"),
    (
        re.compile("no more images|image not found|cannot (load|parse|find|create)|could not create"),
        "it has no picture",
    ),
    (
        re.compile(
            "not (identified|an? |a valid)|organization|header|marker|missing dimensions|invalid|malformed"
            "|samples per pixel|box|chunk|index|codec can't|filter category|unpack|must be",
            re.I,
        ),
        "its headers are damaged",
    ),
)
"""The details for texts that match; the first one counts."""

_QUOTED_WORDS = re.compile(r"[A-Za-z][A-Za-z ,.:;'()-]*( [A-Za-z0-9 ,.:;'()x-]+)+")
_MOST_QUOTED = 120


def reason_of(error: Exception, format_name: str, *, cut_off: bool) -> tuple[str, str]:
    """Return the reason and the detail of what a decoder raised; `cut_off` says that the end of the file is missing.

    `format_name` is "" for an image that is not in a file.
    """
    from PIL.Image import DecompressionBombError

    text = error.args[0] if error.args else ""
    text = " ".join((text.decode("ascii", "replace") if isinstance(text, bytes) else str(error)).split())
    of_library = isinstance(error, (OSError, SyntaxError, ValueError, RuntimeError))
    if isinstance(error, DecompressionBombError):
        return "too many pixels", "more than Pillow allows for this format"
    if isinstance(error, MemoryError) or _TOO_LITTLE_MEMORY.search(text):
        return "out of memory", "there is not enough memory to decode it"
    if cut_off or _CUT_OFF.search(text):
        return "truncated", CUT_OFF
    if of_library and _UNSUPPORTED.search(text) and not text.startswith("Invalid input"):
        return "unsupported format", _quoted(text, format_name, "it is of a kind that is not supported")
    if "security limit" in text.lower():
        return "damaged", "it needs more memory than an image of its kind should"
    for pattern, detail in _DETAILS:
        if pattern.search(text):
            return "damaged", detail
    return "damaged", _quoted(text if of_library else "", format_name, "the values in it do not fit together")


def _quoted(text: str, format_name: str, otherwise: str) -> str:
    """Return a text of a library in a sentence if it consists of words, or else `otherwise`."""
    if len(text) > _MOST_QUOTED or not _QUOTED_WORDS.fullmatch(text):
        return otherwise
    return f"the {format_name} decoder reports: {text}" if format_name else f"Pillow reports: {text}"
