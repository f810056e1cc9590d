"""CLIP's tokenizer as a file of the library `tokenizers`, compared with that of open_clip id by id."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from tokenizers import Tokenizer

from pixmatcher.encoders.onnx.card import TextRecipe
from pixmatcher.encoders.texts.clip import CONTEXT_LENGTH, PAD_ID, clean, write_tokenizer
from pixmatcher.encoders.texts.tokenizer import Tokenize, open_tokenizer

SCRIPTS = (
    """
a photo of a cat|ein Foto von einem Bären auf der Straße|une photo d'un chien à l'école|ÅNGSTRÖM ØRE ÆON ŁÓDŹ
Фотография кошки в саду|φωτογραφία μιας γάτας ΟΔΥΣΣΕΥΣ|صورة قطة في الحديقة|תמונה של חתול
बगीचे में बिल्ली की तस्वीर|বিড়ালের ছবি|รูปแมวในสวน ๑๒๓|ຮູບແມວ|ရုပ်ပုံ|រូបថតឆ្មា
花园里的猫的照片|庭の猫の写真カタカナ|정원에 있는 고양이 사진|კატის ფოტო ᲓᲐ|կատվի լուսանկար
ᏣᎳᎩ ꭰꭱ|ᚠᚢᚦᚨᚱᚲ|𐍈𐌰𐌹𐍂𐌷𐍄|𝒽𝑒𝓁𝓁𝑜 𝟘𝟙𝟚|ⅣⅫ ½ ¾ ²³ ①②|﷽ ﷼|ﬁ ﬂ ﬃ ǅ ǆ İstanbul ılık ſafe|ΐ ΰ ẞ ß|ᾳ α\u0345 \u0345b
""".strip()
    .replace("\n", "|")
    .split("|")
)
ODD = [
    "",
    " ",
    "   \t\n\r  ",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b[0m",
    "\x07\x08\x7f",
    "\x85\x0b\x0c\x1c\x1d\x1e\x1f",
    "\u200b\u200d\ufeff",
    "\u2028\u2029",
    "a\u00a0b\u3000c\u2009d",
    "\u180e",
    "\ufffd\ufffe\uffff",
    "\U0010ffff",
    "👩\u200d👩\u200d👧\u200d👦 family",
    "🏳️‍🌈🏴‍☠️🇩🇪🇫🇷🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "👍🏽👍🏿 ok ✌️ ☺",
    "❤️🔥 1️⃣2️⃣#️⃣",
    "e\u0301 e\u0301\u0327 n\u0303o",
    "Z\u0351\u036b\u0343a\u0329\u0353l\u034dg\u030do",
    "&amp;",
    "&amp;amp;amp;",
    "&lt;b&gt;bold&lt;/b&gt;",
    "&#39;s",
    "&#x1F600;",
    "&nbsp;x&nbsp;",
    "&eacute;t&eacute;",
    "&notanentity;",
    "&#xD800;&#0;",
    "schÃ¶n",
    "â€œquotesâ€\x9d",
    "ÃƒÂ©",
    "Ð¿Ñ\x80Ð¸Ð²ÐµÑ‚",
    "ðŸ˜€",
    "l’humanitÃ©",
    "“curly” ‘quotes’ — dash…",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "<start_of_text>",
    "<end_of_text>",
    "a <start_of_text> b <end_of_text> c",
    "!<start_of_text>!",
    "..<end_of_text>..",
    "a<end_of_text>b",
    "<START_OF_TEXT>",
    "<ſtart_of_text>",
    "<start_of_text><end_of_text>",
    "<<start_of_text>>",
    "<start_of_text",
    "<|endoftext|>",
    "don't i'll we've they're i'm he'd it's 'S 'Ll x'ſ '' 's's",
    "1234567890 1,234.56 1e-9 3d 4k",
    "a_b-c.d@e.com https://x.y/z?q=1&r=2#f",
    "C++ C# .NET \\o/ ^_^ $€£¥",
    "a" * 300,
    "supercalifragilisticexpialidocious " * 20,
    "photo " * 74,
    "photo " * 75,
    "photo " * 76,
    "photo " * 500,
    "!" * 200,
    "😀" * 100,
    "猫" * 200,
    " ".join("abcdefghijklmnopqrstuvwxyz" * 5),
]
POOL = [
    *SCRIPTS,
    *ODD,
    "a",
    "dog",
    "of",
    "the",
    "Red",
    "SUNSET",
    " ",
    "  ",
    "\n",
    "'",
    '"',
    "<",
    ">",
    "&",
    ";",
    ".",
    "-",
    "3",
    "42",
]


def made_up(count: int) -> list[str]:
    """Return texts made of all pieces above, in a fixed order."""
    chance = random.Random(3)
    return [
        "".join(chance.choice(POOL) + chance.choice(["", " "]) for _ in range(chance.randint(1, 12)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def ours(path: Path) -> Tokenize:
    return open_tokenizer(path, TextRecipe(path.name, CONTEXT_LENGTH, PAD_ID, "clip"))


@pytest.fixture(scope="module")
def theirs() -> SimpleTokenizer:
    return open_clip.get_tokenizer("ViT-B-32")


def compare(ours: Tokenize, theirs: SimpleTokenizer, texts: list[str]) -> None:
    expected = theirs(texts).numpy()
    for text, wanted in zip(texts, expected, strict=True):
        ids, mask = ours(text)
        np.testing.assert_array_equal(ids, wanted, repr(text))
        assert mask.sum() == np.flatnonzero(wanted == theirs.eot_token_id)[-1] + 1


def test_texts_of_all_kinds(ours: Tokenize, theirs: SimpleTokenizer) -> None:
    texts = [*SCRIPTS, *ODD, *(text.upper() for text in SCRIPTS), *made_up(2200)]
    assert sum(len(theirs.encode(text)) > 75 for text in texts) > 300  # which are cut
    compare(ours, theirs, texts)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_random_texts(ours: Tokenize, theirs: SimpleTokenizer, texts: list[str]) -> None:
    compare(ours, theirs, texts)


def test_texts_longer_than_the_limit(ours: Tokenize, theirs: SimpleTokenizer) -> None:
    compare(ours, theirs, [" " * 30_000 + "a cat", "a" + " " * 30_000 + "b", "\n" * 30_000, "two dogs " * 4000])


@pytest.mark.parametrize("between", [" ", "a", "!", " 'r"])
def test_every_character_of_unicode_is_split_in_the_same_way(path: Path, theirs: SimpleTokenizer, between: str) -> None:
    # The library `regex` of open_clip may support characters that this Python and `tokenizers` do not support.
    every = (chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000)
    text = between.join(character for character in every if not character.isspace()).lower()
    words = ["".join(theirs.byte_encoder[byte] for byte in word.encode()) for word in theirs.pat.findall(text)]
    split = Tokenizer.from_file(str(path)).pre_tokenizer
    assert split is not None
    assert [word for word, _ in split.pre_tokenize_str(text)] == words


def test_every_few_characters_of_unicode_have_the_same_ids(ours: Tokenize, theirs: SimpleTokenizer) -> None:
    assigned = [
        chr(point) for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")
    ]
    chosen = [*assigned[:6000], *assigned[6000::40]]
    compare(ours, theirs, ["".join(chosen[start : start + 9]) for start in range(0, len(chosen), 9)])


def test_cleaning(theirs: SimpleTokenizer) -> None:
    for text in [*SCRIPTS, *ODD, *made_up(500)]:
        assert clean(text) == theirs.clean_fn(text)


def test_vocabulary(path: Path, theirs: SimpleTokenizer) -> None:
    vocabulary = Tokenizer.from_file(str(path)).get_vocab()
    for token, number in theirs.encoder.items():
        if number not in theirs.all_special_ids:
            assert vocabulary[token] == number
