"""The command that shows what can be indexed: sources."""

from __future__ import annotations

from ._app import INDEX, command
from ._output import print_entries


@command("sources", example="pixmatcher sources", panel=INDEX)
def sources_command() -> None:
    """Show the kinds of sources that can be indexed, with an example of each."""
    from ..sources import source_kinds

    print_entries([(kind.prefix, [kind.description], f"pixmatcher index {kind.example}") for kind in source_kinds()])
