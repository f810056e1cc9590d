"""What `make docs` adds to mkdocs: the page of all commands, and a check that the site loads nothing from a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pixmatcher.cli import complete_app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

COMMANDS_PAGE = "reference/commands.md"
_LINKS_THAT_LOAD = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
    "shortcut icon",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of all commands, made from the Typer app."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    return files


def on_post_build(config: MkDocsConfig) -> None:
    """Raise `PluginError` if a page or a style sheet loads something from another host."""
    found = [f"{file}: {url}" for file in Path(config.site_dir).rglob("*") for url in external_resources(file)]
    if found:
        from mkdocs.exceptions import PluginError

        raise PluginError("The site loads resources from other hosts:\n" + "\n".join(found))


def commands_page() -> str:
    """Return the Markdown of the reference of all commands."""
    parts = [
        "# Commands",
        "This page is generated from the command line itself. `pixmatcher COMMAND --help` prints the same.",
    ]
    for path, command in _commands("pixmatcher", typer.main.get_command(complete_app())):
        parts += _command_section(path, command)
    return "\n\n".join(parts) + "\n"


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield each command that can be run, with its full name; first the options of `pixmatcher` itself."""
    children = getattr(command, "commands", None)
    if children is None or path == "pixmatcher":
        yield path, command
    for name, child in (children or {}).items():
        yield from _commands(f"{path} {name}", child)


def _command_section(path: str, command: Any) -> list[str]:
    parameters = [p for p in command.params if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option"]
    usage = " ".join([path, *(["[OPTIONS]"] if options else []), *(_metavar(p) for p in arguments)])
    if getattr(command, "commands", None):
        usage += " COMMAND ..."
    parts = [f"## {path}", command.help or "", f"```text\n{usage}\n```"]
    if arguments:
        rows = [f"| `{_metavar(p)}` | {_cell(p.help)} |" for p in arguments]
        parts.append("\n".join(["| argument | meaning |", "| --- | --- |", *rows]))
    if options:
        rows = [f"| {_option(p)} | {_cell(p.help)} | {_default(p)} |" for p in options]
        parts.append("\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows]))
    title, *examples = (command.epilog or "").split("\n\n")
    if examples:
        parts += [title, "```sh\n{}\n```".format("\n".join(examples))]
    return parts


def _metavar(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.is_flag or parameter.metavar == "":
        return names
    several = " (can be given several times)" if parameter.multiple else ""
    return f"{names} `{parameter.metavar or _placeholder(parameter.type.name)}`{several}"


def _placeholder(type_name: str) -> str:
    """Return what stands for a value of this type in the usage of an option."""
    if type_name.startswith("int"):
        return "N"
    return "X" if type_name.startswith("float") else "PATH" if "path" in type_name.lower() else "TEXT"


def _default(parameter: Any) -> str:
    default = parameter.default
    if default is None or default is False or default == () or callable(default):
        return ""
    return f"`{parameter.opts[0] if default is True else default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


class _Resources(HTMLParser):
    """Collects the URLs that a browser loads when it shows a page; links that a reader may follow do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and (values.get("rel") or "").lower() in _LINKS_THAT_LOAD:
            self.urls.append(values.get("href") or "")
        elif tag in {"script", "img", "iframe", "source", "video", "audio", "embed", "object", "form"}:
            self.urls += [values.get(name) or "" for name in ("src", "srcset", "data", "action", "poster")]


def external_resources(file: Path) -> list[str]:
    """Return the URLs on other hosts that a page or style sheet loads; of other files, none."""
    if file.suffix == ".html":
        parser = _Resources()
        parser.feed(file.read_text(encoding="utf-8"))
        urls = parser.urls
    elif file.suffix == ".css":
        text = file.read_text(encoding="utf-8")
        urls = re.findall(r"url\(\s*['\"]?([^'\")]+)", text) + re.findall(r"@import\s+['\"]([^'\"]+)", text)
    else:
        return []
    return [url for url in urls if re.match(r"(https?:)?//", url, re.IGNORECASE)]
