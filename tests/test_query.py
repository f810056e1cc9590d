"""What a user typed becomes a query, or one sentence that says what to do."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from pixmatcher.fetch import MAX_BYTES
from pixmatcher.query import parse_query

SEARCH_STDIN = [sys.executable, "-m", "pixmatcher", "search", "-"]


# ---- Standard input ----


def test_an_image_on_standard_input_may_be_as_large_as_one_that_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(MAX_BYTES))))
    assert parse_query(["-"]).image == bytes(MAX_BYTES)


def test_a_larger_image_on_standard_input_is_not_called_truncated() -> None:
    done = subprocess.run(SEARCH_STDIN, input=b"BM" + bytes(MAX_BYTES), capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == b"Error: The image on standard input is larger than 25 MB: give it by its path.\n"


@pytest.mark.parametrize(
    ("redirection", "message"),
    [("<&-", "Standard input is closed:"), ("0>/dev/null", "Standard input cannot be read (")],
)
def test_a_standard_input_that_is_none_is_one_sentence(redirection: str, message: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *SEARCH_STDIN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
