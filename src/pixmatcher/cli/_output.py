"""What several commands print: pairs, tables, failures, hits, and what to type next."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from .._text import printable, values_as_unicode

if TYPE_CHECKING:
    from ..collection import Failure, Item
    from ..indexing import IndexReport
    from ..searching import SearchResult

_MOST_INCOMPLETE = 5
"""Incomplete images that are named."""
_MOST_NAME_CHARACTERS = 20
"""A longer name has a line for itself."""
_LEAST_WIDTH = 40


def program_name() -> str:
    """Return what to type to run PixMatcher again: `pixmatcher` if the shell finds it, else the path of the program."""
    program = sys.argv[0]
    if os.path.basename(program) == "__main__.py":
        return f"{shlex.quote(shorter_path(sys.executable))} -m pixmatcher"
    found = shutil.which("pixmatcher")
    if not os.path.isfile(program) or (found is not None and os.path.samefile(found, program)):
        return "pixmatcher"
    path = shorter_path(os.path.abspath(program))
    return shlex.quote(path if os.path.dirname(path) else f"./{path}")


def print_next_commands(*commands: Sequence[str], title: str = "Type next:") -> None:
    """Print commands of PixMatcher, each a list of arguments, for the user to type next."""
    print(f"\n{title}")
    for arguments in commands:
        print(f"  {command_line(arguments)}")


def command_line(arguments: Sequence[str]) -> str:
    """Return a command of PixMatcher, a list of arguments, as it is typed."""
    return f"{program_name()} {' '.join(map(_quote, arguments))}"


def _quote(argument: str) -> str:
    return f'"{argument}"' if argument.replace(" ", "").isalnum() and " " in argument else shlex.quote(argument)


def print_json(value: object) -> None:
    """Print a value as one line of JSON that is valid Unicode, at once."""
    print(json.dumps(values_as_unicode(value)), flush=True)


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print pairs of a name and a value, the values in a column."""
    pairs = [*pairs]
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        print(f"{name:<{width}}{printable(value)}")


