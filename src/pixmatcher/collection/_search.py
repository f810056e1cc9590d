"""Search among the items of a collection: the nearest ones of a vector, and the nearest ones that have a label."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import CollectionError
from ._catalog import Catalog
from ._indexes import SpaceIndexes
from ._rows import RowProperties
from .filters import Filter
from .items import Hit, Neighbour


def nearest_items(
    catalog: Catalog,
    indexes: SpaceIndexes,
    properties: RowProperties,
    query: npt.NDArray[np.float32],
    space: str,
    *,
    k: int,
    min_score: float | None,
    filter: Filter | None,
    exact: bool,
) -> list[Hit]:
    """Return the k items of the highest inner product with query (dimension,), best first; see `Collection.search`."""
    with catalog.reading() as generation:
        index = indexes.current(space, generation, exact=exact)
        allowed_rows = None if filter is None or filter.empty else properties.mask(filter)
        count = k
        # Among items with the score of the last hit, the lowest ids are returned, so all of these items are needed.
        while True:
            scores, rows = index.search(query, count + 1, allowed_rows)
            if len(rows) <= count or scores[count] < scores[k - 1]:
                break
            count *= 4
        items = catalog.items_by_row(rows.tolist())
    if len(items) < len(rows):
        raise CollectionError(
            f"The index of the space {space} is damaged", f"run `pixmatcher verify --repair -c {catalog.path.parent}`."
        )
    found = [
        (score, items[row])
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
        if min_score is None or score >= min_score
    ]
    found.sort(key=lambda pair: (-pair[0], pair[1].id))
    return [Hit(rank, score, item) for rank, (score, item) in enumerate(found[:k], start=1)]


def nearest_labelled_items(
    catalog: Catalog,
    indexes: SpaceIndexes,
    properties: RowProperties,
    query: npt.NDArray[np.float32],
    space: str,
    *,
    k: int,
    labels: int,
) -> list[Neighbour]:
    """Return the k nearest items that have a label, best first; see `Collection.nearest_labelled`."""
    with catalog.reading() as generation:
        known = properties.labels()
        index = indexes.current(space, generation)
        allowed_rows = known.codes >= 0
        scores, rows = index.search(query, k, allowed_rows)
        while True:
            seen, first = np.unique(known.codes[rows], return_index=True)
            allowed_rows = allowed_rows & ~np.isin(known.codes, seen)
            if len(seen) >= labels or not allowed_rows.any():
                break
            more_scores, more = index.search(query, k, allowed_rows)
            nearest = np.sort(np.unique(known.codes[more], return_index=True)[1])
            scores, rows = np.append(scores, more_scores[nearest]), np.append(rows, more[nearest])
        items = catalog.items_by_row(rows[first].tolist())
    first_of_label = {int(position): items[int(rows[position])] for position in first}
    pairs = zip(known.codes[rows].tolist(), scores.tolist(), strict=True)
    return [Neighbour(known.names[code], score, first_of_label.get(n)) for n, (code, score) in enumerate(pairs)]
