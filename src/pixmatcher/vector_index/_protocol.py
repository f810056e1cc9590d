"""The interface of an index, for all kinds."""

from __future__ import annotations

from typing import Protocol, TypeGuard

from .._files import Writer
from .vectors import Float32, RowMask, Rows


class VectorIndex(Protocol):
    """An index of rows of a vector file: exact, trained, or a scan of the rows themselves.

    `new_index`, `new_scan_index`, `rebuild_if_needed` and `load_index` create one.
    """

    @property
    def name(self) -> str:
        """The kind of index: `EXACT`, `TRAINED` or `SCAN`."""

    @property
    def rows(self) -> Rows:
        """The rows in the index (N,) int64, in no particular order."""

    @property
    def recall(self) -> float | None:
        """The measured recall@10 (0 to 1); None if the index is exact."""

    @property
    def mapped(self) -> bool:
        """Whether the index is memory-mapped from its file: it uses no memory of its own and cannot be updated."""

    def update(self, rows: Rows) -> None:
        """Make the index hold exactly `rows` (N,) int64: remove all others and add the missing ones."""

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """Return the scores and numbers of the `k` rows with the highest inner product with `query` (D,) float32.

        The best comes first; rows with equal scores come in ascending order. Fewer than `k` are returned if there are
        fewer. `allowed_rows` (R,) bool limits the search to the rows for which it is true; do not change it afterwards.
        """


class SavableIndex(VectorIndex, Protocol):
    """An index that can be written to a file."""

    def save(self, file: Writer) -> None:
        """Write the index to an open file."""


def is_savable(index: VectorIndex) -> TypeGuard[SavableIndex]:
    """Return whether an index can be written to a file: all can except a scan, which has nothing but the rows."""
    return hasattr(index, "save")
