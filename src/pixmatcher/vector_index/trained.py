"""Trained search: rows lie in lists of neighbours, of which a query looks at the nearest few.

The rows of a list are codes of 4 bits for two values (Jégou et al., "Product quantization for nearest neighbor search",
2011; André et al., "Quicker ADC", 2019), relative to the centre of the list. The stored float16 rows decide among the
candidates, so the scores that come back are the true ones. How many lists are looked at, and how many candidates are
taken, is measured: queries made from the collection's own rows are held against an exact comparison.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any, Final

import faiss
import numpy as np
import numpy.typing as npt

from .._files import Writer
from ._protocol import StageProgress
from ._scan import best, inner_products, near_one, scan, true_scores
from ._target import MEASURED_K, Calibration, IndexTarget, OperatingPoint, coded_values
from .vectors import Float32, RowMask, Rows, VectorFile

_BITS = 4
_SAMPLE_PER_LIST = 40
_MOST_FLAT_LISTS = 1024
"""Where there are more, shortcuts are taken to make the centres, and to find the one nearest to a row."""
_MAIN_AXES = 128
"""The nearest centres are looked for along so many principal axes first."""
_CODEBOOK_SAMPLE = 4096
_CANDIDATES_OF_CHOSEN = 200
"""At least so many among chosen rows, which may be far from the query, where codes tell less."""
_QUERIES = 600
_CANDIDATES = (32, 40, 50, 70, 100, 200, 400, 800)
_FEW_MORE = 0.01
"""Where so few more hits a query come with each doubling of the candidates, still more are not tried."""
NO_ROW = -2
"""Unlike -1, which stands where FAISS found nothing."""
_AS_NEAR = 20
"""Rows beyond the nearest that are looked at for others that are as near, such as copies of an image."""
_AT_ONCE = 4096
"""Rows that do not lie together are read and converted by so many."""
_OUTGROWN = 2
_TEXT_MISSES = 0.4
"""In the semantic space of `lite`, 20,000 images: where made queries find 0.975 of theirs, label names find 0.95."""
_MEASURE_AGAIN = 0.1
"""The share of rows that may come or go before the operating point is measured again."""
_CODE_COST = 1 / 192
_CANDIDATE_COST = 150
_ROW_COST = 25
"""What is read for one code of a value, one candidate and one row that is compared exactly, relative to one another."""


@dataclass(frozen=True)
class _Selection:
    """What is known of a mask of rows: how many of the rows held it has, in all and in each list, and FAISS's form."""

    mask: RowMask
    rows: Rows
    in_lists: npt.NDArray[np.int64]
    selector: Any
    bits: npt.NDArray[np.uint8]  # the selector only points to them


