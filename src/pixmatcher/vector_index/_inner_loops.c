/* The two loops of a search that cost most: the scores of codes of 8 bits, and those of stored float16 rows.

   `_kernels.py` calls them without Python's lock. They are for processors with AVX2 and F16C, which x86 has had since
   2013, and for 64-bit ARM; elsewhere `pixmatcher_kernels_run` returns 0, and FAISS and NumPy do the same work. */

#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

#if defined(__x86_64__)
#include <immintrin.h>
#define WITH_AVX2 __attribute__((target("avx2,fma,f16c")))

EXPORT int pixmatcher_kernels_run(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* The products of 16 codes with 16 values of the query, in pairs. */
WITH_AVX2 static inline __m256i products(const uint8_t *codes, const int16_t *query) {
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)codes));
    return _mm256_madd_epi16(wide, _mm256_loadu_si256((const __m256i *)query));
}

WITH_AVX2 static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) {
    __m256i first = _mm256_setzero_si256(), second = first, third = first, fourth = first;
    int64_t i = 0;
    for (; i + 64 <= dimension; i += 64) {
        first = _mm256_add_epi32(first, products(codes + i, query + i));
        second = _mm256_add_epi32(second, products(codes + i + 16, query + i + 16));
        third = _mm256_add_epi32(third, products(codes + i + 32, query + i + 32));
        fourth = _mm256_add_epi32(fourth, products(codes + i + 48, query + i + 48));
    }
    for (; i + 16 <= dimension; i += 16) first = _mm256_add_epi32(first, products(codes + i, query + i));
    __m256i all = _mm256_add_epi32(_mm256_add_epi32(first, second), _mm256_add_epi32(third, fourth));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
    for (; i < dimension; i++) sum += (int32_t)codes[i] * query[i];
    return sum;
}

WITH_AVX2 static double row_score(const uint16_t *row, const double *query, int64_t dimension) {
    __m256d first = _mm256_setzero_pd(), second = first, third = first, fourth = first;
    int64_t i = 0;
    for (; i + 16 <= dimension; i += 16) {
        __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i)));
        __m256 high = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + i + 8)));
        __m256d values = _mm256_cvtps_pd(_mm256_castps256_ps128(low));
        first = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i), first);
        values = _mm256_cvtps_pd(_mm256_extractf128_ps(low, 1));
        second = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 4), second);
        values = _mm256_cvtps_pd(_mm256_castps256_ps128(high));
        third = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 8), third);
        values = _mm256_cvtps_pd(_mm256_extractf128_ps(high, 1));
        fourth = _mm256_fmadd_pd(values, _mm256_loadu_pd(query + i + 12), fourth);
    }
    __m256d all = _mm256_add_pd(_mm256_add_pd(first, second), _mm256_add_pd(third, fourth));
    __m128d half = _mm_add_pd(_mm256_castpd256_pd128(all), _mm256_extractf128_pd(all, 1));
    double sum = _mm_cvtsd_f64(half) + _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
    for (; i < dimension; i++) sum += (double)_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(row[i]))) * query[i];
    return sum;
}

#elif defined(__aarch64__)

EXPORT int pixmatcher_kernels_run(void) { return 1; }

static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) {
    int32_t sum = 0;
    for (int64_t i = 0; i < dimension; i++) sum += (int32_t)codes[i] * query[i];
    return sum;
}

static double row_score(const uint16_t *row, const double *query, int64_t dimension) {
    const __fp16 *values = (const __fp16 *)row;
    double sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= dimension; i += 4)
        for (int lane = 0; lane < 4; lane++) sum[lane] += (double)values[i + lane] * query[i + lane];
    for (; i < dimension; i++) sum[0] += (double)values[i] * query[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

#else

EXPORT int pixmatcher_kernels_run(void) { return 0; }

static int32_t code_score(const uint8_t *codes, const int16_t *query, int64_t dimension) { return 0; }
static double row_score(const uint16_t *row, const double *query, int64_t dimension) { return 0; }

#endif

/* Replace the lowest of `count` scores, which is the first: each score is at most those at 2i + 1 and 2i + 2. */
static void replace_lowest(int32_t *scores, int64_t *positions, int64_t count, int32_t score, int64_t position) {
    int64_t place = 0;
    for (int64_t below = 1; below < count; below = 2 * place + 1) {
        if (below + 1 < count && scores[below + 1] < scores[below]) below++;
        if (scores[below] >= score) break;
        scores[place] = scores[below];
        positions[place] = positions[below];
        place = below;
    }
    scores[place] = score;
    positions[place] = position;
}

/* Find the `count` codes with the highest scores among those from `start` to `stop`, in no particular order.

   Only those whose bit in `allowed` is 1 count, if it is not NULL. `positions` without a code are -1. The caller makes
   sure that no sum of products exceeds 31 bits. */
EXPORT void pixmatcher_best_codes(const uint8_t *codes, int64_t start, int64_t stop, int64_t dimension,
                                  const int16_t *query, const uint8_t *allowed, int64_t count, int32_t *scores,
                                  int64_t *positions) {
    for (int64_t i = 0; i < count; i++) {
        scores[i] = INT32_MIN;
        positions[i] = -1;
    }
    for (int64_t position = start; position < stop; position++) {
        if (allowed && !(allowed[position >> 3] >> (position & 7) & 1)) continue;
        int32_t score = code_score(codes + position * dimension, query, dimension);
        if (score > scores[0]) replace_lowest(scores, positions, count, score, position);
    }
}

/* Write the inner products of `count` of the rows (float16) with the query. */
EXPORT void pixmatcher_row_scores(const uint16_t *rows, const int64_t *numbers, int64_t count, int64_t dimension,
                                  const double *query, float *scores) {
    for (int64_t i = 0; i < count; i++) scores[i] = (float)row_score(rows + numbers[i] * dimension, query, dimension);
}
