"""What to remove if a source, or a folder or file of a folder source, is to be forgotten."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import CollectionError
from ..records import FolderNotes
from ._catalog import Catalog
from ._names import possible_specs, without_file_url


@dataclass(frozen=True)
class ToForget:
    """Sources to remove, and a place to remove from other sources."""

    sources: Sequence[str]
    """The specs of the sources to remove."""
    place: str = ""
    """The folder or file to remove from the sources of `around`."""
    around: Mapping[str, str] = field(default_factory=dict)
    """`place` relative to the folder of each source that has it, by the spec of the source."""

    def count(self, catalog: Catalog) -> int:
        """Return the number of items to remove."""
        condition, values = self._items(catalog)
        return catalog.number(f"SELECT count(*) FROM items WHERE {condition}", *values)

    def remove(self, catalog: Catalog) -> int:
        """Remove them, and note that the other sources must not list the place again; return how many were removed."""
        condition, values = self._items(catalog)
        found = catalog.query(f"SELECT id FROM items WHERE {condition}", *values)
        removed = catalog.remove_items(item_id for (item_id,) in found)
        catalog.connection.execute(f"DELETE FROM failures WHERE {condition}", values)
        for spec in self.sources:
            catalog.remove_source(spec)
        for spec, relative in self.around.items():
            catalog.put_folder_notes(spec, forgetting(catalog.folder_notes(spec), relative))
        return removed

    def _items(self, catalog: Catalog) -> tuple[str, list[object]]:
        """Return the condition of the items, and of the failures, in SQL, and its values."""
        ids = catalog.sources()
        condition = "source_id IN (SELECT value FROM json_each(?))"
        values: list[object] = [json.dumps([ids[spec] for spec in self.sources])]
        if not self.around:
            return condition, values
        below, more = catalog.uris_below(os.path.join(self.place, ""))
        values += [json.dumps([ids[spec] for spec in self.around]), catalog.stored_uri(self.place), *more]
        return f"{condition} OR ({condition} AND (uri = ? OR {below}))", values


def forgetting(notes: FolderNotes, relative: str) -> FolderNotes:
    """Return notes of a folder that also say to leave out a path, relative to it."""
    kept = [path for path in notes.forgotten if not os.path.join(path, "").startswith(f"{relative}/")]
    return replace(notes, forgotten=(*kept, relative))


def find_to_forget(sources: Sequence[str], collection: Path, given: str, count: Callable[[ToForget], int]) -> ToForget:
    """Return what `given` names: one of these sources, or a folder or file of one; `count` counts the items of that.

    Raises `CollectionError` if it is neither.
    """
    named = [spec for spec in sources if spec in possible_specs(given)]
    if named and not os.path.isabs(named[0]):
        return ToForget(named[:1])
    folders = [spec for spec in sources if os.path.isabs(spec)]
    path = without_file_url(given)
    for place in dict.fromkeys([*named, os.path.abspath(path), os.path.realpath(path)] if path else ()):
        inside = os.path.join(place, "")
        below = [spec for spec in folders if spec == place or spec.startswith(inside)]
        around = {
            spec: place[len(os.path.join(spec, "")) :]
            for spec in folders
            if spec != place and place.startswith(os.path.join(spec, ""))
        }
        found = ToForget(below, place, around)
        if place in folders or (around and (os.path.lexists(place) or count(found))):
            return found
    names = ", ".join(sources) or "none"
    raise CollectionError(
        f"{given} is not a source of {collection}, nor in a folder that is one; the sources are: {names}."
    )
