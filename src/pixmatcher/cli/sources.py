"""The command that shows what can be indexed: sources."""

from __future__ import annotations

from ._app import command


@command("sources")
def sources_command() -> None:
    """Show the kinds of sources that can be indexed, with an example of each."""
    from ..sources import source_kinds

    for kind in source_kinds():
        print(f"{kind.prefix:<15}{kind.description}\n{'':<15}pixmatcher index {kind.example}")
