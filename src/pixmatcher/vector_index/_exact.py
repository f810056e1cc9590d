"""Exact search: the result is that of a comparison with all stored float16 rows.

The cost of a scan is reading memory. So codes of 8 bits a value are scanned, half the size of the stored values, and
the stored values of the best candidates decide about the result. FAISS keeps the codes; `_kernels` scans them, or FAISS
where that is not compiled.

A value is rounded up or down to one of the two nearest codes at random, so that the expected code is the value itself
(stochastic rounding). The errors are therefore independent and mostly cancel out: the error of the score of a row
exceeds `_error_bound` with a probability of 1e-12 (Hoeffding, "Probability inequalities for sums of bounded random
variables", 1963). If the score of the last candidate is lower than the k-th best true score by more than this bound, no
other row can belong to the result. Otherwise the search is repeated with more candidates.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from typing import IO, Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from .._cores import usable_cores
from .._files import Writer
from . import _kernels
from ._scoring import scale_near_one, scan_parts, top_k, true_scores
from .vectors import Float32, RowMask, Rows, VectorFile

_MAX_CODE = 127
_ZERO_CODE = 128
"""The byte that stands for the code 0."""
_HEADROOM = 1.1
"""Range of the codes, as a multiple of the greatest value, so that most new rows fit without new codes for all rows."""
_ERROR_PROBABILITY = 1e-12
_ROUNDING_ERROR = 1e-5
"""Bound of the rounding error of a sum in float32, as a part of the greatest score."""
_MIN_CANDIDATES = 256
_ROWS_PER_THREAD = 16_384
_ROWS_AT_ONCE = 4096

_Bits = npt.NDArray[np.uint8]
_Parts = list[tuple[int, int]]
_Found = tuple[list[tuple[npt.NDArray[np.floating[Any]], Rows]], float]


class ExactIndex:
    """The rows of a vector file as codes of 8 bits in FAISS. A search finds exactly the nearest rows.

    A mapped index is read from its file when it is searched, and cannot be updated.
    """

    name: Final = "exact"
    recall: Final = None

    def __init__(self, vectors: VectorFile) -> None:
        self._vectors = vectors
        self._clear(np.zeros(vectors.dimension, np.float32))

    def _clear(self, units: Float32) -> None:
        """Remove all rows. `units` (D,) is the difference between two successive codes in each dimension."""
        codes = faiss.IndexScalarQuantizer(
            self._vectors.dimension, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT
        )
        # The lowest value and the range of values, such that integers from -128 to 127 are their own codes.
        faiss.copy_array_to_vector(np.array([-128.5, 255], np.float32), codes.sq.trained)
        codes.is_trained = True
        self._index: Any = faiss.IndexIDMap(codes)
        self._units = units
        self._random = np.random.default_rng(0)
        self.mapped = False

    @property
    def rows(self) -> Rows:
        """The rows in the index (N,) int64, in no particular order."""
        rows: Rows = faiss.vector_to_array(self._index.id_map)
        return rows

    def update(self, rows: Rows) -> None:
        """Make the index hold exactly `rows` (N,) int64: remove all others and add the missing ones."""
        missing = np.setdiff1d(rows, self.rows, assume_unique=True)
        if (self._greatest_magnitudes(missing) > _MAX_CODE * self._units).any():
            self._clear(self._greatest_magnitudes(rows) * np.float32(_HEADROOM / _MAX_CODE))
            missing = rows
        surplus = np.setdiff1d(self.rows, rows, assume_unique=True)
        if len(surplus):
            self._index.remove_ids(surplus)
        divisors = np.where(self._units > 0, self._units, np.float32(1))
        for block, values in self._blocks(missing):
            values /= divisors
            values += self._random.random(values.shape, np.float32)
            self._index.add_with_ids(np.floor(values, out=values), block)

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """Return the scores and numbers of the `k` rows with the highest inner product with `query` (D,), best first.

        Fewer are returned if there are fewer. `allowed_rows` (R,) bool limits the search to the rows that are true.
        """
        ids = self.rows
        allowed = ids if allowed_rows is None else ids[allowed_rows[ids]]
        k = min(k, len(allowed))
        if k < 1:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scaled, exponent = scale_near_one(query)
        scores, rows = self._nearest(scaled, k, ids, allowed, allowed_rows)
        return np.ldexp(scores, exponent), rows

    def _nearest(
        self, query: Float32, k: int, ids: Rows, allowed: Rows, allowed_rows: RowMask | None
    ) -> tuple[Float32, Rows]:
        """Return the result of `search`, given that k is at least 1 and the greatest value of the query is about 1.

        `ids` are all rows of the index, `allowed` those of them that are in `allowed_rows`.
        """
        count = max(4 * k, _MIN_CANDIDATES)
        while count < len(allowed) // 8:
            coarse, rows, error = self._scan_codes(query, count, ids, allowed_rows)
            scores = true_scores(self._vectors, query, rows)
            if coarse.min() + error < np.partition(scores, -k)[-k]:
                return top_k(scores, rows, k)
            count *= 4
        blocks = np.array_split(allowed, len(allowed) // _ROWS_AT_ONCE + 1)
        return top_k(np.concatenate([true_scores(self._vectors, query, block) for block in blocks]), allowed, k)

    def save(self, file: Writer) -> None:
        """Write the index to an open file: FAISS's own format, followed by the units as float32."""
        # Given a path, FAISS does not notice that the disk is full when it writes the last bytes.
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        file.write(self._units.astype("<f4").tobytes())

    @classmethod
    def load(cls, file: IO[bytes], vectors: VectorFile, *, mapped: bool) -> ExactIndex:
        """Read what `save` wrote to a file that is open.

        A `mapped` index uses no memory of its own and cannot be updated. Raises `RuntimeError` if FAISS cannot read the
        file, `ValueError` if it is another kind of index.
        """
        index = cls(vectors)
        # FAISS accepts only names in UTF-8, and the path may name a new file meanwhile.
        name = f"/dev/fd/{file.fileno()}"
        try:
            read = faiss.read_index(name, faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except RuntimeError:
            if not mapped:
                raise
            read, mapped = faiss.read_index(name, 0), False  # some network and FUSE disks cannot map files
        file.seek(-4 * vectors.dimension, os.SEEK_END)
        index._units = np.frombuffer(file.read(), "<f4").astype(np.float32)
        if type(read) is not faiss.IndexIDMap or read.d != vectors.dimension or read.id_map.size() != read.ntotal:
            raise ValueError("The file has another kind of index.")
        index._index, index.mapped = read, mapped
        return index

    def _error_bound(self, query: Float32) -> float:
        """Return by how much the true score of a row can exceed the score of its code."""
        magnitudes = np.abs(query) * self._units
        by_coding = math.sqrt(math.log(1 / _ERROR_PROBABILITY) / 2) * float(np.linalg.norm(magnitudes))
        return by_coding + _ROUNDING_ERROR * _MAX_CODE * float(magnitudes.sum())

    def _scan_codes(
        self, query: Float32, count: int, ids: Rows, allowed_rows: RowMask | None
    ) -> tuple[npt.NDArray[np.floating[Any]], Rows, float]:
        """Return the `count` allowed rows with the highest scores by their codes, in no particular order.

        The scores of their codes (N,), the rows (N,), and by how much the true score of a row can exceed that of its
        code.
        """
        bits = None if allowed_rows is None else np.packbits(allowed_rows[ids], bitorder="little")
        scaled = query * self._units
        scan = self._scan_with_kernels if _kernels.available() else self._scan_with_faiss
        # One thread does a part, and a single core cannot read memory at full speed.
        threads = min(usable_cores(), len(ids) // _ROWS_PER_THREAD + 1)
        bounds = np.linspace(0, len(ids), threads + 1).astype(int).tolist()
        found, error = scan(scaled, count, bits, list(itertools.pairwise(bounds)))
        scores = np.concatenate([scores for scores, _ in found])
        positions = np.concatenate([positions for _, positions in found])
        if len(scores) > count:
            kept = np.argpartition(scores, -count)[-count:]
            scores, positions = scores[kept], positions[kept]
        return scores, ids[positions], error + self._error_bound(query)

    def _scan_with_kernels(self, query: Float32, count: int, bits: _Bits | None, parts: _Parts) -> _Found:
        """Return the best scores and positions in each part, and by how much rounding the query changes a score."""
        index: Any = faiss.downcast_index(self._index.index)
        codes = index.codes
        values, step = _kernels.integer_query(query)
        offset = _ZERO_CODE * int(values.sum(dtype=np.int64))

        def scan(part: tuple[int, int]) -> tuple[npt.NDArray[np.float64], Rows]:
            most = min(count, part[1] - part[0])
            scores, positions = _kernels.best_codes(int(codes.data()), *part, values, most, bits)
            return (scores.astype(np.float64) - offset) * step, positions

        return scan_parts(scan, parts), step / 2 * _MAX_CODE * len(values)

    def _scan_with_faiss(self, query: Float32, count: int, bits: _Bits | None, parts: _Parts) -> _Found:
        """Do the same as `_scan_with_kernels`."""
        codes = self._index.index

        def scan(part: tuple[int, int]) -> tuple[Float32, Rows]:
            selector: Any = faiss.IDSelectorRange(*part)
            if bits is not None:
                mask = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
                selector = faiss.IDSelectorAnd(selector, mask)
            selection = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
            scores, positions = codes.search(query[None], min(count, part[1] - part[0]), params=selection)
            found = positions[0] >= 0
            return scores[0][found], positions[0][found]

        return scan_parts(scan, parts), 0.0

    def _greatest_magnitudes(self, rows: Rows) -> Float32:
        """Return the greatest magnitude of the values of `rows` in each dimension (D,)."""
        greatest = np.zeros(self._vectors.dimension, np.float32)
        for _, values in self._blocks(rows):
            np.maximum(greatest, np.abs(values).max(axis=0), out=greatest)
        return greatest

    def _blocks(self, rows: Rows) -> Iterable[tuple[Rows, Float32]]:
        """Yield the rows in blocks, each with its values as float32."""
        for block, stored in self._vectors.stream(rows, _ROWS_AT_ONCE):
            yield block, stored.astype(np.float32)