class TrainedIndex:
    """The rows of a vector file in inverted lists of 4-bit codes, searched until a wanted recall."""

    name: Final = "trained"
    mapped: Final = False

    def __init__(self, vectors: VectorFile, index: Any, axes: Float32 | None, measured: Calibration) -> None:
        """For `train` and `load`. `axes` (d, dimension) are what codes are made along; without, the values as such."""
        self._vectors = vectors
        self._index = index
        self._axes = axes
        self._list_sizes = _list_sizes(index)
        self._lists: npt.NDArray[np.int32] | None = None
        self._selection: _Selection | None = None
        self.calibration = measured

    @classmethod
    def train(
        cls,
        vectors: VectorFile,
        rows: Rows,
        target: IndexTarget,
        *,
        text: bool = False,
        progress: StageProgress | None = None,
    ) -> TrainedIndex:
        """Make an index of the given rows (N,), ascending, for a target; `text` as of `measure`."""
        tell = progress or (lambda *_: None)
        random = np.random.default_rng(0)
        lists = _list_count(len(rows))
        width = coded_values(vectors.dimension, len(rows), target)
        chosen = np.sort(random.choice(rows, min(len(rows), lists * _SAMPLE_PER_LIST), replace=False))
        tell("Training the index", 0, len(rows))
        axes = None if width == vectors.dimension else _principal_axes(vectors, chosen, width)
        sample = _values(vectors, chosen, axes)
        centres = _centres(sample, lists)
        index = _empty(centres, width)
        part = sample[random.permutation(len(sample))[:_CODEBOOK_SAMPLE]]
        _, nearest = _nearest_list(index, len(part)).search(part, 1)
        index.pq.cp.niter = 10
        index.pq.cp.min_points_per_centroid = 1
        index.pq.train(part - centres[nearest[:, 0]])
        index.is_trained = True
        made = cls(vectors, index, axes, Calibration(len(rows)))
        made._add(rows, tell)
        made.calibrate(target, text=text, progress=progress)
        return made

    # Rows

    @property
    def recall(self) -> float | None:
        """The recall measured at the operating point."""
        return self.calibration.recall

    @property
    def rows(self) -> Rows:
        """The rows it holds (N,) int64, in no particular order."""
        held: Rows = np.concatenate([ids for _, ids in self._contents()])
        return held

    @property
    def needs_retraining(self) -> bool:
        """Whether what it holds is no longer what it was trained for."""
        trained_on = self.calibration.trained_on
        return not trained_on / (2 * _OUTGROWN) <= self._index.ntotal <= trained_on * _OUTGROWN

    def code_length_fits(self, target: IndexTarget) -> bool:
        """Whether its codes are as long as the target's memory allows."""
        return bool(self._index.d == coded_values(self._vectors.dimension, self.calibration.trained_on, target))

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows: take out what is not among them, add what is missing."""
        held = self.rows
        surplus = np.setdiff1d(held, rows, assume_unique=True)
        missing = np.setdiff1d(rows, held, assume_unique=True)
        if len(surplus):
            self._index.remove_ids(surplus)
        self._add(missing, lambda *_: None)
        self.calibration = self.calibration.after(len(surplus) + len(missing))

    def _add(self, rows: Rows, tell: StageProgress) -> None:
        if len(rows):
            between_lists = self._index.quantizer
            # A row belongs to the list of the nearest centre, a query looks where inner products are the highest.
            nearest = _nearest_list(self._index, len(rows))
            self._index.quantizer = nearest
            try:
                done = 0
                for block, stored in self._vectors.stream(rows):
                    self._index.add_with_ids(_along(stored.astype(np.float32), self._axes), block)
                    done += len(block)
                    tell("Building the index", done, len(rows))
            finally:
                self._index.quantizer = between_lists
                nearest.this.own(True)  # SWIG takes what is set for given away, and would never free it
        self._list_sizes = _list_sizes(self._index)
        self._lists = self._selection = None

    def _contents(self) -> Iterator[tuple[int, Rows]]:
        lists = self._index.invlists
        for number, size in enumerate(self._list_sizes.tolist()):
            yield number, faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)

    # Searching

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer.

        With `allowed_rows` (rows,) bool, which may not be changed afterwards, only the rows that are true there.
        """
        selection = None if allowed_rows is None else self._select(allowed_rows)
        total = self._index.ntotal if selection is None else len(selection.rows)
        k = min(k, total)
        if k < 1:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scaled, exponent = near_one(query)
        rotated = _along(scaled[None], self._axes)
        rows = self._among_all(rotated, k) if selection is None else self._among_some(rotated, scaled, k, selection)
        if rows is None:
            rows = np.sort(self.rows) if selection is None else selection.rows
            return scan(self._vectors, rows, query, k)
        scores, rows = best(true_scores(self._vectors, scaled, rows), rows, k)
        return np.ldexp(scores, exponent), rows

    def search_at(self, query: Float32, lists: int, candidates: int) -> tuple[Float32, Rows]:
        """The 10 nearest rows as another operating point finds them, or fewer."""
        scaled, exponent = near_one(query)
        found = self._coarse(_along(scaled[None], self._axes), candidates, lists)
        scores, rows = best(true_scores(self._vectors, scaled, found), found, min(MEASURED_K, len(found)))
        return np.ldexp(scores, exponent), rows

    def _among_all(self, rotated: Float32, k: int) -> Rows | None:
        """Rows among which the k nearest are, or None where a comparison with all is what is left."""
        candidates = _candidates_for(self.calibration.candidates, k)
        lists = min(int(self._index.nlist), math.ceil(self.calibration.lists * max(1.0, k / MEASURED_K) ** 0.5))
        while candidates < self._index.ntotal:
            found = self._coarse(rotated, candidates, lists)
            if len(found) >= k:
                return found
            if lists == self._index.nlist:
                break  # its codes say nothing, as those of a query of zeros
            lists = min(4 * lists, int(self._index.nlist))
        return None

    def _among_some(self, rotated: Float32, query: Float32, k: int, chosen: _Selection) -> Rows | None:
        """As `_among_all`, of the chosen rows; None also where comparing with all of these costs less.

        They may lie anywhere, and far from the query: more lists are looked at until twice as many find nothing new.
        """
        index, candidates = self._index, _candidates_for(max(self.calibration.candidates, _CANDIDATES_OF_CHOSEN), k)
        exactly = len(chosen.rows) * self._vectors.dimension * _CODE_COST * _ROW_COST
        # The nearest of few rows lie further apart than those of many.
        share = self.calibration.lists / index.nlist * max(1.0, k / MEASURED_K) ** 0.5
        share = min(1.0, share * (index.ntotal / len(chosen.rows)) ** 0.5)
        if candidates >= len(chosen.rows) or exactly <= 2 * share * index.ntotal * index.d * _CODE_COST:
            return None
        with _OneThread():
            _, order = index.quantizer.search(rotated, index.nlist)
        order = order[0][order[0] >= 0]
        passed, sizes = np.cumsum(chosen.in_lists[order]), np.cumsum(self._list_sizes[order])
        before: set[int] | None = None
        while True:
            lists = min(int(np.searchsorted(passed, share * len(chosen.rows))) + 1, len(order))
            if exactly <= sizes[lists - 1] * index.d * _CODE_COST:
                return None
            found = self._coarse(rotated, candidates, lists, chosen.selector)
            nearest = {*best(true_scores(self._vectors, query, found), found, k)[1].tolist()}
            if len(nearest) == k and (nearest == before or lists == len(order)):
                return found
            if lists == len(order):
                return None
            before, share = nearest, 2 * share

    def _coarse(self, query: Float32, candidates: int, lists: int, selector: Any = None) -> Rows:
        parameters = _looking_at(lists) if selector is None else _parameters(lists, selector)
        with _OneThread():
            _, found = self._index.search(query, candidates, params=parameters)
        rows: Rows = found[0][found[0] >= 0]
        return rows

    def _select(self, allowed_rows: RowMask) -> _Selection:
        if self._lists is None:
            contents = list(self._contents())
            size = max((int(ids.max()) + 1 for _, ids in contents if len(ids)), default=0)
            self._lists = np.full(size, -1, np.int32)
            for number, ids in contents:
                self._lists[ids] = number
        if self._selection is None or self._selection.mask is not allowed_rows:
            size = min(len(allowed_rows), len(self._lists))
            rows = np.flatnonzero(allowed_rows[:size] & (self._lists[:size] >= 0))
            in_lists = np.bincount(self._lists[rows], minlength=self._index.nlist)
            bits = np.packbits(allowed_rows, bitorder="little")
            # Rows are never looked up beyond the mask: FAISS takes those for not chosen.
            selector: Any = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
            self._selection = _Selection(allowed_rows, rows, in_lists, selector, bits)
        return self._selection

    # Measuring

    @property
    def needs_calibration(self) -> bool:
        """Whether so much has changed that what was measured may no longer hold."""
        return self.calibration.changed > _MEASURE_AGAIN * int(self._index.ntotal)

    def calibrate(
        self,
        target: IndexTarget,
        *,
        text: bool = False,
        queries: Float32 | None = None,
        full_curve: bool = False,
        progress: StageProgress | None = None,
    ) -> list[OperatingPoint]:
        """Choose the operating point of least cost that has the wanted recall; returns all that were measured.

        The queries are made from the rows. Further `queries` (Q, D) may be given. The kind of queries that finds least
        counts. Texts lie further from all images than images do: where there may be `text` and no queries are given,
        fewer misses are allowed. Where no point has the wanted recall, the highest there is is taken. With
        `full_curve`, the curve goes on beyond the wanted recall, to all there is.
        """
        rows = np.sort(self.rows)
        made, own = sample_queries(self._vectors, rows, min(_QUERIES, len(rows)))
        given = np.empty((0, self._vectors.dimension), np.float32) if queries is None else queries
        both = np.concatenate([made, given]).astype(np.float32)
        own = np.concatenate([own, np.full(len(given), -1)])
        truth = exact_nearest(self._vectors, rows, both, own, min(MEASURED_K, len(rows) - 1), progress)
        groups = [*np.array_split(np.arange(len(made)), QUERY_KINDS), np.arange(len(made), len(both))]
        wanted = 1 - (1 - target.recall) * (_TEXT_MISSES if text and not len(given) else 1)
        points = self.curve(both, own, truth, [group for group in groups if len(group)], 1 if full_curve else wanted)
        safe = [point for point in points if point.lower_bound >= wanted]
        chosen = min(safe, key=lambda p: p.cost) if safe else max(points, key=lambda p: (p.recall, -p.cost))
        self.calibration = Calibration(
            self.calibration.trained_on, 0, chosen.lists, chosen.candidates, round(chosen.recall, 4), target.recall
        )
        return points

    def curve(
        self, queries: Float32, own: Rows, truth: Nearest, groups: list[npt.NDArray[np.int64]], wanted: float = 1
    ) -> list[OperatingPoint]:
        """What recall each number of lists and candidates has, that of the group of queries that finds least, and cost.

        `queries` (Q, dimension); `own` (Q,) are rows that do not count as found by each, -1 for none; `truth` is what
        is nearest to them; `groups` are positions of queries. It ends at the number of lists after the first that has
        the `wanted` recall.
        """
        rotated = _along(queries, self._axes)
        most = min(_CANDIDATES[-1], self._index.ntotal)
        points: list[OperatingPoint] = []
        lists, ending = 1, False
        while True:
            _, found = self._index.search(rotated, most, params=_looking_at(lists))
            hits, scored = np.zeros(len(queries)), 0
            for candidates in _CANDIDATES:
                more = self._hits(queries, found[:, scored:candidates], own, truth)
                enough = scored > 0 and more.mean() < _FEW_MORE * math.log2(candidates / scored)
                hits += more
                scored = candidates
                shares = (hits / truth.k).clip(max=1)
                share = min((shares[group] for group in groups), key=lambda each: float(each.mean()))
                cost = (
                    self._index.ntotal * lists / self._index.nlist * self._index.d * _CODE_COST
                    + candidates * _CANDIDATE_COST
                )
                deviation = float(share.std()) / math.sqrt(len(share))
                points.append(OperatingPoint(lists, candidates, float(share.mean()), deviation, cost))
                if candidates >= most or enough:
                    break
            if ending or lists >= self._index.nlist or points[-1].recall > 0.999:
                return points
            ending = max(point.lower_bound for point in points) >= wanted
            lists = min(lists * 2 if lists < 16 else lists * 5 // 4, self._index.nlist)

    def _hits(self, queries: Float32, found: Rows, own: Rows, truth: Nearest) -> npt.NDArray[np.int64]:
        """How many rows (Q, n) found by each query are among its nearest; `own` (Q,) and -1 do not count."""
        hits: npt.NDArray[np.int64] = (found[:, :, None] == truth.rows[:, None, :]).any(axis=2).sum(axis=1)
        for number in np.flatnonzero(truth.unnamed):
            kept = found[number][(found[number] >= 0) & (found[number] != own[number])]
            hits[number] = (true_scores(self._vectors, queries[number], kept) >= truth.least[number]).sum()
        return hits

    # Files

    def save(self, file: Writer) -> None:
        """Write the index to an open file: FAISS's own format, the axes, and what was measured, with its length."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
        if self._axes is not None:
            file.write(self._axes.astype("<f4").tobytes())
        told = json.dumps(self.calibration.as_json()).encode()
        file.write(told)
        file.write(len(told).to_bytes(8, "little"))

    @classmethod
    def load(cls, file: IO[bytes], vectors: VectorFile) -> TrainedIndex:
        """Read an open file written by `save`.

        Raises `RuntimeError` if FAISS cannot read it, `ValueError` if it is of another kind.
        """
        index: Any = faiss.read_index(f"/dev/fd/{file.fileno()}")
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(8), "little")
        end = file.seek(0, os.SEEK_END) - 8 - length
        if type(index) is not faiss.IndexIVFPQFastScan or not end > 0 or length > 4096:
            raise ValueError("the file holds another kind of index")
        file.seek(end)
        measured = Calibration.from_json(json.loads(file.read(length)))
        axes = None
        if index.d != vectors.dimension:
            size = 4 * index.d * vectors.dimension
            file.seek(end - size)
            axes = np.frombuffer(file.read(size), "<f4").astype(np.float32).reshape(index.d, vectors.dimension)
            if not np.isfinite(axes).all():
                raise ValueError("the file holds no axes")
        found = cls(vectors, index, axes, measured)
        lists: Any = index.invlists
        if (
            {index.quantizer.d, index.pq.d, 2 * index.pq.M} != {index.d}
            or {index.quantizer.ntotal, lists.nlist} != {index.nlist}
            or (index.metric_type, index.quantizer.metric_type) != (faiss.METRIC_INNER_PRODUCT,) * 2
            or (index.pq.nbits, index.bbs, index.is_trained, index.by_residual) != (_BITS, 32, True, True)
            or found._list_sizes.sum() != index.ntotal
        ):
            raise ValueError("the file holds another kind of index")
        return found


QUERY_KINDS = 3
"""Kinds of queries that are made, each as many as the others."""


def sample_queries(vectors: VectorFile, rows: Rows, count: int) -> tuple[Float32, Rows]:
    """Queries like those to come (count, D), and the row each was made of (count,), which it should not find.

    The first of three kinds are rows with noise, the second lie between three rows, the third are rows. Images that are
    not in a collection are further from all that is in it than its rows are from one another: as are the second kind.
    """
    random = np.random.default_rng(1)
    own = random.choice(rows, count, replace=len(rows) < count)
    third = count // QUERY_KINDS
    others = random.choice(rows, (2, third))
    needed, places = np.unique(np.concatenate([own, *others]), return_inverse=True)
    values = _values(vectors, needed)[places]
    queries = values[:count]
    noise = random.standard_normal((third, vectors.dimension), dtype=np.float32)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    queries[:third] += 0.5 * lengths[:third] * noise / np.sqrt(np.float32(vectors.dimension))
    queries[third : 2 * third] += values[count : count + third] + values[count + third :]
    return queries, own


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of queries, and those as near as the last of these.

    `rows` (Q, n) int64, filled up with `NO_ROW`; `least` (Q,), the score of the k-th; `unnamed` (Q,) bool, where so
    many have that score that they are not all among the rows.
    """

    k: int
    rows: Rows
    least: Float32
    unnamed: RowMask


def exact_nearest(
    vectors: VectorFile, rows: Rows, queries: Float32, own: Rows, k: int, progress: StageProgress | None = None
) -> Nearest:
    """The k nearest of the rows to each query (Q, D), without its own row (Q,)."""
    found: list[tuple[Float32, Rows]] = []
    done, most = 0, k + 1 + _AS_NEAR
    for block, stored in vectors.stream(rows):
        count = min(most, len(block))
        scores, places = faiss.knn(queries, stored.astype(np.float32), count, faiss.METRIC_INNER_PRODUCT)
        found.append((scores, block[places]))
        if len(found) > 8:
            found = [_merged(found, most)]
        done += len(block)
        if progress:
            progress("Measuring the index", done, len(rows))
    _, candidates = _merged(found, most)
    looked_at = np.unique(candidates)
    stored = vectors.fetch(looked_at)
    truth = Nearest(
        k,
        np.full(candidates.shape, NO_ROW),
        np.full(len(queries), -np.inf, np.float32),
        np.ones(len(queries), np.bool_),
    )
    for number, query in enumerate(queries):
        kept = candidates[number][candidates[number] != own[number]]
        scores = inner_products(stored[np.searchsorted(looked_at, kept)], query)
        if len(kept) > k:
            truth.least[number] = np.partition(scores, -k)[-k]
            truth.unnamed[number] = scores.min() >= truth.least[number] and len(candidates[number]) < len(rows)
        near = kept[scores >= truth.least[number]]
        truth.rows[number, : len(near)] = near
    return truth


def _merged(found: Sequence[tuple[Float32, Rows]], k: int) -> tuple[Float32, Rows]:
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    order = np.argsort(-scores, axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _values(vectors: VectorFile, rows: Rows, axes: Float32 | None = None) -> Float32:
    """The given rows (N, D), ascending; with axes (d, D) along these, (N, d)."""
    values = np.empty((len(rows), vectors.dimension if axes is None else len(axes)), np.float32)
    for start in range(0, len(rows), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        values[block] = _along(vectors.fetch(rows[block]).astype(np.float32), axes)
    return values


def _list_sizes(index: Any) -> npt.NDArray[np.int64]:
    """How many rows each list has (nlist,)."""
    return np.array([index.invlists.list_size(n) for n in range(index.nlist)], dtype=np.int64)


def _candidates_for(candidates: int, k: int) -> int:
    """How many candidates the k best need where the first few need so many."""
    return candidates if k <= MEASURED_K else candidates + 3 * (k - MEASURED_K)


def _list_count(rows: int) -> int:
    """Some 2 sqrt(rows), a power of two."""
    return int(2 ** max(4, round(math.log2(2 * math.sqrt(rows)))))


def _principal_axes(vectors: VectorFile, rows: Rows, width: int) -> Float32:
    """The axes (width, D) that keep most of the inner products of rows, mixed so that codes are alike in weight."""
    dimension = vectors.dimension
    products = np.zeros((dimension, dimension))
    for start in range(0, len(rows), _AT_ONCE):
        values = vectors.fetch(rows[start : start + _AT_ONCE]).astype(np.float32)
        products += values.T @ values
    _, axes = np.linalg.eigh(products / len(rows))
    axes = axes[:, ::-1][:, : min(width, dimension)].T
    axes = np.vstack([axes, np.zeros((max(0, width - dimension), dimension))])
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0]
    return np.ascontiguousarray(turn @ axes, dtype=np.float32)


def _along(values: Float32, axes: Float32 | None) -> Float32:
    return values if axes is None else np.ascontiguousarray(values @ axes.T)


def _centres(sample: Float32, lists: int) -> Float32:
    """The centres (lists, d) of a k-means; of thousands, begun with those of parts of the sample."""
    if lists <= _MOST_FLAT_LISTS:
        return _kmeans(sample, lists)
    groups = 2 ** (int(math.log2(lists)) // 2)
    rough = _kmeans(sample[:: max(1, len(sample) // (groups * 256))], groups)
    coarse: Any = faiss.IndexFlatL2(sample.shape[1])
    coarse.add(rough)
    nearest = coarse.search(sample, 1)[1][:, 0]
    members = [sample[nearest == group] for group in range(groups)]
    # Each group gets as many centres as is its share of the sample.
    exact = np.array([len(each) for each in members]) * lists / len(sample)
    shares = np.floor(exact).astype(int)
    shares[np.argsort(shares - exact, kind="stable")[: lists - int(shares.sum())]] += 1
    begun = np.concatenate([_kmeans(each, n) for each, n in zip(members, shares.tolist(), strict=True) if n])
    return _kmeans(sample, lists, begun)


def _kmeans(sample: Float32, count: int, begun: Float32 | None = None) -> Float32:
    """The centres (count, d) of a k-means that begins with rows of the sample, or where another one ended."""
    clustering: Any = faiss.Clustering(sample.shape[1], count)
    clustering.niter = 10
    clustering.seed = 1
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = 256
    if begun is not None:
        clustering.niter = 2
        faiss.copy_array_to_vector(begun.ravel(), clustering.centroids)
    clustering.train(np.ascontiguousarray(sample), faiss.IndexFlatL2(sample.shape[1]))
    centres: Float32 = faiss.vector_to_array(clustering.centroids).reshape(count, -1)
    return centres


def _empty(centres: Float32, width: int) -> Any:
    """A FAISS index of these lists, whose codes are still to be trained."""
    quantizer: Any = faiss.IndexFlatIP(width)
    quantizer.add(centres)
    index: Any = faiss.IndexIVFPQFastScan(quantizer, width, len(centres), width // 2, _BITS, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = True
    return index


def _parameters(lists: int, selector: Any = None) -> Any:
    return faiss.SearchParametersIVF(nprobe=lists, sel=selector)  # type: ignore[call-arg]


_looking_at = lru_cache(maxsize=64)(_parameters)
"""What tells FAISS how many lists a query looks at. With a selector, which holds a mask of all rows, it is not kept."""


def _nearest_list(index: Any, rows: int) -> Any:
    """What finds the list whose centre is nearest to a row, for so many rows.

    Of thousands, all are compared along the main axes alone, and the nearest of these in full: 97 % are the nearest,
    and the others nearly, in half the time. A graph (HNSW) takes as long, and leaves lists that are never found. Few
    rows are not worth the axes.
    """
    centres = index.quantizer.reconstruct_n(0, index.nlist)
    nearest: Any = faiss.IndexFlatL2(index.d)
    if rows > len(centres) > _MOST_FLAT_LISTS and index.d > _MAIN_AXES:
        axes: Any = faiss.PCAMatrix(index.d, _MAIN_AXES)
        axes.train(centres)
        nearest = faiss.IndexRefineFlat(faiss.IndexPreTransform(axes, faiss.IndexFlatL2(_MAIN_AXES)))
        nearest.k_factor = 4
    nearest.add(centres)
    return nearest


class _OneThread:
    """FAISS uses this thread alone during the block: one query is answered before others would be awake."""

    def __enter__(self) -> None:
        self._threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)

    def __exit__(self, *exc_info: object) -> None:
        faiss.omp_set_num_threads(self._threads)