def print_columns(rows: Sequence[Sequence[str]], alignment: str = "") -> None:
    """Print rows of cells in columns; `alignment` has `<` (left) or `>` (right) for each column, by default left."""
    # Not a table of rich, which drops columns if a path is wider than the terminal.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = alignment or "<" * len(widths)
    for row in rows:
        print("  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip())


def print_entries(entries: Sequence[tuple[str, Sequence[str], str]]) -> None:
    """Print entries of a name, texts, and a command or "". The texts are in a column and wrapped at spaces.

    No line of a text is longer than the terminal or, in a file or a pipe, than 80 characters, unless a single word is.
    A command is always one line, so that it can be copied.
    """
    width = max(shutil.get_terminal_size().columns, _LEAST_WIDTH)
    column = min(max((len(name) for name, *_ in entries), default=0), _MOST_NAME_CHARACTERS) + 2
    for name, texts, command in entries:
        lines = [line for text in texts for line in _wrapped(printable(text).split(), width - column)]
        shown = printable(name)
        if len(shown) + 2 > column:
            print(shown)
            shown = ""
        for first, line in zip(chain([shown], repeat("")), lines, strict=False):
            print(f"{first:<{column}}{line}")
        if command:
            print(f"    {printable(command)}")


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """Return lines of words, of at most `width` characters if no word is longer."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def print_ranking(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print rows of a rank, a score and two texts; the first row is the header."""
    print_columns(rows, ">><<")


def report_counts(report: IndexReport, *, unchanged: bool = True) -> str:
    """Return what an indexing run did, such as "3 added, 1 failed"; "" if it found nothing."""
    counts = [
        (report.added, "added"),
        (report.changed, "changed"),
        (report.moved, "moved"),
        (report.removed, "removed"),
        (report.unchanged if unchanged else 0, "unchanged"),
        (len(report.failures), "failed"),
    ]
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def print_failures(failures: Sequence[Failure]) -> None:
    """Print how often each reason occurs, then each failed image with its reason."""
    for reason, count in Counter(failure.reason for failure in failures).most_common():
        print(f"  {count:,} x {reason}")
    for failure in failures:
        detail = f" ({failure.detail})" if failure.detail else ""
        print(printable(f"    {failure.uri}: {failure.reason}{detail}"))


def print_incomplete(items: Sequence[Item]) -> None:
    """Print how many images lack the end of their file, and the first of them with what is missing at most."""
    if not items:
        return
    shown = [f"{item.uri} ({_missing_text(item.missing or 0.0)})" for item in items[:_MOST_INCOMPLETE]]
    more = f" and {len(items) - len(shown):,} more" if len(items) > len(shown) else ""
    lack = (
        "1 image lacks the end of its file" if len(items) == 1 else f"{len(items):,} images lack the end of their files"
    )
    print(printable(f"{lack}: {', '.join(shown)}{more}"))


def _missing_text(share: float) -> str:
    """Return the share of a picture that can be missing as text."""
    lost = f"at most {math.ceil(100 * share)}%" if share else "nothing"
    return f"{lost} of the picture is missing"


_KINDS = {
    "video": ("video", "videos"),
    "audio": ("audio file", "audio files"),
    "document": ("document", "documents"),
    "archive": ("archive", "archives"),
    "image": ("image of a format that is not supported", "images of formats that are not supported"),
    "other": ("other file", "other files"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "excluded": ("excluded file or folder", "excluded files or folders"),
}
"""One and several files of each kind that an index run passes over."""
LEFT_OUT = ("hidden", "excluded")
"""The kinds that are left out by options, whatever they are."""
_MOST_EXTENSIONS_SHOWN = 12


def print_passed_over(counts: Mapping[str, Mapping[str, int]], collection: Path) -> None:
    """Print on standard error how many files were passed over: kind -> extension -> number."""
    found = [counted(sum(counts[kind].values()), *names) for kind, names in _KINDS.items() if kind in counts]
    if found:
        command = f"pixmatcher info -c {shlex.quote(shorter_path(str(collection)))}"
        print(printable(f"Passed over: {', '.join(found)}. `{command}` shows more."), file=sys.stderr)


def extensions_text(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return how many files have each extension, the most frequent first, from kind -> extension -> number."""
    total: Counter[str] = Counter()
    for by_extension in counts.values():
        for extension, number in by_extension.items():
            total[extension or "without extension"] += number
    shown = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:_MOST_EXTENSIONS_SHOWN]
    found = [f"{number:,} {extension}" for extension, number in shown]
    if rest := total.total() - sum(number for _, number in shown):
        found.append(counted(rest, "other"))
    return ", ".join(found)


def left_out_text(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return how many files and folders options leave out, from kind -> extension -> number."""
    return ", ".join(counted(sum(counts[kind].values()), *_KINDS[kind]) for kind in LEFT_OUT if kind in counts)


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with the word for one or for many, by default the word with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def print_note(note: str) -> None:
    """Print a note about a result on standard error, if there is one."""
    if note:
        print(f"Note: {printable(note)}", file=sys.stderr)


def print_saved(what: str, path: Path) -> None:
    """Print on standard error where a file is."""
    print(f"{what} saved to {printable(str(path))}", file=sys.stderr)


def print_hits(result: SearchResult, label_names: Mapping[str, str] | None = None) -> None:
    """Print the hits of a query as a table, with the names of their labels where these are known."""
    name = result.query if isinstance(result.query, str) else " + ".join(result.query.values())
    print(f"{printable(name)}  ({result.space}, {result.took_ms:.0f} ms)")
    if not result.hits:
        print("No hits.")
        return
    names = label_names or {}
    rows = [("rank", "score", "image", "label")]
    rows += [
        (str(hit.rank), f"{hit.score:.3f}", printable(shorter_path(hit.item.uri)), printable(names.get(label, label)))
        for hit in result.hits
        for label in [hit.item.label or ""]
    ]
    if not any(label for *_, label in rows[1:]):
        rows = [(*row[:3], "") for row in rows]
    if result.probabilities is None:
        print_ranking(rows)
        return
    from ..searching import percent

    shown = ["prob.", *(f"{percent(probability)}%" for probability in result.probabilities)]
    print_columns([(*row[:2], cell, *row[2:]) for row, cell in zip(rows, shown, strict=True)], ">>><<")


def shorter_path(uri: str) -> str:
    """Return a path relative to the current folder if that is shorter; anything else as it is."""
    if not uri.startswith("/"):
        return uri
    try:
        relative = os.path.relpath(uri)
    except OSError:  # the current folder is missing
        return uri
    return relative if len(relative) < len(uri) else uri
