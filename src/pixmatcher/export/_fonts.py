"""Fonts that have the glyphs of a text: the one that comes with Pillow, or else fonts of the system.

On Linux, fontconfig knows the fonts; without it, and on macOS and Windows, the usual folders are searched.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

_log = logging.getLogger("pixmatcher.export")

_BITMAP_SIZES = (109, 160, 136, 128, 96, 64, 32)
"""The sizes that fonts of coloured bitmaps have: Noto Color Emoji only 109, Apple Color Emoji up to 160."""
_MATCH_SECONDS = 5.0
_MOST_MATCHES = 100
"""The characters for which fontconfig is asked in one process; names in more scripts than that are escaped."""
_FOLDERS = (
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
    "~/AppData/Local/Microsoft/Windows/Fonts",
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
)
_MOST_FILES = 3000
"""The font files that are listed without fontconfig, at most."""
_PREFERRED = re.compile(
    r"(?P<emoji>emoji|seguiemj)|arial ?uni|segoeui\.|dejavusans\.|notosans-regular|geezapro|arialhb|pingfang|hiragino|"
    r"msyh|yugoth|malgun|applesdgothic|nirmala|notosanscjk-regular|notosans\w*-regular|tahoma\.|leelawui\.",
    re.IGNORECASE,
)
"""The names of fonts that have many characters or those of one script, as the systems have them."""
_NOT_SHOWN = frozenset("\u200c\u200d\ufe0e\ufe0f") | frozenset(map(chr, range(0xE0020, 0xE0080)))
"""Characters that change others and have no glyph of their own."""


@dataclass(frozen=True)
class Face:
    """A font at one size, in pixels. A font of bitmaps has another size of its own, and is drawn smaller."""

    font: ImageFont.FreeTypeFont
    size: int
    own_size: int

    @property
    def scale(self) -> float:
        return self.size / self.own_size


def face_for(text: str, size: int, *, is_emoji: bool = False) -> Face | None:
    """Return a font of this size that has glyphs for all characters of a text; None if there is none.

    For emoji, a font with coloured glyphs is preferred.
    """
    needed = "".join(sorted({character for character in text if character not in _NOT_SHOWN}))
    return _face_for(needed, size, is_emoji) if needed else bundled_face(size)


@functools.cache
def bundled_face(size: int) -> Face:
    """Return the font that comes with Pillow."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType
    return Face(font, size, size)


@functools.lru_cache(maxsize=10_000)
def _face_for(characters: str, size: int, is_emoji: bool) -> Face | None:
    known = [] if is_emoji else [bundled_face(size)]
    known += [face for place in _used_files(is_emoji) if (face := _open_face(*place, size)) is not None]
    for face in known:
        if _has_glyphs(face, characters):
            return face
    for place in _candidates(characters, is_emoji):
        found = _open_face(*place, size)
        if found is not None and _has_glyphs(found, characters):
            _used_files(is_emoji).setdefault(place)
            return found
    return _face_for(characters, size, False) if is_emoji else None


@functools.cache
def _used_files(is_emoji: bool) -> dict[tuple[str, int], None]:
    """Return the files, with the number of the font in each, where characters are looked up first: those in use."""
    return {}


def _has_glyphs(face: Face, characters: str) -> bool:
    return all(_has_glyph(face, character) for character in characters)


@functools.lru_cache(maxsize=100_000)
def _has_glyph(face: Face, character: str) -> bool:
    """Return whether a font has a glyph for a character: one that is neither empty nor the box for missing ones."""
    if character.isspace():
        return True
    try:
        mask, missing = (_unshaped(face).getmask(each, "L") for each in (character, "\U0010ffff"))
    except (OSError, ValueError):
        return False
    return mask.getbbox() is not None and (mask.size, bytes(mask)) != (missing.size, bytes(missing))


@functools.lru_cache(maxsize=200)
def _unshaped(face: Face) -> ImageFont.FreeTypeFont:
    """Return the font without shaping, which adds a circle to a mark that stands alone."""
    from PIL import ImageFont

    return face.font.font_variant(layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=200)
def _open_face(path: str, number: int, size: int) -> Face | None:
    """Return a font of a file, or None if it cannot be used."""
    from PIL import ImageFont

    for own_size in (size, *_BITMAP_SIZES):
        try:
            return Face(ImageFont.truetype(path, own_size, number), size, own_size)
        except (OSError, ValueError):  # a font of bitmaps has other sizes
            continue
    return None


def _candidates(characters: str, is_emoji: bool) -> Iterator[tuple[str, int]]:
    """Yield files of fonts, with the number of the font in each, that may have the characters; the best first."""
    program = shutil.which("fc-match")
    if program is None:
        yield from _listed_files(is_emoji)
        return
    code = max(map(ord, characters))
    for pattern in ([f"emoji:charset={code:x}"] if is_emoji else []) + [f"sans:charset={code:x}"]:
        yield from _matches(program, pattern)


@functools.cache
def _matches(program: str, pattern: str) -> tuple[tuple[str, int], ...]:
    """Return what fontconfig finds for a pattern; nothing if it fails or was asked too often."""
    if _matches.cache_info().misses > _MOST_MATCHES:
        return ()
    try:
        done = subprocess.run(
            [program, "-f", "%{file}\n%{index}\n", pattern],
            capture_output=True,
            timeout=_MATCH_SECONDS,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        file, number, *_ = os.fsdecode(done.stdout).split("\n")
        return ((file, int(number) & 0xFFFF),)  # the upper bits are the instance of a variable font
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.info("fontconfig cannot be asked for %s: %s", pattern, error)
        return ()


@functools.cache
def _listed_files(is_emoji: bool) -> tuple[tuple[str, int], ...]:
    """Return the fonts of the usual folders whose names say that they have many characters, or emoji."""
    found: list[tuple[bool, str]] = []
    listed = 0
    for folder in map(os.path.expanduser, _FOLDERS):
        for inner, _, names in os.walk(folder):
            listed += len(names)
            for name in names:
                preferred = _PREFERRED.search(name) if name.lower().endswith((".ttf", ".ttc", ".otf")) else None
                if preferred is not None:
                    found.append((bool(preferred["emoji"]) != is_emoji, os.path.join(inner, name)))
            if listed > _MOST_FILES:
                break
    return tuple((path, 0) for _, path in sorted(found))
