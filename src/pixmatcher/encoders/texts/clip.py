"""CLIP's tokenizer as open_clip has it: what it does to a text first, and its vocabulary as a `tokenizers` file.

Sources: `SimpleTokenizer` of open_clip 3.3 and of openai/CLIP. Its splitting uses the tables of Unicode in the `regex`
library, which are newer than those of `tokenizers`; so they are written out into the file.
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
    """What CLIP's tokenizer does first: mend, resolve the entities of HTML, lower case, one space between words."""
    # ftfy, which takes longer to import than a text to embed, leaves alone what is plain.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def write_tokenizer(path: Path) -> None:
    """Write the tokenizer of open_clip, which must be installed, as a file of the `tokenizers` library.

    It gives the ids of a text that was cleaned, the first and the last id of a text put on, and neither cuts nor pads.
    """
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe()) as file:
        merges = file.read().decode().split("\n")[1:48895]  # the line of the version, the merges, and some unused
    content = json.loads(build_clip_tokenizer(merges).to_str())
    # Without spaces, and with a string for each merge, it loads in half the time.
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def build_clip_tokenizer(merges: Sequence[str]) -> Tokenizer:
    """Make CLIP's tokenizer of its merges ("t h", ...), in their order. Needs the `regex` library."""
    from tokenizers import processors

    pairs = [(first, second) for first, second in map(str.split, merges)]
    characters = _byte_characters()
    tokens = [*characters, *(c + _LAST_OF_WORD for c in characters), *map("".join, pairs)]
    ids = {token: at for at, token in enumerate(tokens)}
    special = {_START: len(ids), _END: len(ids) + 1}
    # Where a text has one of the special tokens as a word of its own, it is one token. It cannot be an added token of
    # the library, which would be found within a word as well; so it is merged from its parts. No other word has both
    # a bracket and a letter, so these merges, the last, touch nothing else.
    plain, unused = _tokenizer(ids, pairs), count(len(ids) + 2)
    for word, known in special.items():
        for first, second in _from_the_left(plain.encode(word).tokens):
            pairs.append((first, second))
            ids[first + second] = known if first + second == word + _LAST_OF_WORD else next(unused)
    tokenizer = _tokenizer(ids, pairs)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}", special_tokens=list(special.items())
    )
    return tokenizer


def _tokenizer(ids: dict[str, int], pairs: list[tuple[str, str]]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, end_of_word_suffix=_LAST_OF_WORD))
    words = pre_tokenizers.Split(Regex(_words_pattern()), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    return tokenizer


def _from_the_left(parts: list[str]) -> Iterator[tuple[str, str]]:
    """The merges that make one token of several, each taking one more part."""
    whole = parts[0]
    for part in parts[1:]:
        yield whole, part
        whole += part


def _byte_characters() -> list[str]:
    """The characters that stand for bytes, in the order of their ids: first the bytes that can be printed."""
    printed = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printed), *(chr(0x100 + at) for at in range(256 - len(printed)))]


@cache
def _words_pattern() -> str:
    """The regular expression of the words of open_clip; of the letters that it names only s has a second lower case."""
    letters, number, others = (_class(one_of) for one_of in (r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"))
    return f"<[s\u017f]tart_of_text>|<end_of_text>|'[s\u017f]|'t|'re|'ve|'m|'ll|'d|{letters}+|{number}|{others}+"


def _class(one_of: str) -> str:
    """A class of `regex` with its characters written out, as it is where case does not count: without U+0345."""
    import regex

    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    runs = regex.findall(f"{one_of}+", every, regex.IGNORECASE)
    return "[" + "".join(rf"\x{{{ord(run[0]):x}}}-\x{{{ord(run[-1]):x}}}" for run in runs) + "]"
