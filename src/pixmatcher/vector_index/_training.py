"""Training of a trained index: the centres of its lists, the axes it codes rows along, and its codebooks."""

from __future__ import annotations

import math
from typing import Any

import faiss
import numpy as np

from ._gpu import flat_index, on_gpu_or_cpu
from ._lists import MAX_FLAT_LISTS, InvertedLists, nearest_centres, new_faiss_index, read_projected
from .vectors import Float32, Rows, VectorFile

_SAMPLED_ROWS_PER_LIST = 40
_CODEBOOK_SAMPLE = 4096
_ROWS_AT_ONCE = 4096
_ITERATIONS = 10
_REFINING_ITERATIONS = 2


def train_lists(vectors: VectorFile, rows: Rows, width: int) -> InvertedLists:
    """Return empty lists that are trained for `rows` (N,), ascending, whose codes have `width` values."""
    random = np.random.default_rng(0)
    list_count = count_lists(len(rows))
    sampled = np.sort(random.choice(rows, min(len(rows), list_count * _SAMPLED_ROWS_PER_LIST), replace=False))
    axes = None if width == vectors.dimension else _principal_axes(vectors, sampled, width)
    sample = read_projected(vectors, sampled, axes)
    centres = _centres(sample, list_count)
    index = new_faiss_index(centres)
    part = sample[random.permutation(len(sample))[:_CODEBOOK_SAMPLE]]
    _, nearest = nearest_centres(index, len(part)).search(part, 1)
    index.pq.cp.niter = _ITERATIONS
    index.pq.cp.min_points_per_centroid = 1
    index.pq.train(part - centres[nearest[:, 0]])
    index.is_trained = True
    return InvertedLists(index, axes)


def count_lists(row_count: int) -> int:
    """Return how many lists an index of `row_count` rows has: the power of two nearest to 2 sqrt(rows), at least 16."""
    return int(2 ** max(4, round(math.log2(2 * math.sqrt(row_count)))))


def _principal_axes(vectors: VectorFile, rows: Rows, width: int) -> Float32:
    """Return the axes (width, D) that keep most of the inner products of `rows`, as principal component analysis does.

    A random rotation mixes them, so that all codes carry about the same amount of information.
    """
    dimension = vectors.dimension
    products = np.zeros((dimension, dimension))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        values = vectors.read_unmapped(rows[start : start + _ROWS_AT_ONCE]).astype(np.float32)
        products += values.T @ values
    _, axes = np.linalg.eigh(products / len(rows))
    axes = axes[:, ::-1][:, : min(width, dimension)].T
    axes = np.vstack([axes, np.zeros((max(0, width - dimension), dimension))])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))[0]
    return np.ascontiguousarray(rotation @ axes, dtype=np.float32)


def _centres(sample: Float32, count: int) -> Float32:
    """Return the centres (count, d) of a k-means clustering of `sample` (N, d).

    Thousands of centres are found in two steps: the sample is divided into groups, each group is clustered, and the
    centres of all groups start the k-means of the complete sample.
    """
    if count <= MAX_FLAT_LISTS:
        return _kmeans(sample, count)
    group_count = 2 ** (int(math.log2(count)) // 2)
    rough = _kmeans(sample[:: max(1, len(sample) // (group_count * 256))], group_count)
    nearest = on_gpu_or_cpu(lambda gpu: _nearest(sample, rough, gpu))
    groups = [sample[nearest == group] for group in range(group_count)]
    # The number of centres of a group is proportional to its part of the sample.
    exact = np.array([len(each) for each in groups]) * count / len(sample)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: count - int(counts.sum())]] += 1
    start = np.concatenate([_kmeans(each, n) for each, n in zip(groups, counts.tolist(), strict=True) if n])
    return _kmeans(sample, count, start)


def _nearest(sample: Float32, centres: Float32, gpu: Any) -> Rows:
    """Return the number (N,) of the centre that is nearest to each row of a sample (N, d)."""
    index = flat_index(sample.shape[1], gpu)
    index.add(centres)
    numbers: Rows = index.search(sample, 1)[1][:, 0]
    return numbers


def _kmeans(sample: Float32, count: int, start: Float32 | None = None) -> Float32:
    """Return the centres (count, d) of k-means, which starts with rows of the sample or with given centres."""
    return on_gpu_or_cpu(lambda gpu: _kmeans_on(sample, count, start, gpu))


def _kmeans_on(sample: Float32, count: int, start: Float32 | None, gpu: Any) -> Float32:
    clustering: Any = faiss.Clustering(sample.shape[1], count)
    clustering.niter = _ITERATIONS
    clustering.seed = 1
    clustering.min_points_per_centroid = 1
    clustering.max_points_per_centroid = 256
    if start is not None:
        clustering.niter = _REFINING_ITERATIONS
        faiss.copy_array_to_vector(start.ravel(), clustering.centroids)
    clustering.train(np.ascontiguousarray(sample), flat_index(sample.shape[1], gpu))
    centres: Float32 = faiss.vector_to_array(clustering.centroids).reshape(count, -1)
    return centres
