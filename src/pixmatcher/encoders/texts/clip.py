"""CLIP's tokenizer as in open_clip: how it cleans texts, and its vocabulary as a file of the `tokenizers` library.

Sources: `SimpleTokenizer` of open_clip 3.3 and of openai/CLIP. It splits texts by the Unicode tables of the `regex`
library, which are newer than those of `tokenizers`; so these tables are written to the file.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT_LENGTH = 77
PAD_ID = 0
_START, _END = "<start_of_text>", "<end_of_text>"
_LAST_OF_WORD = "</w>"


def clean(text: str) -> str:
    """Clean a text as CLIP does: repair its encoding, resolve HTML entities, lower case, one space between words."""
    # ftfy takes longer to import than embedding a text, and would not change plain texts.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def write_tokenizer(path: Path) -> None:
    """Write the tokenizer of open_clip, which must be installed, as a file of the `tokenizers` library.

    It expects a cleaned text, adds the first and the last id, and neither cuts nor pads.
    """
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe()) as file:
        merges = file.read().decode().split("\n")[1:48895]  # after the line with the version; later merges are not used
    content = json.loads(build_clip_tokenizer(merges).to_str())
    # Without spaces, and with merges as strings, the file loads in half the time.
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def build_clip_tokenizer(merges: Sequence[str]) -> Tokenizer:
    """Return CLIP's tokenizer for its ordered merges ("t h", ...). Needs the `regex` library."""
    from tokenizers import processors

    pairs = [(first, second) for first, second in map(str.split, merges)]
    characters = _byte_characters()
    tokens = [*characters, *(c + _LAST_OF_WORD for c in characters), *map("".join, pairs)]
    ids = {token: at for at, token in enumerate(tokens)}
    special = {_START: len(ids), _END: len(ids) + 1}
    # A special token that is a word of a text becomes one token. It cannot be an added token of the library, which
    # would also be found inside words; so it is merged from its parts. These last merges change no other word, since
    # no other word has both a bracket and a letter.
    plain, unused = _new_tokenizer(ids, pairs), count(len(ids) + 2)
    for word, known in special.items():
        for first, second in _from_the_left(plain.encode(word).tokens):
            pairs.append((first, second))
            ids[first + second] = known if first + second == word + _LAST_OF_WORD else next(unused)
    tokenizer = _new_tokenizer(ids, pairs)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=list(special.items())
    )
    return tokenizer


def _new_tokenizer(ids: dict[str, int], pairs: list[tuple[str, str]]) -> Tokenizer:
    """Return a tokenizer with the vocabulary `ids` and the merges `pairs`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, end_of_word_suffix=_LAST_OF_WORD))
    words = pre_tokenizers.Split(Regex(_words_pattern()), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    return tokenizer


def _from_the_left(parts: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the merges that join parts to one token from left to right."""
    joined = parts[0]
    for part in parts[1:]:
        yield joined, part
        joined += part


def _byte_characters() -> list[str]:
    """Return the characters that represent bytes, in the order of their ids: printable bytes first."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printed), *(chr(0x100 + at) for at in range(256 - len(printed)))]


@cache
def _words_pattern() -> str:
    """Return the regular expression for words of open_clip; only its letter s has a second lower-case form."""
    letters, number, others = (_class(one_of) for one_of in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    return f"<[s\u017f]tart_of_text>|<end_of_text>|'[s\u017f]|'t|'re|'ve|'m|'ll|'d|{letters}+|{number}|{others}+"


def _class(one_of: str) -> str:
    """Return a character class with all its characters, as `regex` matches it ignoring case: without U+0345."""
    import regex

    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    runs = regex.findall(f"{one_of}+", every, regex.IGNORECASE)
    return "[" + "".join(rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}" for run in runs) + "]"
