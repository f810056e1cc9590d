"""Tokenizing texts with small tokenizers of the library `tokenizers`."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pixmatcher.encoders.onnx.card import TextRecipe
from pixmatcher.encoders.texts.clip import clean
from pixmatcher.encoders.texts.tokenizer import MAX_CHARACTERS, Tokenize, open_tokenizer
from pixmatcher.errors import EncoderError, QueryError

START, END, UNKNOWN, PAD = 1, 2, 3, 9
WORDS = {"<s>": START, "</s>": END, "?": UNKNOWN, "a": 4, "cat": 5, "dog": 6, "and": 7, "café": 8}


def small_tokenizer(unknown: str | None = "?") -> Tokenizer:
    """Return a tokenizer of words between spaces, with a token before and a token after a text."""
    made = Tokenizer(models.WordLevel(WORDS, unk_token=unknown))  # type: ignore[arg-type]
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return made


def opened(folder: Path, made: Tokenizer, length: int = 8, cleaning: str = "none") -> Tokenize:
    made.save(str(folder / "tokenizer.json"))
    recipe = TextRecipe("tokenizer.json", length, PAD, cleaning)  # type: ignore[arg-type]
    return open_tokenizer(folder / "tokenizer.json", recipe)


def test_ids_are_padded_and_the_mask_marks_the_padding(tmp_path: Path) -> None:
    ids, mask = opened(tmp_path, small_tokenizer())("a cat")
    assert ids.tolist() == [START, 4, 5, END, PAD, PAD, PAD, PAD]
    assert mask.tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    ids, mask = opened(tmp_path, small_tokenizer())("")
    assert ids.tolist() == [START, END] + 6 * [PAD]
    assert mask.sum() == 2


def test_a_long_text_is_cut_before_its_last_token(tmp_path: Path) -> None:
    tokenize = opened(tmp_path, small_tokenizer())
    whole = [START, 4, 5, 7, 4, 6, 7, END]
    assert tokenize("a cat and a dog and")[0].tolist() == whole
    ids, mask = tokenize("a cat and a dog and a cat and a dog")
    assert ids.tolist() == whole
    assert mask.tolist() == 8 * [1]


def test_lengths_in_the_file_are_ignored(tmp_path: Path) -> None:
    expected = opened(tmp_path, small_tokenizer())("a cat")
    other = small_tokenizer()
    other.enable_padding(direction="left", pad_id=0, length=20, pad_to_multiple_of=16)
    other.enable_truncation(3, direction="left", stride=0)
    for got, wanted in zip(opened(tmp_path, other)("a cat"), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_very_long_texts(tmp_path: Path) -> None:
    tokenize = opened(tmp_path, small_tokenizer())
    for text in (
        "a cat " + "and a dog " * 100_000,
        " " * 1_000_000 + "a cat and a dog and a",
        "a" + "\n" * 1_000_000 + "cat" + " \n" * 5000 + "and a dog and a",
    ):
        assert tokenize(text)[0].tolist() == [START, 4, 5, 7, 4, 6, 7, END]
    words = opened(tmp_path, small_tokenizer(), MAX_CHARACTERS)("cat " * MAX_CHARACTERS)[0]
    assert (words == 5).sum() == MAX_CHARACTERS // 4  # later text is ignored


@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d\ude00", "\ud800"])
@pytest.mark.parametrize("cleaning", ["none", "clip"])
def test_texts_that_are_not_unicode_are_refused(tmp_path: Path, text: str, cleaning: str) -> None:
    with pytest.raises(QueryError, match=r"^The text is not valid Unicode: write it in UTF-8, or set the terminal"):
        opened(tmp_path, small_tokenizer(), cleaning=cleaning)(text)


def test_a_text_that_cannot_be_tokenized(tmp_path: Path) -> None:
    tokenize = opened(tmp_path, small_tokenizer(unknown=None))
    with pytest.raises(EncoderError, match=r"tokenizer\.json cannot tokenize the text"):
        tokenize("a bird")


def test_invalid_tokenizer_files_are_refused(tmp_path: Path) -> None:
    recipe = TextRecipe("tokenizer.json", 8, 0)
    for content in (b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "Other"}}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(Exception):  # noqa: B017, PT011 -- the library has no class of its own
            open_tokenizer(tmp_path / "tokenizer.json", recipe)


def test_texts_are_cleaned_if_the_recipe_says_so(tmp_path: Path) -> None:
    text = "  A\tCAT &amp;amp; a\u00a0DOG and CAFÃ‰ "
    plain = opened(tmp_path, small_tokenizer(), 10)(text)[0]
    assert plain.tolist() == [START, 3, 3, 3, 4, 3, 7, 3, END, PAD]
    cleaned = opened(tmp_path, small_tokenizer(), 10, "clip")(text)[0]
    assert cleaned.tolist() == [START, 4, 5, UNKNOWN, 4, 6, 7, 8, END, PAD]


@given(st.text() | st.text(st.characters(max_codepoint=0x7F)) | st.text("&amp;#x41 <>Ãé\u00a0\u0092\n", max_size=30))
@settings(max_examples=400, deadline=None)
def test_cleaning_equals_that_of_open_clip(text: str) -> None:
    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    assert clean(text) == " ".join(mended.split()).strip().lower()


def test_plain_texts_do_not_import_ftfy() -> None:
    code = (
        "import sys; from pixmatcher.encoders.texts.clip import clean;"
        "print(clean(' Two  DOGS, <b>\\'s '), 'ftfy' in sys.modules);"
        "print(clean('a &lt; b'), 'ftfy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "two dogs, <b>'s False\na < b True\n"
