"""Inverted lists of 4-bit codes in FAISS: the data structure of a trained index, and its part of the index file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

import faiss
import numpy as np
import numpy.typing as npt

from .._files import Writer
from .._progress import Progress, ProgressCallback
from . import _kernels
from ._scoring import one_thread, top_k, true_scores
from ._target import MAX_CODED_VALUES
from .vectors import Float32, RowMask, Rows, VectorFile

Sizes = npt.NDArray[np.int64]

MAX_FLAT_LISTS = 1024
"""With more lists, shortcuts are taken to compute the centres, and to find the centre nearest to a row."""
_MAIN_AXES = 128
"""Number of principal axes along which the nearest centres are searched first."""
_BITS = 4
_ROWS_AT_ONCE = 4096
"""Rows that are not stored side by side are read and converted in blocks of so many."""


@dataclass(frozen=True)
class AllowedRows:
    """The allowed rows of a search, prepared once and kept for the next search with the same mask.

    `rows` (N,) are ascending, `in_lists` (L,) is how many of them each list has. `bits` is the mask in bits, the
    lowest of a byte first, and `selector` the same for FAISS, which points into `bits`.
    """

    mask: RowMask
    rows: Rows
    in_lists: Sizes
    selector: Any
    bits: npt.NDArray[np.uint8]


class InvertedLists:
    """Rows in lists around centres, as codes of 4 bits for two values, relative to the centre of their list.

    With `axes` (d, D), a row is projected on these axes before it is coded; without, its own values are coded.
    """

    def __init__(self, index: Any, axes: Float32 | None) -> None:
        """Wrap a trained `faiss.IndexIVFPQFastScan` of dimension d."""
        self._index = index
        self.axes = axes
        self.sizes: Sizes
        """Rows in each list (L,)."""
        self._native: _kernels.CodedLists | None
        """The lists for the code in C; None where FAISS searches them."""
        self._ends: Rows
        """The lowest and the highest of the rows, if the code in C searches them."""
        self._list_of_row: npt.NDArray[np.int32] | None
        self._read_contents()

    @property
    def count(self) -> int:
        """The number of lists L."""
        return int(self._index.nlist)

    @property
    def row_count(self) -> int:
        """The number of rows in all lists."""
        return int(self._index.ntotal)

    @property
    def coded_values(self) -> int:
        """The number of values d of a row that are coded."""
        return int(self._index.d)

    @property
    def rows(self) -> Rows:
        """The rows in all lists (N,) int64, in no particular order."""
        rows: Rows = np.concatenate([rows for _, rows in self.contents()])
        return rows

    def contents(self) -> Iterator[tuple[int, Rows]]:
        """Yield the number of each list and its rows, as a view that is valid until the next change."""
        lists = self._index.invlists
        for number, size in enumerate(self.sizes.tolist()):
            yield number, faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)

    def remove(self, rows: Rows) -> None:
        """Remove rows (N,) from the lists."""
        if len(rows):
            self._index.remove_ids(rows)
            self._read_contents()

    def add(self, vectors: VectorFile, rows: Rows, progress: ProgressCallback | None = None) -> None:
        """Add rows (N,), ascending, to the lists of the centres that are nearest to them."""
        if not len(rows):
            return
        quantizer = self._index.quantizer
        # A row belongs to the list of its nearest centre, while a query visits the lists with the highest products.
        nearest = nearest_centres(self._index, len(rows))
        self._index.quantizer = nearest
        try:
            done = 0
            for block, stored in vectors.stream(rows):
                self._index.add_with_ids(project(stored.astype(np.float32), self.axes), block)
                done += len(block)
                if progress:
                    progress(Progress("Building the index", done, len(rows), "rows"))
        finally:
            self._index.quantizer = quantizer
            nearest.this.own(True)  # SWIG gives away what is assigned to an attribute, and would never free it
        self._read_contents()

    def centre_scores(self, projected: Float32) -> Float32:
        """Return the inner products (L,) of the centres of all lists with a query (1, d) along the axes."""
        if self._native is not None:
            return _kernels.centre_scores(self._native, projected[0])
        with one_thread():
            found, order = self._index.quantizer.search(projected, self.count)
        scores = np.full(self.count, -np.inf, np.float32)
        scores[order[0][order[0] >= 0]] = found[0][order[0] >= 0]
        return scores

    def search(
        self,
        vectors: VectorFile,
        query: Float32,
        projected: Float32,
        centre_scores: Float32,
        k: int,
        *,
        lowest: float,
        candidates: int,
        allowed: AllowedRows | None = None,
    ) -> tuple[Float32, Rows]:
        """Return the scores and numbers of the `k` rows nearest to a query (D,), best first; fewer if fewer are found.

        The rows are in the lists whose centres have the score `lowest` or a higher one; the stored values of the
        `candidates` with the best codes are compared.
        `projected` (1, d) is the query along the axes, and `centre_scores` (L,) are those of `projected`.
        """
        if self._native is not None:
            bits = (allowed.bits, len(allowed.mask)) if allowed else None
            compared = (vectors.view(self._ends)[0], vectors.first_row, query)
            where = (self._native, projected[0], centre_scores, lowest, candidates, k)
            return _kernels.search_lists(*where, compared=compared, allowed=bits)
        found = self._faiss_candidates(projected, centre_scores, lowest, candidates, allowed)
        return top_k(true_scores(vectors, query, found), found, min(k, len(found)))

    def candidates(self, projected: Float32, centre_scores: Float32, lowest: float, count: int) -> Rows:
        """Return up to `count` rows of the lists as in `search`, best first by their codes."""
        if self._native is not None:
            return _kernels.search_lists(self._native, projected[0], centre_scores, lowest, count, count)[1]
        return self._faiss_candidates(projected, centre_scores, lowest, count)

    def _faiss_candidates(
        self,
        projected: Float32,
        centre_scores: Float32,
        lowest: float,
        count: int,
        allowed: AllowedRows | None = None,
    ) -> Rows:
        lists = int(np.count_nonzero(centre_scores >= np.float32(lowest)))
        parameters = _parameters(lists, allowed.selector) if allowed else _cached_parameters(lists)
        with one_thread():
            _, places = self._index.search(projected, count, params=parameters)
        found: Rows = places[0][places[0] >= 0]
        return found

    def list_of_row(self) -> npt.NDArray[np.int32]:
        """Return the list of each row (R,) by its number; -1 for numbers that no row has."""
        if self._list_of_row is None:
            contents = list(self.contents())
            size = max((int(rows.max()) + 1 for _, rows in contents if len(rows)), default=0)
            found = np.full(size, -1, np.int32)
            for number, rows in contents:
                found[rows] = number
            self._list_of_row = found
        return self._list_of_row

    def save(self, file: Writer) -> None:
        """Write the lists to an open file: FAISS's own format, followed by the axes as float32."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        if self.axes is not None:
            file.write(self.axes.astype("<f4").tobytes())

    @classmethod
    def load(cls, file: IO[bytes], end: int, dimension: int) -> InvertedLists:
        """Read what `save` wrote, up to the position `end` of an open file, for rows of `dimension` values.

        Raises `RuntimeError` if FAISS cannot read it, `ValueError` if it is another kind of index.
        """
        index: Any = faiss.read_index(f"/dev/fd/{file.fileno()}")
        if type(index) is not faiss.IndexIVFPQFastScan:
            raise ValueError("The file has another kind of index.")
        axes = None
        if index.d != dimension:
            size = 4 * index.d * dimension
            file.seek(end - size)
            axes = np.frombuffer(file.read(size), "<f4").astype(np.float32).reshape(index.d, dimension)
            if not np.isfinite(axes).all():
                raise ValueError("The file has no axes.")
        loaded = cls(index, axes)
        lists: Any = index.invlists
        if (
            {index.quantizer.d, index.pq.d, 2 * index.pq.M} != {index.d}
            or index.d > MAX_CODED_VALUES  # which the code in C has room for
            or {index.quantizer.ntotal, lists.nlist} != {index.nlist}
            or (index.metric_type, index.quantizer.metric_type) != (faiss.METRIC_INNER_PRODUCT,) * 2
            or (index.pq.nbits, index.bbs, index.is_trained, index.by_residual) != (_BITS, 32, True, True)
            or loaded.sizes.sum() != index.ntotal
        ):
            raise ValueError("The file has another kind of index.")
        return loaded

    def _read_contents(self) -> None:
        """Read the sizes and addresses of the lists, which each change of them changes."""
        lists, numbers = self._index.invlists, range(self._index.nlist)
        self._list_of_row = None
        self.sizes = np.array([lists.list_size(number) for number in numbers], dtype=np.int64)
        self._native = None
        if self.row_count and _kernels.available():
            centres = self._index.quantizer.reconstruct_n(0, self.count)
            books = faiss.vector_to_array(self._index.pq.centroids).reshape(self.coded_values // 2, -1, 2)
            filled = self.sizes.tolist()  # FAISS has no addresses for what an empty list holds
            codes, rows = (
                [int(get(number)) if size else 0 for number, size in enumerate(filled)]
                for get in (lists.get_codes, lists.get_ids)
            )
            self._native = _kernels.coded_lists(centres, books, codes, rows, self.sizes)
            ends = [(each.min(), each.max()) for _, each in self.contents() if len(each)]
            self._ends = np.array([min(low for low, _ in ends), max(high for _, high in ends)])


def new_faiss_index(centres: Float32) -> Any:
    """Return a FAISS index with lists around `centres` (L, d), whose codes have yet to be trained."""
    count, width = centres.shape
    quantizer: Any = faiss.IndexFlatIP(width)
    quantizer.add(centres)
    index: Any = faiss.IndexIVFPQFastScan(quantizer, width, count, width // 2, _BITS, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    return index


def nearest_centres(index: Any, row_count: int) -> Any:
    """Return a FAISS index of the centres of `index`, to find the centre that is nearest to each of `row_count` rows.

    Thousands of centres are compared along the main axes only, and the nearest of these in full: 97 % of the results
    are the nearest centre and the others almost, in half the time. A graph (HNSW) takes as long, and leaves lists that
    are never found. For few rows it is not worth computing the axes.
    """
    centres = index.quantizer.reconstruct_n(0, index.nlist)
    nearest: Any = faiss.IndexFlatL2(index.d)
    if row_count > len(centres) > MAX_FLAT_LISTS and index.d > _MAIN_AXES:
        axes: Any = faiss.PCAMatrix(index.d, _MAIN_AXES)
        axes.train(centres)
        nearest = faiss.IndexRefineFlat(faiss.IndexPreTransform(axes, faiss.IndexFlatL2(_MAIN_AXES)))
        nearest.k_factor = 4
    nearest.add(centres)
    return nearest


def lowest_within(centre_scores: Float32, reach: float) -> float:
    """Return the lowest score that a centre within the reach of a query has, given the scores (L,) of all centres.

    The highest score has the distance 0 and the mean score the distance 1. A query between many lists so visits more
    of them than one that is near a single centre (Chen et al., "SPANN", 2021, 3.3).
    """
    if _kernels.available():
        return _kernels.lowest_within(centre_scores, reach)
    highest = float(centre_scores.max())
    return highest - reach * (highest - float(centre_scores.mean(dtype=np.float64)))


def project(values: Float32, axes: Float32 | None) -> Float32:
    """Return `values` (N, D) along `axes` (d, D), as (N, d); without axes, the values themselves."""
    return values if axes is None else np.ascontiguousarray(values @ axes.T)


def read_projected(vectors: VectorFile, rows: Rows, axes: Float32 | None = None) -> Float32:
    """Return the stored rows (N,), ascending, as (N, D) float32; with `axes` (d, D) along these, as (N, d)."""
    values = np.empty((len(rows), vectors.dimension if axes is None else len(axes)), np.float32)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        values[block] = project(vectors.read_unmapped(rows[block]).astype(np.float32), axes)
    return values


def _parameters(lists: int, selector: Any = None) -> Any:
    return faiss.SearchParametersIVF(nprobe=lists, sel=selector)  # type: ignore[call-arg]


_cached_parameters = lru_cache(maxsize=64)(_parameters)
"""Parameters with a selector are not cached: the selector keeps a mask of all rows in memory."""
