"""Which calibration turns the scores of a query into probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..encoders import recorded_calibrations

if TYPE_CHECKING:
    from ..collection import Store
    from ..encoders import Runtime
    from ..records import Calibration, Calibrations, QueryKind


def calibration_of(
    collection: Store, space: str, kind: QueryKind | None, runtime: Runtime | None = None
) -> Calibration | None:
    """Return the calibration of the scores of a kind of query in a space: the collection's own, else the encoder's.

    None if there is neither, or `kind` is None: a weighted sum of text and image has scores of another scale.
    """
    if kind is None:
        return None
    own: Callable[[], Calibrations] | None = getattr(collection, "calibrations", None)
    if own is not None and (found := own().get(space, {}).get(kind)) is not None:
        return found
    for record in collection.encoders:
        if any(each.name == space for each in record.spaces):
            return recorded_calibrations(record, runtime).get(space, {}).get(kind)
    return None  # a store need not name an encoder for a search by its own embeddings
