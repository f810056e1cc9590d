"""The commands that messages and help texts advise exist, and can be typed as they are shown."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import pixmatcher
from pixmatcher._text import command_to_upgrade
from pixmatcher.cli import complete_app
from pixmatcher.datasets import DATASETS
from pixmatcher.sources import source_kinds

ROOT = Path(pixmatcher.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

MENTIONED = {"pixmatcher COMMAND --help", "pixmatcher export arrays"}
"""What texts name without the rest of the command, not to be typed."""


def texts() -> Iterator[tuple[str, str]]:
    """Each text in the source files with its place; what an f-string inserts is replaced by X."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node)
            if part is not node
        }
        for node in ast.walk(tree):
            if id(node) in inner:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield f"{path.relative_to(ROOT)}:{node.lineno}", "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node.value


def advised_commands() -> list[tuple[str, str]]:
    """Each command in backquotes in a text, and each that is printed as a next command, with its place."""
    found = [
        (place, " ".join(command.split()))
        for place, text in texts()
        for command in re.findall(r"`(pixmatcher [^`]+)`", text)
    ]
    for path in (ROOT / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print_next_commands":
                for words in [each for each in node.args if isinstance(each, ast.Tuple)]:
                    values = [str(w.value) if isinstance(w, ast.Constant) else "X" for w in words.elts]
                    found.append((f"{path.name}:{node.lineno}", shlex.join(["pixmatcher", *values])))
    return found


def parse(command: str) -> None:
    """Parse a command without running it; raise if a word of it is unknown. A name alone only has to exist."""
    program, *words = shlex.split(command)
    assert program == "pixmatcher", command
    found = typer.main.get_command(complete_app())
    while words and hasattr(found, "commands"):
        name, words = words[0], words[1:]
        assert name in found.commands, f"{command}: unknown command {name!r}"
        found = found.commands[name]
    assert not hasattr(found, "commands"), command
    if words:
        found.make_context("x", words)


def test_advised_commands_can_be_typed() -> None:
    commands = advised_commands()
    assert len(commands) > 40
    for place, command in commands:
        if command in MENTIONED:
            continue
        try:
            parse(command)
        except Exception as error:
            raise AssertionError(f"{place}: `{command}`: {error}") from error
    parse(command_to_upgrade("a folder"))


def test_examples_of_sources_and_data_sets_can_be_typed() -> None:
    for kind in source_kinds():
        parse(f"pixmatcher index {kind.example}")
    for dataset in DATASETS:
        parse(dataset.example)


def test_wrong_commands_are_found() -> None:
    """The check can fail."""
    for wrong in ("pixmatcher nothing", "pixmatcher models", "pixmatcher search a --nothing", "pixmatcher models x"):
        with pytest.raises(Exception, match=r"unknown command|pixmatcher models|No such option"):
            parse(wrong)


def test_advised_extras_exist() -> None:
    known = set(re.findall(r"^(\w+) = \[", PYPROJECT.read_text(), re.MULTILINE))
    advised = [(place, extras) for place, text in texts() for extras in re.findall(r"pixmatcher\[([^\]]*)\]", text)]
    assert len(advised) > 8
    for place, extras in advised:
        assert set(extras.split(",")) <= known, f"{place}: {extras}"


def test_each_command_has_a_group_and_an_example_that_can_be_typed() -> None:
    def leaves(name: str, command: object) -> Iterator[tuple[str, object]]:
        children = getattr(command, "commands", None)
        if not children:
            yield name, command
        for child, below in (children or {}).items():
            yield from leaves(f"{name} {child}", below)

    program = typer.main.get_command(complete_app())
    assert all(command.rich_help_panel for command in program.commands.values())  # type: ignore[attr-defined]
    for name, command in leaves("pixmatcher", program):
        title, *examples = command.epilog.split("\n\n")  # type: ignore[attr-defined]
        assert title in ("Example:", "Examples:")
        assert examples
        for example in examples:
            assert f"{example} ".startswith(f"{name} "), example
            assert len(example) <= 76, example  # so that no terminal of 80 columns breaks it
            parse(example)
    for example in program.epilog.split("\n\n")[1:]:  # type: ignore[union-attr]
        parse(example)


def test_every_short_option_has_a_long_form() -> None:
    def check(name: str, command: object) -> None:
        for parameter in getattr(command, "params", ()):
            options = [option for option in parameter.opts if option.startswith("-")]
            assert not options or any(option.startswith("--") for option in options), (name, options)
        for child, below in getattr(command, "commands", {}).items():
            check(child, below)

    check("pixmatcher", typer.main.get_command(complete_app()))
