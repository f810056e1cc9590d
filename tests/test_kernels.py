"""The loops in C return what NumPy computes, stay inside their arrays, and are compiled where there is a compiler."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import pytest

from pixmatcher.vector_index import IndexTarget, VectorFile, _kernels
from pixmatcher.vector_index._lists import AllowedRows, lowest_within, project
from pixmatcher.vector_index._scoring import inner_products
from pixmatcher.vector_index.trained import TrainedIndex
from support import build_with_sanitizers

# With a compiler, a build without the library must be noticed.
needs_library = pytest.mark.skipif(
    not _kernels.LIBRARY.exists() and shutil.which("cc") is None, reason="the package was built without a C compiler"
)

DIMENSIONS = [1, 7, 16, 48, 63, 64, 65, 100, 384, 770]


def numpy_scores(codes: np.ndarray, query: np.ndarray) -> np.ndarray:
    return codes.astype(np.int64) @ query.astype(np.int64)


@needs_library
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_best_codes_are_those_of_numpy(dimension: int) -> None:
    random = np.random.default_rng(dimension)
    codes = random.integers(0, 256, (500, dimension), np.uint8)
    query, _ = _kernels.integer_query(random.normal(size=dimension).astype(np.float32))
    allowed = random.random(500) < 0.4
    for start, stop in ((0, 500), (3, 490), (77, 78), (9, 9)):
        for mask in (None, allowed):
            inside = np.arange(start, stop)
            inside = inside if mask is None else inside[mask[start:stop]]
            expected = numpy_scores(codes[inside], query)
            for count in (1, 2, 10, 37, 500):
                bits = None if mask is None else np.packbits(mask, bitorder="little")
                scores, positions = _kernels.best_codes(codes.ctypes.data, start, stop, query, count, bits)
                assert len(scores) == len({*positions.tolist()}) == min(count, len(inside))
                assert sorted(scores.tolist()) == sorted(expected.tolist())[-len(scores) :] * bool(len(scores))
                assert scores.tolist() == numpy_scores(codes[positions], query).tolist()


@needs_library
@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("kind", ["equal", "one", "normal", "tiny", "huge"])
def test_no_sum_exceeds_32_bits(dimension: int, kind: str) -> None:
    values = np.random.default_rng(dimension).normal(size=dimension)
    if kind == "equal":
        values[:] = -1
    elif kind == "one":
        values[1:] = 0
    elif kind == "tiny":
        values *= 1e-30
    elif kind == "huge":
        values *= 1e30
    query, step = _kernels.integer_query(values.astype(np.float32))
    assert np.abs(query.astype(float) * step - values.astype(np.float32)).max() <= step / 2 * (1 + 1e-6)
    for extreme in (np.where(query > 0, 255, 0), np.where(query < 0, 255, 0)):
        codes = np.tile(extreme.astype(np.uint8), (3, 1))
        scores, _ = _kernels.best_codes(codes.ctypes.data, 0, 3, query, 3)
        assert scores.tolist() == numpy_scores(codes, query).tolist()


@needs_library
def test_a_query_of_zeros_has_the_score_zero() -> None:
    query, step = _kernels.integer_query(np.zeros(48, np.float32))
    assert (query.any(), step) == (False, 0)


@needs_library
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_row_scores_are_those_of_numpy(dimension: int) -> None:
    random = np.random.default_rng(dimension)
    values = random.normal(size=(300, dimension)).astype(np.float16)
    values[10] = 0
    values[20] = np.finfo(np.float16).max
    values[30] = np.finfo(np.float16).smallest_subnormal
    values[40:50] = values[50]
    rows = random.integers(0, 300, 500)
    rows[:20] = np.arange(40, 60)
    for scale in (1, 1e-20, 1e20):
        query = (random.normal(size=dimension) * scale).astype(np.float32)
        scores = _kernels.row_scores(values, rows, query)
        assert scores.tolist() == inner_products(values[rows], query).tolist()
        assert len({*scores[:10].tolist()}) == 1


@needs_library
@pytest.mark.parametrize("dimension", [2, 7, 34, 384])
def test_a_search_in_lists_finds_what_faiss_finds(tmp_path: Path, dimension: int) -> None:
    random = np.random.default_rng(dimension)
    vectors = VectorFile(tmp_path / "vectors.f16", dimension, first_row=5)
    centres = random.normal(size=(40, dimension))
    vectors.write(5, (centres[random.integers(0, 40, 3000)] + random.normal(0, 0.7, (3000, dimension))).astype("<f2"))
    rows = np.arange(5, 3005)
    lists = TrainedIndex.train(vectors, rows, IndexTarget()).lists
    allowed = random.random(2900) < 0.3
    bits = np.packbits(allowed, bitorder="little")
    filtered = AllowedRows(allowed, np.flatnonzero(allowed), lists.sizes, faiss.IDSelectorBitmap(bits), bits)
    native, same, all_found = lists._native, 0, 0
    assert native is not None
    for query in random.normal(size=(40, dimension)).astype(np.float32):
        projected = project(query[None], lists.axes)
        lists._native = native
        near = lists.centre_scores(projected)
        lists._native = None
        assert lowest_within(near, 0.5) == pytest.approx(near.max() - 0.5 * (near.max() - near.mean()), rel=1e-5)
        np.testing.assert_allclose(near, lists.centre_scores(projected), rtol=2e-3, atol=2e-2)
        search = partial(lists.search, vectors, query, projected, near, 10)
        for mask in (None, filtered):
            for lowest, candidates in ((near.max(), 30), (np.sort(near)[-9], 50), (-np.inf, 50)):
                lists._native = native
                scores, found = search(lowest=lowest, candidates=candidates, allowed=mask)
                assert scores.tolist() == inner_products(vectors.read(found), query).tolist()
                lists._native = None
                expected = search(lowest=lowest, candidates=candidates, allowed=mask)[1]
                assert len(found) >= len(expected)  # FAISS leaves out a code with the lowest score there is
                same += len(np.intersect1d(found, expected))
                all_found += len(expected)
            # All rows are compared, so both are exact.
            whole = partial(search, lowest=-np.inf, candidates=3000, allowed=mask)
            lists._native = native
            exact = whole()
            lists._native = None
            assert [each.tolist() for each in exact] == [each.tolist() for each in whole()]
            assert mask is None or allowed[exact[1]].all()
    assert same / all_found > 0.99  # the scores of codes are rounded in other places


HARNESS = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
int pixmatcher_kernels_run(void);
void pixmatcher_best_codes(const uint8_t *, int64_t, int64_t, int64_t, const int16_t *, const uint8_t *, int64_t,
                           int32_t *, int64_t *);
void pixmatcher_row_scores(const uint16_t *, const int64_t *, int64_t, int64_t, const double *, float *);
typedef struct {
    int64_t count, width;
    const uint16_t *centres;
    const float *codebooks;
    const uint8_t *const *codes;
    const int64_t *const *rows;
    const int64_t *sizes;
} Lists;
void pixmatcher_centre_scores(const Lists *, const float *, float *);
float pixmatcher_lowest_within(const float *, int64_t, float);
int64_t pixmatcher_search_lists(const Lists *, const float *, const float *, float, const uint8_t *, int64_t, int64_t,
                                const uint16_t *, int64_t, int64_t, const double *, int64_t, float *, int64_t *);
static void search_lists(int64_t width, int64_t dimension, int64_t count, int64_t each) {
    int64_t pairs = (width / 2 + 1) / 2, rows = 7 + count * each, k = 1 + rand() % 40, bits = rows - rand() % 5;
    uint16_t *centres = malloc(2 * count * width), *values = malloc(2 * (rows - 7) * dimension);
    float *books = malloc(4 * width * 16), *projected = malloc(4 * width), *scores = malloc(4 * k);
    uint8_t **codes = malloc(8 * count), *allowed = malloc((bits + 7) / 8);
    int64_t **numbers = malloc(8 * count), *sizes = malloc(8 * count), *found = malloc(8 * k), row = 7;
    double *query = malloc(8 * dimension);
    for (int64_t i = 0; i < count * width; i++) centres[i] = rand() & 0xbbff;
    for (int64_t i = 0; i < (rows - 7) * dimension; i++) values[i] = rand() & 0xbbff;
    for (int64_t i = 0; i < width * 16; i++) books[i] = rand() / 1e9f - 1;
    for (int64_t i = 0; i < width; i++) projected[i] = rand() % 9 - 4;
    for (int64_t i = 0; i < dimension; i++) query[i] = rand() % 9 - 4;
    for (int64_t i = 0; i < (bits + 7) / 8; i++) allowed[i] = rand();
    for (int64_t list = 0; list < count; list++) {
        sizes[list] = rand() % (each + 1);
        int64_t bytes = (sizes[list] + 31) / 32 * pairs * 32;
        codes[list] = malloc(bytes);
        numbers[list] = malloc(8 * sizes[list]);
        for (int64_t i = 0; i < bytes; i++) codes[list][i] = rand();
        for (int64_t i = 0; i < sizes[list]; i++) numbers[list][i] = row++;
    }
    Lists lists = {count, width, centres, books, (const uint8_t **)codes, (const int64_t **)numbers, sizes};
    float *near = malloc(4 * count);
    pixmatcher_centre_scores(&lists, projected, near);
    for (float reach = 0; reach < 5; reach += 1)
        for (int64_t candidates = 1; candidates < 100; candidates *= 3)
            for (int filter = 0; filter < 2; filter++) {
                float lowest = pixmatcher_lowest_within(near, count, reach);
                const uint8_t *mask = filter ? allowed : NULL;
                const uint16_t *compared = rand() % 4 ? values : NULL;
                int64_t n = pixmatcher_search_lists(&lists, projected, near, lowest, mask, bits, candidates, compared,
                                                    7, dimension, query, k, scores, found);
                for (int64_t i = 0; i < n; i++)
                    if (found[i] < 7 || found[i] >= row || (i && !(scores[i - 1] >= scores[i]))
                        || (filter && (found[i] >= bits || !(allowed[found[i] / 8] >> found[i] % 8 & 1)))) exit(1);
            }
    for (int64_t list = 0; list < count; list++) { free(codes[list]); free(numbers[list]); }
    free(centres); free(values); free(books); free(projected); free(scores); free(codes); free(allowed); free(numbers);
    free(sizes); free(found); free(query); free(near);
}
int main(void) {
    if (!pixmatcher_kernels_run()) { puts("done"); return 0; }
    for (int64_t width = 2; width < 70; width += 6)
        for (int64_t each = 0; each < 100; each += 9) search_lists(width, 1 + rand() % 80, 1 + rand() % 40, each);
    search_lists(512, 600, 20, 40);
    for (int64_t dimension = 1; dimension < 200; dimension += 3)
        for (int64_t rows = 1; rows < 60; rows += 7)
            for (int64_t count = 1; count <= rows; count += 5) {
                /* Each array ends where its memory ends. */
                uint8_t *codes = malloc(rows * dimension), *allowed = malloc((rows + 7) / 8);
                int16_t *query = malloc(2 * dimension);
                uint16_t *values = malloc(2 * rows * dimension);
                double *exact = malloc(8 * dimension);
                int32_t *scores = malloc(4 * count);
                int64_t *positions = malloc(8 * count), *numbers = malloc(8 * rows);
                float *products = malloc(4 * rows);
                for (int64_t i = 0; i < rows * dimension; i++) { codes[i] = rand(); values[i] = rand() & 0x7bff; }
                for (int64_t i = 0; i < dimension; i++) { query[i] = rand() % 8001 - 4000; exact[i] = query[i]; }
                for (int64_t i = 0; i < (rows + 7) / 8; i++) allowed[i] = rand();
                for (int64_t i = 0; i < rows; i++) numbers[i] = rand() % rows;
                pixmatcher_best_codes(codes, 0, rows, dimension, query, NULL, count, scores, positions);
                pixmatcher_best_codes(codes, 0, rows, dimension, query, allowed, count, scores, positions);
                pixmatcher_row_scores(values, numbers, rows, dimension, exact, products);
                free(codes); free(allowed); free(query); free(values); free(exact); free(scores); free(positions);
                free(numbers); free(products);
            }
    puts("done");
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_no_loop_leaves_its_arrays(tmp_path: Path) -> None:
    """The same code, built so that it stops at the first byte out of bounds and the first undefined result."""
    program, harness = tmp_path / "harness", tmp_path / "harness.c"
    harness.write_text(HARNESS)
    build_with_sanitizers(program, harness, _kernels.LIBRARY.with_suffix(".c"))
    ran = subprocess.run([program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr[-3000:]
