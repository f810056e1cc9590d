"""Find out in which encoding text was saved that is neither UTF-8 nor marked: as Excel saves "CSV", for example.

Excel saves in the code page of the system: cp1252 in western Europe, others elsewhere. Each candidate is judged by how
unlikely the decoded text is: letters that no single language has together, capital letters after small ones, symbols
and mixed scripts inside words, and rare Chinese, Japanese and Korean characters. A list has few such letters, so the
encoding that is most likely beforehand, cp1252, is taken unless another is clearly better.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

MOST_SAMPLED = 1 << 13
"""The bytes that are looked at, at most."""
_NAMES = {"mac_roman": "Mac Roman", "cp932": "Shift JIS (cp932)", "gb18030": "GB18030", "big5": "Big5"}
_WEST = (
    "\u00e0\u00e2\u00e6\u00e7\u00e9\u00e8\u00ea\u00eb\u00ee\u00ef\u00f4\u0153\u00f9\u00fb\u00fc\u00ff",  # French
    "\u00e4\u00f6\u00fc\u00df\u00e9",  # German
    "\u00e1\u00e9\u00ed\u00f3\u00fa\u00fc\u00f1",  # Spanish
    "\u00e1\u00e2\u00e3\u00e0\u00e7\u00e9\u00ea\u00ed\u00f3\u00f4\u00f5\u00fa",  # Portuguese
    "\u00e0\u00e8\u00e9\u00ec\u00f2\u00f3\u00f9",  # Italian
    "\u00e0\u00e8\u00e9\u00ed\u00ef\u00f2\u00f3\u00fa\u00fc\u00e7",  # Catalan
    "\u00e6\u00f8\u00e5\u00e9",  # Danish, Norwegian
    "\u00e5\u00e4\u00f6\u00e9",  # Swedish, Finnish
    "\u00e1\u00e9\u00ed\u00f3\u00fa\u00fd\u00fe\u00e6\u00f0\u00f6",  # Icelandic
)
_LANGUAGES: dict[str, tuple[str, ...]] = {
    "cp1252": _WEST,
    "cp1250": (
        "\u0105\u0107\u0119\u0142\u0144\u00f3\u015b\u017a\u017c",  # Polish
        "\u00e1\u010d\u010f\u00e9\u011b\u00ed\u0148\u00f3\u0159\u0161\u0165\u00fa\u016f\u00fd\u017e",  # Czech
        "\u00e1\u00e4\u010d\u010f\u00e9\u00ed\u013a\u013e\u0148\u00f3\u00f4\u0155\u0161\u0165\u00fa\u00fd"
        "\u017e",  # Slovak
        "\u00e1\u00e9\u00ed\u00f3\u00f6\u0151\u00fa\u00fc\u0171",  # Hungarian
        "\u0103\u00e2\u00ee\u015f\u0163",  # Romanian
        "\u010d\u0107\u0111\u0161\u017e",  # Croatian, Slovene
    ),
    "cp1251": (
        "\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b\u043a\u043c\u0434\u043f\u0443\u044f"
        "\u044b\u044c"
        "\u0433\u0437\u0431\u0447\u0439\u0445\u0436\u0448\u044e\u0446\u0449\u044d\u0444\u0451",  # Russian
        "\u043e\u0430\u0438\u043d\u0432\u0442\u0435\u0440\u0456\u0441\u043a\u043b\u0443\u0434\u043c\u043f"
        "\u044f\u0437"
        "\u044c\u0431\u0433\u0447\u0439\u0445\u0436\u0448\u044e\u0446\u0449\u0454\u0457\u0444\u0491",  # Ukrainian
        "\u0430\u0435\u0438\u043e\u043d\u0442\u0440\u0441\u0432\u043b\u0434\u043a\u043f\u043c\u0437\u0433"
        "\u044a\u0443"
        "\u0431\u0447\u044f\u0436\u0446\u0439\u0445\u0449\u0448\u0444\u044e\u044c",  # Bulgarian
    ),
    "cp1253": (
        "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8\u03b9\u03ba\u03bb\u03bc\u03bd\u03be\u03bf\u03c0"
        "\u03c1\u03c3"
        "\u03c2\u03c4\u03c5\u03c6\u03c7\u03c8\u03c9\u03ac\u03ad\u03ae\u03af\u03cc\u03cd\u03ce",
    ),
    "cp1254": ("\u00e7\u011f\u0131\u00f6\u015f\u00fc\u00e2\u00ee\u00fb",),
    "cp1255": (
        "\u05d0\u05d1\u05d2\u05d3\u05d4\u05d5\u05d6\u05d7\u05d8\u05d9\u05da\u05db\u05dc\u05dd\u05de\u05df"
        "\u05e0"
        "\u05e1\u05e2\u05e3\u05e4\u05e5\u05e6\u05e7\u05e8\u05e9\u05ea",
    ),
    "cp1256": (
        "\u0627\u0628\u062a\u062b\u062c\u062d\u062e\u062f\u0630\u0631\u0632\u0633\u0634\u0635\u0636\u0637"
        "\u0638"
        "\u0639\u063a\u0641\u0642\u0643\u0644\u0645\u0646\u0647\u0648\u064a\u0629\u0649\u0621\u0623\u0625"
        "\u0622"
        "\u0624\u0626\u067e\u0686\u06af",
    ),
    "cp1257": (
        "\u0101\u010d\u0113\u0123\u012b\u0137\u013c\u0146\u0161\u016b\u017e",  # Latvian
        "\u0105\u010d\u0119\u0117\u012f\u0161\u0173\u016b\u017e",  # Lithuanian
        "\u00e4\u00f6\u00f5\u00fc\u0161\u017e",  # Estonian
    ),
    "mac_roman": _WEST,
    "cp850": _WEST,
}
_COMMON_LEADS = {"gb18030": range(0xB0, 0xD8), "big5": range(0xA4, 0xC7), "cp949": range(0xB0, 0xC9)}
"""The first bytes of the characters that are in daily use; in Shift JIS they are more complicated."""
_FREQUENT = {
    "gb18030": "\u7684\u4e00\u662f\u4e0d\u4e86\u4eba\u5728\u6709\u4e2a\u4e0a\u4e2d\u5927\u5c0f\u548c\u56fd\u5730"
    "\u91cc\u4e0b\u8857"
    "\u8f66\u72d7\u732b\u6d77\u5c71\u6c34\u82b1\u5973\u7537\u5b50\u5b69\u7ea2\u767d\u9ed1\u8272\u5929"
    "\u8fb9\u7740\u9762\u4f4d\u53ea",
    "big5": "\u7684\u4e00\u662f\u4e0d\u4e86\u4eba\u5728\u6709\u500b\u4e0a\u4e2d\u5927\u5c0f\u548c\u570b\u5730"
    "\u88e1\u4e0b\u8857"
    "\u8eca\u72d7\u8c93\u6d77\u5c71\u6c34\u82b1\u5973\u7537\u5b50\u5b69\u7d05\u767d\u9ed1\u8272\u5929"
    "\u908a\u8457\u9762\u4f4d\u96bb",
    "cp949": "\uc774\uc758\ub294\uc5d0\uac00\uace0\ub2e4\uc744\ub97c\uc740\ub85c\ud55c\uc9c0\uc11c\ud558\uae30"
    "\uc0ac\ub9ac\uc790\ub3c4"
    "\uc778\uc2a4\uc544\uc77c\ub098\ub77c\uc704\uac1c\uc591\uc794\uc218\ub300\uc2dc\uac70\uc6b8\ud574"
    "\uc5b4\uadf8\uc815\ubcf4",
    "cp932": "\u306e\u306b\u306f\u3092\u305f\u304c\u3067\u3066\u3068\u3057\u308c\u3055\u3044\u308b\u306a\u3082"
    "\u304b\u3089\u3053\u3093",
}
"""The most frequent characters, in sentences as in captions."""
_CANDIDATES = (*_LANGUAGES, "cp932", *_COMMON_LEADS)
_MARGIN = 0.6
"""Another encoding than cp1252 must be so much better: its cost at most this share of the cost of cp1252."""
_LEAST_COST = 2.0
"""A lower cost of cp1252 is no reason for another encoding."""
_USUAL_SYMBOLS = frozenset(
    "\u00a0\u00a1\u00a3\u00a7\u00a9\u00aa\u00ab\u00ad\u00ae\u00b0\u00b2\u00b3\u00b4\u00b5\u00b7\u00ba"
    "\u00bb\u00bc\u00bd\u00be"
    "\u00bf\u00d7\u2013\u2014\u2018\u2019\u201a\u201c\u201d\u201e\u2022\u2026\u2039\u203a\u20ac\u2116\u2122"
)
_JOINERS = frozenset("\u2019\u2018\u00b7\u00ad\u00a0\u00aa\u00ba")
"""Symbols that may be between two letters without a space."""
_WORD = re.compile(r"[^\W\d_]+")
_SYMBOL = re.compile(r"(?<=(.))([^\w\s\x00-\x7f])(?=(.))")
_ALONE = re.compile(r"[a-z][^\x00-\u024f](?:[a-z]|$)", re.IGNORECASE)
_NO_VOWEL = re.compile(r"[^\u0430\u0435\u0451\u0438\u043e\u0443\u044a\u044b\u044d\u044e\u044f\u0456\u0457\u0454]{4,}")
_RARE_CYRILLIC = re.compile("[\u044a\u0449\u044d\u0444\u0451]")
_FINAL_INSIDE = re.compile("[\u05da\u05dd\u05df\u05e3\u05e5\u03c2](?=[^\\W\\d_])|[\u05db\u05de\u05e0\u05e6\u03c3]\\b")
_RUN = re.compile(rb"[\x80-\xff][\x30-\xff]*")


def find_encoding(lines: Iterable[bytes]) -> str:
    """Return the Python name of the encoding in which lines that are not UTF-8 were probably saved."""
    sample = bytearray()
    for line in lines:
        if len(sample) >= MOST_SAMPLED:
            break
        sample += line[:MOST_SAMPLED] + b"\n"
    costs = {name: _cost(bytes(sample), name) for name in _CANDIDATES}
    best = min(costs, key=lambda name: costs[name])
    usual = costs["cp1252"]
    return best if usual >= _LEAST_COST and costs[best] < _MARGIN * usual else "cp1252"


def encoding_name(encoding: str) -> str:
    """Return the name of an encoding as people know it."""
    return _NAMES.get(encoding, encoding)


def _cost(sample: bytes, encoding: str) -> float:
    """Return how unlikely it is that the sample is in an encoding: about the number of strange characters."""
    text = sample.decode(encoding, "replace")
    # A stray byte in text of one byte a character is more likely than one that breaks characters of two.
    cost = (1.5 if encoding in _LANGUAGES else 4.0) * text.count("\ufffd") + _symbol_cost(text)
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    if encoding in _LANGUAGES:
        return cost + _alphabet_cost(words, _LANGUAGES[encoding])
    alone = sum(_ALONE.search(word) is not None for word in words)
    return cost + 2.0 * alone + _rare_cost(sample, encoding)


def _symbol_cost(text: str) -> float:
    """Return the cost of characters that are no letters: unusual ones, and those inside words."""
    cost = 0.0
    for character in text:
        if character > "~" and not character.isalnum() and character not in _USUAL_SYMBOLS and character != "\ufffd":
            cost += 4.0 if unicodedata.category(character) in ("Cc", "Co", "Cn") else 1.0
    for before, symbol, after in _SYMBOL.findall(text):
        if symbol in _JOINERS or "\u3000" <= symbol <= "\uffee":
            continue
        if before.isalpha() and after.isalpha():
            cost += 1.0 if symbol in "\u2013\u2014" else 3.0
        elif max(before, after) > "~" and (before + after).strip("\u00a0 ")[:1].isalpha():
            cost += 1.0
    return cost


def _alphabet_cost(words: Sequence[str], languages: Sequence[str]) -> float:
    """Return the cost of words in an alphabetic script, for the language that suits best."""
    cost = 0.0
    for word in words:
        cost += 2.0 * sum(a.islower() and b.isupper() for a, b in pairwise(word))
        cost += 2.0 * len(_FINAL_INSIDE.findall(word))
        # No word consists mainly of accented Latin letters; other scripts do not mix with Latin.
        latin = [character < "\u0250" for character in word]
        if all(latin):
            cost += max(0, sum(character > "\x7f" for character in word) - (len(word) + 1) // 2)
        elif any(latin):
            cost += 3.0
        elif "\u0400" <= word[0] < "\u0500":
            lower = word.lower()
            cost += 2.0 * len(_NO_VOWEL.findall(lower)) + 0.5 * len(_RARE_CYRILLIC.findall(lower))
    letters = "".join(words).replace("\u0130", "i").lower()
    return cost + min(
        sum(character > "\x7f" and character not in language for character in letters) for language in languages
    )


def _rare_cost(sample: bytes, encoding: str) -> float:
    """Return the cost of Chinese, Japanese or Korean characters: higher, the less they are in daily use."""
    cost = 0.0
    for run in _RUN.findall(sample):
        for character in run.decode(encoding, "ignore"):
            code = character.encode(encoding)
            if len(code) > 2:
                cost += 3.0
            elif code[0] > 0x7F and character not in _FREQUENT[encoding]:
                cost += 0.25 if _is_common(code, encoding) else 1.0
    return cost


def _is_common(code: bytes, encoding: str) -> bool:
    """Return whether a character of one or two bytes is in daily use."""
    if len(code) == 1:  # katakana of half width
        return False
    if encoding == "cp932":
        return code[0] in range(0x88, 0x98) or code[0] in (0x82, 0x83) or code == b"\x81\x5b"
    punctuation = {"gb18030": (0xA1, 0xA3), "big5": (0xA1,), "cp949": (0xA1, 0xA3)}[encoding]
    return code[0] in _COMMON_LEADS[encoding] or code[0] in punctuation
