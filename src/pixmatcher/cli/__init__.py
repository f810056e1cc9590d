"""The command line: one module for each group of commands; they read options and print, and hold no logic.

Only the module of the command that is called is imported, and modules of other packages are imported inside the
commands, so that each command starts fast. May import all packages but the other faces, which the commands `app` and
`serve` start.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_MODULES = {
    "index": ("index",),
    "merge": ("merge",),
    "watch": ("watch",),
    "sources": ("sources",),
    "demo": ("demo",),
    "search": ("search", "categories"),
    "maps": ("map",),
    "web_app": ("app",),
    "mcp": ("mcp",),
    "collection": ("info", "verify", "forget", "tune"),
    "upgrade": ("upgrade",),
    "export": ("export",),
    "evaluate": ("evaluate",),
    "models": ("models",),
    "datasets": ("datasets",),
    "serve": ("serve", "tokens"),
}
"""The commands that each module registers when it is imported, in the order in which the help shows them."""


_GC_THRESHOLD = 100_000
"""New objects before Python looks for reference cycles. With its default of 700, that takes a tenth of a search."""


def main() -> None:
    """Run the command line."""
    gc.set_threshold(_GC_THRESHOLD)
    _register_commands(sys.argv[1:])
    from ._app import run

    run()


def complete_app() -> typer.Typer:
    """Return the Typer application with all commands."""
    _register_commands([])
    from ._app import app

    return app


def _register_commands(arguments: Sequence[str]) -> None:
    """Import the module of the command that is called, or all modules if no command is named or it is unknown."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    called = [module for module, commands in _MODULES.items() if command in commands]
    for module in called or _MODULES:
        import_module(f".{module}", __name__)
