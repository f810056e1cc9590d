"""Exact search: every row counts, and the hits are those of a full comparison in the stored float16.

Reading memory is what a scan costs, so FAISS scans codes of 8 bits a value, half of what is stored, and the stored rows
decide among the candidates. A value becomes one of the two nearest codes, by chance and so that the mean is the value
itself. The errors are therefore independent and add up to little: the score of a row is off by more than `_reach` with
a chance of 1e-12 (Hoeffding, "Probability inequalities for sums of bounded random variables", 1963). Once the
candidates go further down than that below the k-th best true score, no other row can belong to the hits; until then,
more candidates are taken.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from typing import IO, Any, Final

import faiss
import numpy as np

from .._cores import usable_cores
from .._files import Writer
from ._scan import best, near_one, scan_pool, true_scores
from .vectors import Float32, RowMask, Rows, VectorFile

_GREATEST_CODE = 127
_HEADROOM = 1.1
"""The range of the codes beyond the greatest value, so that not each new row asks for new ones."""
_CHANCE = 1e-12
_ROUNDING = 1e-5
"""What a sum in float32 may be off by, as a share of the greatest score."""
_CANDIDATES = 256
_ROWS_A_THREAD = 16_384


class ExactIndex:
    """The rows of a vector file as 8-bit codes in FAISS, with what it takes to search exactly.

    A mapped index lies in its file and cannot be updated.
    """

    name: Final = "exact"
    recall: Final = None

    def __init__(self, vectors: VectorFile) -> None:
        self._vectors = vectors
        self._clear(np.zeros(vectors.dimension, np.float32))

    def _clear(self, units: Float32) -> None:
        """Hold nothing. `units` (dimension,) is the difference between two codes in each dimension."""
        codes = faiss.IndexScalarQuantizer(
            self._vectors.dimension, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT
        )
        # The least value and the range: so whole numbers from -128 to 127 are their own codes.
        faiss.copy_array_to_vector(np.array([-128.5, 255], np.float32), codes.sq.trained)
        codes.is_trained = True
        self._index: Any = faiss.IndexIDMap(codes)
        self._units = units
        self._random = np.random.default_rng(0)
        self.mapped = False

    @property
    def rows(self) -> Rows:
        """The rows it holds (N,) int64, in no particular order."""
        rows: Rows = faiss.vector_to_array(self._index.id_map)
        return rows

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows: take out what is not among them, add what is missing."""
        missing = np.setdiff1d(rows, self.rows, assume_unique=True)
        if (self._greatest(missing) > _GREATEST_CODE * self._units).any():
            self._clear(self._greatest(rows) * np.float32(_HEADROOM / _GREATEST_CODE))
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
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer.

        With `allowed_rows` (rows,) bool, only the rows that are true there.
        """
        ids = self.rows
        chosen = ids if allowed_rows is None else ids[allowed_rows[ids]]
        k = min(k, len(chosen))
        if k < 1:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scaled, exponent = near_one(query)
        scores, rows = self._nearest(scaled, k, ids, chosen, allowed_rows)
        return np.ldexp(scores, exponent), rows

    def _nearest(
        self, query: Float32, k: int, ids: Rows, chosen: Rows, allowed_rows: RowMask | None
    ) -> tuple[Float32, Rows]:
        """As `search`, for 1 or more rows and a query whose greatest value is about 1.

        `ids` are all rows that the index holds, `chosen` those of them in `among`.
        """
        wanted = max(4 * k, _CANDIDATES)
        while wanted < len(chosen) // 8:
            coarse, rows = self._scan_codes(query, wanted, ids, allowed_rows)
            scores = true_scores(self._vectors, query, rows)
            if coarse.min() + self._reach(query) < np.partition(scores, -k)[-k]:
                return best(scores, rows, k)
            wanted *= 4
        blocks = np.array_split(chosen, len(chosen) // 4096 + 1)
        return best(np.concatenate([true_scores(self._vectors, query, block) for block in blocks]), chosen, k)

    def save(self, file: Writer) -> None:
        """Write the index to an open file: FAISS's own format, and the units behind it."""
        # Given a path, FAISS overlooks that the last of what it wrote found no room.
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        file.write(self._units.astype("<f4").tobytes())

    @classmethod
    def load(cls, file: IO[bytes], vectors: VectorFile, *, mapped: bool) -> ExactIndex:
        """Read an open file written by `save`; mapped, it costs no memory of its own but cannot be updated.

        Raises `RuntimeError` if FAISS cannot read it, `ValueError` if it is of another kind.
        """
        index = cls(vectors)
        # FAISS takes no name that is not UTF-8, and the name may be of another file by now.
        read = faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        file.seek(-4 * vectors.dimension, os.SEEK_END)
        index._units = np.frombuffer(file.read(), "<f4").astype(np.float32)
        if type(read) is not faiss.IndexIDMap or read.d != vectors.dimension or read.id_map.size() != read.ntotal:
            raise ValueError("the file holds another kind of index")
        index._index, index.mapped = read, mapped
        return index

    def _reach(self, query: Float32) -> float:
        """By how much the true score of a row can exceed the score of its code."""
        magnitudes = np.abs(query) * self._units
        by_chance = math.sqrt(math.log(1 / _CHANCE) / 2) * float(np.linalg.norm(magnitudes))
        return by_chance + _ROUNDING * _GREATEST_CODE * float(magnitudes.sum())

    def _scan_codes(self, query: Float32, wanted: int, ids: Rows, allowed_rows: RowMask | None) -> tuple[Float32, Rows]:
        """The `wanted` rows, of those in `among`, that score highest by their codes, in no particular order."""
        codes = self._index.index
        bits = None if allowed_rows is None else np.packbits(allowed_rows[ids], bitorder="little")
        scaled = (query * self._units)[None, :]
        # FAISS uses one thread a query, and one core alone cannot read memory at its full speed.
        threads = min(usable_cores(), len(ids) // _ROWS_A_THREAD + 1)
        bounds = np.linspace(0, len(ids), threads + 1).astype(int).tolist()

        def scan(part: tuple[int, int]) -> tuple[Float32, Rows]:
            selector: Any = faiss.IDSelectorRange(*part)
            if bits is not None:
                chosen = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
                selector = faiss.IDSelectorAnd(selector, chosen)
            selection = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
            scores, positions = codes.search(scaled, min(wanted, part[1] - part[0]), params=selection)
            found = positions[0] >= 0
            return scores[0][found], ids[positions[0][found]]

        parts = list(itertools.pairwise(bounds))
        found = list(scan_pool().map(scan, parts))
        scores = np.concatenate([scores for scores, _ in found])
        rows = np.concatenate([rows for _, rows in found])
        if len(scores) > wanted:
            kept = np.argpartition(scores, -wanted)[-wanted:]
            scores, rows = scores[kept], rows[kept]
        return scores, rows

    def _greatest(self, rows: Rows) -> Float32:
        """The greatest magnitude in each dimension (dimension,)."""
        greatest = np.zeros(self._vectors.dimension, np.float32)
        for _, values in self._blocks(rows):
            np.maximum(greatest, np.abs(values).max(axis=0), out=greatest)
        return greatest

    def _blocks(self, rows: Rows) -> Iterable[tuple[Rows, Float32]]:
        for block, stored in self._vectors.stream(rows, 4096):
            yield block, stored.astype(np.float32)
