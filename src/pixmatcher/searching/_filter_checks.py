"""Whether the labels and the folder of a filter occur in a collection."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .._urls import is_url
from ..errors import QueryError
from ._answering import answers_queries

if TYPE_CHECKING:
    from ..collection import Filter, Store

_NAMES_SHOWN = 3


def check_filter(collection: Store, filter: Filter | None, *, look_at_disk: bool = True) -> None:
    """Raise `QueryError` if no item of a collection has one of the labels of a filter, or is in its folder.

    The message suggests the most similar names that occur. In an empty collection, nothing is checked. The folder is
    not checked in a store of another package without the methods `has_items_in` and `item_folders` of `Collection`.
    With `look_at_disk`, the message also says whether the folder exists, which is for the users of this machine alone.
    """
    if filter is None or not len(collection):
        return
    for label in filter.labels or ():
        if not collection.labels_called([label]):
            raise QueryError(f"No image in this collection has the label {label!r}: {_label_advice(collection, label)}")
    has_items_in: Callable[[str], bool] | None = getattr(collection, "has_items_in", None)
    if filter.folder is not None and has_items_in is not None and not has_items_in(filter.folder):
        here = look_at_disk and not answers_queries(collection)  # else on another machine
        raise QueryError(_no_folder(collection, filter.folder, here))


def _label_advice(collection: Store, label: str) -> str:
    names = [name for joined in collection.label_names().values() for name in joined.split(", ")]
    similar = _similar(label, names)
    return f"did you mean {similar}?" if similar else "give the label or its name as the source has it."


def _no_folder(collection: Store, folder: str, look_at_disk: bool) -> str:
    """Return the message that a folder has no images of the collection."""
    where = "No image in this collection is in"
    if is_url(folder):
        problem = f"{where} {folder}"
    elif not look_at_disk:
        problem = f"{where} the folder {folder!r}"
    elif not os.path.lexists(folder):
        problem = f"There is no folder {folder!r}, and no image in this collection is in it"
    elif os.path.isdir(folder):
        problem = f"{where} the folder {folder!r}"
    else:
        problem = f"{folder!r} is not a folder"
    folders: Iterable[str] = getattr(collection, "item_folders", list)()
    if similar := _similar_folders(folder, folders):
        return f"{problem}: did you mean {similar}?"
    return f"{problem}: give a folder of its images, such as {min(folders, key=len)!r}." if folders else f"{problem}."


def _similar_folders(folder: str, folders: Iterable[str]) -> str:
    """Return those folders with the most similar name; the name is compared first, because most begin the same."""
    name = os.path.basename(folder)
    of_name: dict[str, list[str]] = {}
    for each in folders:
        of_name.setdefault(os.path.basename(each), []).append(each)
    found = [path for close in _closest(name, of_name) for path in sorted(of_name[close], key=len)]
    return " or ".join(map(repr, found[:_NAMES_SHOWN]))


def _similar(name: str, names: Iterable[str]) -> str:
    """Return the names that are most similar to one, joined by "or"; "" if none is similar."""
    return " or ".join(map(repr, _closest(name, names)))


def _closest(name: str, names: Iterable[str]) -> list[str]:
    from difflib import get_close_matches

    plain = {each.casefold(): each for each in names}
    return [plain[close] for close in get_close_matches(name.casefold(), plain, _NAMES_SHOWN, 0.7)]
