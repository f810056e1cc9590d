"""The structure of the package: who may import whom, read from the imports in the source files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pixmatcher

ROOT = Path(pixmatcher.__file__).parent

EVERYWHERE = {
    "errors",
    "records",
    "_plots",
    "_plugins",
    "_version",
    "_files",
    "_text",
    "_user_folders",
    "_urls",
    "_cores",
    "_lazy",
    "_libraries",
    "_locks",
    "_logging",
    "_progress",
}
"""Modules outside the packages that every package may import."""

MAY_IMPORT: dict[str, set[str]] = {
    "images": set(),
    "net": set(),
    "vector_index": set(),
    "encoders": {"images", "net"},
    "sources": {"images", "net", "encoders"},
    "collection": {"vector_index"},
    "indexing": {"images", "net", "encoders", "sources", "collection"},
    "searching": {"images", "net", "encoders", "sources", "collection"},
}
MAY_IMPORT["client"] = {"images", "net", "encoders", "sources", "collection", "indexing", "searching"}
MAY_IMPORT["milvus"] = {"collection"}
LIBRARY = {*MAY_IMPORT, "evaluation", "maps", "export", "datasets"}
MAY_IMPORT |= {name: LIBRARY - {name} for name in ("evaluation", "maps", "export", "datasets")}
FACES = {"cli", "web", "server"}
MAY_IMPORT |= dict.fromkeys(FACES, LIBRARY)

STARTED_BY_COMMANDS = ("pixmatcher.web", "pixmatcher.server")
"""The only imports of one face by another: the commands `app`, `serve` and `mcp` start the other faces."""


def modules() -> dict[str, Path]:
    """Each module of the package by its name."""
    return {
        ".".join(("pixmatcher", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }


def imports() -> Iterator[tuple[str, str]]:
    """Pairs of a module and a module that it imports, also inside functions, but not for type checking alone."""
    known = modules()
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_types = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if id(node) in for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names if alias.name in known)
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")
                start = parts[: len(parts) - node.level + 1] if node.level else []
                module = ".".join([*start, *([node.module] if node.module else [])])
                for alias in node.names:
                    imported = f"{module}.{alias.name}"
                    if imported in known or module in known:
                        yield name, imported if imported in known else module


def package_of(module: str) -> str:
    """Return the package of a module, or the module itself if it is outside the packages."""
    return module.split(".")[1] if "." in module else "pixmatcher"


def test_packages_import_only_what_they_may() -> None:
    wrong = set()
    for importer, imported in imports():
        package, other = package_of(importer), package_of(imported)
        if package == other or other in EVERYWHERE or package in ("pixmatcher", "__main__"):
            continue
        if package == "cli" and imported.startswith(STARTED_BY_COMMANDS):
            continue
        if other not in MAY_IMPORT.get(package, set()):
            wrong.add(f"{importer} imports {imported}")
    assert not wrong, "\n".join(sorted(wrong))


def test_every_package_has_its_rule() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(MAY_IMPORT)
    beside = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert beside == EVERYWHERE


def test_packages_say_what_they_are_for_and_what_they_may_import() -> None:
    for name in MAY_IMPORT:
        docstring = ast.get_docstring(ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8")))
        assert "May import" in (docstring or ""), name


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for importer, imported in imports():
        graph.setdefault(importer, set()).add(imported)
    done: set[str] = set()
    circles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            circles.append(" -> ".join((*path[path.index(module) :], module)))
        elif module not in done:
            for imported in sorted(graph.get(module, set()) - {module}):
                visit(imported, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
    assert not circles, "\n".join(circles)


def test_only_the_collection_uses_its_catalog() -> None:
    users = [
        f"{name}:{number}"
        for name, path in modules().items()
        if package_of(name) != "collection"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if ".catalog" in line or "._catalog" in line
    ]
    assert not users, "\n".join(users)


def test_a_private_module_is_imported_by_its_own_package_alone() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in imports()
        for position, part in enumerate(imported.split("."))
        if part.startswith("_")
        and position > 1
        and not f"{importer}.".startswith(".".join(imported.split(".")[:position]) + ".")
    ]
    assert not wrong, "\n".join(wrong)


UNCLEAR_WORDS = {
    "anew": "again",
    "lies": "is stored",
    "mend": "repair",
    "shelf": "collection list",
    "told": "reported",
    "whoever": "the process that",
}
"""Words that readers did not understand at the first reading, and one that they do."""


def test_names_comments_messages_and_documents_use_plain_words() -> None:
    files = [path for ending in ("*.py", "*.js", "*.html") for path in ROOT.rglob(ending)]
    checkout = Path(__file__).parents[1]
    files += [*checkout.glob("*.md"), *checkout.glob("docs/**/*.md")]
    pattern = re.compile(rf"(?<![A-Za-z])({'|'.join(UNCLEAR_WORDS)})(?![a-z])", re.IGNORECASE)
    found = [
        f"{path.name}:{number}: write {UNCLEAR_WORDS[match[1].lower()]!r} instead of {match[1]!r}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        for match in pattern.finditer(line)
    ]
    assert not found, "\n".join(found)
