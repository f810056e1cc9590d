"""The code blocks of README.md, CONTRIBUTING.md, the start pages and the how-to guides, run as a reader types them.

A page is one shell session that begins in a home folder with example photos and small data sets; a Python block is a
program that is started there. A block below `<!-- output -->` is compared with what the block above it prints. A block
that cannot be run here is marked in Markdown, right above it, with `<!-- not run: REASON -->`; its commands and options
are parsed instead.
"""

from __future__ import annotations

import csv
import functools
import http.server
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer

import pixmatcher
from pixmatcher.cli import complete_app
from support import paint

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/start/*.md")),
    *sorted(ROOT.glob("docs/how-to/*.md")),
]
QUICK = {"README.md", "CONTRIBUTING.md", "python.md"}
"""Pages that `make test` runs. `make test-slow` runs the other pages, which need half a minute."""
NOT_CODE = {"text", "json", "toml", "{.python}"}  # the last is an included file, which ruff must not format here
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n\Z")
_INCLUDED = re.compile(r'--8<-- "(.+)"\n')
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HARMLESS = {"cd", ".", "ruff", "wait"}
_OF_OTHERS = {"chown", "claude", "curl", "docker", "export", "kubectl", "ray", "ssh", "systemctl", "useradd"}
"""Programs whose options are not checked; a command after `--` is."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    """The number of its first line."""
    language: str
    code: str
    not_run: str | None
    """The reason why it is not run, if it is not."""
    is_output: bool
    """Whether it is what the block above it prints."""

    @property
    def included(self) -> str | None:
        """The file whose text is the block, if the page includes one; the tests of that file run it."""
        return match[1] if (match := _INCLUDED.fullmatch(self.code)) else None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@functools.cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Return the fenced blocks of a page, from top to bottom."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        above = text[: match.start()]
        reason = _NOT_RUN.search(above)
        line = above.count("\n") + 2
        found.append(
            Block(page, line, match[1], match[2], reason[1] if reason else None, above.endswith("<!-- output -->\n"))
        )
    return tuple(found)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
SKIPPED = [block for block in ALL_BLOCKS if block.not_run]


def is_run(block: Block) -> bool:
    return not (block.not_run or block.language in NOT_CODE or block.included)


@pytest.fixture(scope="session")
def photo_server() -> Iterator[str]:
    """Serve the example photos on loopback; return the URL of their folder."""
    handler = functools.partial(_QuietHandler, directory=str(ROOT / "examples" / "photos"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory, photo_server: str) -> Path:
    """Return a home folder with what the pages need, of which ~/Pictures is indexed."""
    home = tmp_path_factory.mktemp("docs") / "home"
    photos = {path.stem: path for path in sorted((ROOT / "examples" / "photos").glob("*.jpg"))}
    places = {"horse": "animals", "rocket": "holiday", "temple": "holiday"}
    for name, path in photos.items():
        target = home / "Pictures" / places.get(name, "") / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(home / "Pictures", home / "photos")
    (home / "Scans").mkdir()
    shutil.copy(photos["handwriting"], home / "Scans")
    shutil.copy(photos["cat"], home)
    (home / "Pictures" / "captions.csv").write_text("image,caption\ncat.jpg,a cat\ncoffee.jpg,a cup of coffee\n")
    write_tiny_imagenet(home / "tiny-imagenet" / "tiny-imagenet-200")
    write_open_images(home / "open-images", photo_server)
    for name, columns in (("links.csv", ("url", "caption", "label")), ("photos.csv", ("link", "title", "label"))):
        with (home / name).open("w", newline="") as file:
            rows = [("cat", "a cat", "cat"), ("coffee", "a cup of coffee", "drink")]
            csv.writer(file).writerows([columns, *((f"{photo_server}/{row[0]}.jpg", *row[1:]) for row in rows)])
    (home / "holiday.json").write_text('{"photos": [{"file": "cat.jpg", "place": "home", "caption": "our cat"}]}')
    (home / "shards").mkdir()
    for number, name in enumerate(("cat", "coffee")):
        with tarfile.open(home / "shards" / f"{number:05}.tar", "w") as tar:
            tar.add(photos[name], f"{number + 1:09}.jpg")
    pixmatcher.index(home / "Pictures")
    return home


def write_tiny_imagenet(root: Path) -> None:
    """Write two classes in the layout of Tiny ImageNet, with three train images and one val image each."""
    names = {"n01443537": "goldfish, Carassius auratus", "n01629819": "European fire salamander"}
    for number, wnid in enumerate(names):
        for image in range(3):
            paint(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 10 * number + image, kind="JPEG")
        paint(root / "val" / "images" / f"val_{number}.JPEG", 100 + number, kind="JPEG")
    rows = [f"val_{number}.JPEG\t{wnid}\t0\t0\t63\t63\n" for number, wnid in enumerate(names)]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("\n".join(names))
    (root / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in names.items()))


def write_open_images(folder: Path, server: str) -> None:
    """Write the lists of Open Images for two photos of the server."""
    folder.mkdir()
    columns = "ImageID,Subset,OriginalURL,OriginalLandingURL,License,Author,Title,Thumbnail300KURL,Rotation\n"
    rows = [f"{name},validation,{server}/{name}.jpg,,,Ann,{name},,0.0\n" for name in ("cat", "coffee")]
    (folder / "validation-images-with-rotation.csv").write_text(columns + "".join(rows))
    (folder / "oidv7-val-annotations-human-imagelabels.csv").write_text(
        "ImageID,Source,LabelName,Confidence\ncat,verification,/m/cat,1\ncoffee,verification,/m/coffee,1\n"
    )
    (folder / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n/m/cat,Cat\n/m/coffee,Coffee\n")


@pytest.fixture
def home(home_template: Path, tmp_path: Path) -> Path:
    """Return a home folder of this test, and beside it, in `bin`, the commands `pixmatcher` and `python`."""
    home = tmp_path / "home"
    shutil.copytree(home_template, home, symlinks=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    # The images of the pages are on loopback here, which PixMatcher refuses unless this option is given.
    allow = 'case "$*" in index*urls:*|index*open-images:*|"index -c links") set -- "$@" --allow-private-hosts;; esac'
    for name, command in (("pixmatcher", f"{allow}\nexec {python} -m pixmatcher"), ("python", f"exec {python}")):
        (programs / name).write_text(f'#!/bin/sh\n{command} "$@"\n')
        (programs / name).chmod(0o755)
    return home


def session(page: Path, folder: Path) -> str:
    """Return the shell script that types the blocks of a page, one after the other; Python blocks become files."""
    lines = ["set -eu -o pipefail"]
    for block in blocks(page):
        if not is_run(block):
            continue
        code = block.code
        if block.language == "python":
            file = folder / f"line_{block.line}.py"
            file.write_text(code, encoding="utf-8")
            code = f"(cd && python {shlex.quote(str(file))})"
        lines += [f"echo '--- {block.place}'", code]
    return "\n".join(lines)


def marks_of(page: Path) -> list[pytest.MarkDecorator]:
    """Return the marks of the test of a page."""
    marks = [] if page.name in QUICK else [pytest.mark.slow]
    code = "".join(block.code for block in blocks(page))
    if "pixmatcher demo" in code:
        # All tests of a checkout share the collection of the demonstration.
        marks.append(pytest.mark.xdist_group("demo"))
    elif "--on ray" in code:
        # Two clusters that start at once on a busy machine may wait for each other too long.
        marks.append(pytest.mark.xdist_group("ray"))
    return marks


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=marks_of(page), id=str(page.relative_to(ROOT)))
        for page in PAGES
        if any(map(is_run, blocks(page)))
    ],
)
def test_the_blocks_of_a_page_run(page: Path, home: Path) -> None:
    """Run the page in one shell that stops at the first command that fails."""
    if page.parent.name == "start":
        shutil.rmtree(home / "Pictures" / ".pixmatcher")
    real_cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # of fonts, which take long to list
    sources = [ROOT / "src", ROOT / "examples" / "plugin"]
    environment = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{home.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIXMATCHER_CACHE": str(home / "models"),
        "PIXMATCHER_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(map(str, sources)),
        "XDG_CACHE_HOME": real_cache,
    }
    done = subprocess.run(
        ["bash", "-c", session(page, home.parent)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout
    check_outputs(page, done.stdout.replace(str(home), "/home/you"))


def check_outputs(page: Path, printed: str) -> None:
    """Compare the blocks that show output, line by line, with what the blocks above them printed."""
    sections = re.split(r"^--- \S+:(\d+)\n", printed, flags=re.MULTILINE)
    output_of = dict(zip(sections[1::2], sections[2::2], strict=True))
    previous = None
    for block in blocks(page):
        if block.is_output:
            assert previous is not None, block.place
            lines = without_times(output_of[str(previous.line)]).splitlines()
            for line in without_times(block.code).splitlines():
                assert line in lines, f"{block.place}: {line!r} is not among {lines}"
        elif block.language not in NOT_CODE:
            previous = block


def without_times(text: str) -> str:
    """Replace the parts of an output that differ from run to run: durations, ids and the time of day."""
    text = re.sub(r"\d+(\.\d+)? (ms|s)\b", "0 s", text)
    text = re.sub(r'\d+%|(?<="probability": )[\d.]+', "0", text)  # probabilities, which follow scores
    text = re.sub(r"\b(\d\.\d)\d{2,3}\b", r"\1", text)  # scores may differ a little between processors
    return re.sub(r'(?<="took_ms": )[\d.]+|(?<="id": )\d+|\d\d:\d\d:\d\d\.\d+|(?<=opened in )[\d.]+', "0", text)


def test_each_block_says_what_it_is() -> None:
    """No block escapes the tests because its language is missing or written in another way."""
    for block in ALL_BLOCKS:
        assert block.language in {"sh", "python"} | NOT_CODE, block.place
        assert block.included is None or (ROOT / block.included).is_file(), block.place
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^\s*```", text, re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), f"{page}: a fence is indented or not closed"
        marks = re.findall("^<!-- not run", text, re.MULTILINE)
        assert len(marks) == sum(block.not_run is not None for block in blocks(page)), page
        assert not re.search(r"^(?: {4}|\t)(?:pixmatcher|python|make|pip) ", _FENCE.sub("", text), re.MULTILINE), page


@pytest.mark.parametrize("block", SKIPPED, ids=lambda block: f"{block.place} ({block.not_run})")
def test_commands_that_are_not_run_exist(block: Block) -> None:
    """Parse the commands of a block that is not run: they and their options exist."""
    if block.language == "python":
        compile(block.code, block.place, "exec")
        return
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            check_command(words)


def check_command(words: list[str]) -> None:
    """Raise if the command of these words does not exist, or does not take these arguments."""
    program, arguments = words[0].rpartition("/")[2], words[1:]
    if program == "pixmatcher":
        parse(arguments)
    elif program == "sudo":
        check_command(arguments[2:] if arguments[0] == "-u" else arguments)
    elif program in _OF_OTHERS:
        if "--" in arguments:
            check_command(arguments[arguments.index("--") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program in {"pip", "python", "python3", "pytest"}:
        for argument in arguments:
            for extra in re.findall(r"\[([\w,]+)\]", argument):
                known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
                assert set(extra.split(",")) <= set(known), argument
            assert not argument.endswith(".py") or (ROOT / argument).is_file(), argument
    else:
        assert program in _HARMLESS, program


def parse(arguments: list[str]) -> None:
    """Parse the arguments of `pixmatcher` without running anything; raise if one of them is unknown."""
    command = typer.main.get_command(complete_app())
    name = "pixmatcher"
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    while arguments and (arguments[0] in options or hasattr(command, "commands")):
        if arguments[0] in options:
            arguments = arguments[1:]
            continue
        name, arguments = arguments[0], arguments[1:]
        assert name in command.commands, f"unknown command {name!r}"
        command = command.commands[name]
        options = set()
    if not hasattr(command, "commands"):
        command.make_context(name, list(arguments))


def test_unknown_commands_and_options_are_found() -> None:
    """The check of blocks that are not run can fail."""
    check_command(["pixmatcher", "models", "export", "clip-vit-b-32", "--int8"])
    for words in (
        ["pixmatcher", "serch", "a cat"],
        ["pixmatcher", "models", "fetch", "x"],
        ["pip", "install", ".[nothing]"],
    ):
        with pytest.raises(AssertionError):
            check_command(words)
    with pytest.raises(Exception, match="--jsn"):
        check_command(["pixmatcher", "search", "a cat", "--jsn"])


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """Return `tools/docs_hooks.py`, with which `make docs` builds the site."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "tools" / "docs_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_commands_has_every_command_and_option(hooks: ModuleType) -> None:
    page = hooks.commands_page()
    for command in ("index", "search", "models export", "datasets get", "app"):
        assert f"\n## pixmatcher {command}\n" in page
    for option in ("`--collection`, `-c` `PATH`", "`-k` `N`", "`--after` `DATE`", "`--memory` `SIZE`", "| `8501` |"):
        assert option in page


def test_resources_of_other_hosts_are_found(hooks: ModuleType, tmp_path: Path) -> None:
    """The check of the built site can fail: links may lead anywhere, but nothing is loaded from elsewhere."""
    page, style, script = tmp_path / "page.html", tmp_path / "style.css", tmp_path / "script.js"
    page.write_text(
        '<link rel="stylesheet" href="https://fonts.example/a.css"><script src="//cdn.example/b.js"></script>'
        '<link rel="canonical" href="https://docs.example/"><a href="https://example.org/">text</a><img src="c.png">'
    )
    style.write_text(
        '@import "https://fonts.example/d.css"; b { background: url(https://cdn.example/e.png), url(f.png) }'
    )
    script.write_text('const home = "https://example.org/"')
    assert hooks.external_resources(page) == ["https://fonts.example/a.css", "//cdn.example/b.js"]
    assert hooks.external_resources(style) == ["https://cdn.example/e.png", "https://fonts.example/d.css"]
    assert hooks.external_resources(script) == []


def test_links_lead_to_files() -> None:
    """Each relative link of a Markdown file leads to a file that exists; `make docs` checks the headings too."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/README.md")]:
        for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = link.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path) and path != "commands.md" and not path.endswith("/commands.md"):
                assert (page.parent / path).exists(), f"{page.relative_to(ROOT)}: {link}"


def test_the_reference_has_every_public_name() -> None:
    reference = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^::: pixmatcher\.(\w+)$", reference, re.MULTILINE))
    assert documented >= set(pixmatcher.__all__)
