/* Resizes 8-bit RGB images with the bilinear filter to the same bytes as Pillow, on x86 processors with AVX2.
 *
 * As Pillow's Resample.c does it: first the columns, then the rows, each rounded to 8 bits; weights are integers.
 * Pillow computes each value on its own. Here a vector holds neighbouring values.
 */

#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

/* Whether the processor has AVX2. */
EXPORT int pixmatcher_bilinear_suits(void) { return __builtin_cpu_supports("avx2") != 0; }

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include <immintrin.h>

enum {
    PRECISION = 22, /* bits of a weight behind the point */
    MARGIN = 32,    /* bytes that may be read and written after an array */
};

/* What each result is computed from: of one direction. */
typedef struct {
    int most;      /* the most pixels */
    int *first;    /* (result): the first pixel */
    int *count;    /* (result): how many */
    int *weights;  /* (result, most) */
} Filter;

/* Compute the weights of `results` pixels that show `low` to `high` of `side` pixels. Returns 0 if there is not enough
 * memory. */
static int make_filter(Filter *filter, int side, float low, float high, int results) {
    const double scale = (double)(high - low) / results, reach = scale > 1 ? scale : 1;
    filter->most = (int)ceil(reach) * 2 + 1;
    filter->first = malloc(sizeof(int) * (size_t)results * (2 + filter->most));
    double *exact = malloc(sizeof(double) * filter->most);
    if (!filter->first || !exact) {
        free(exact);
        return 0;
    }
    filter->count = filter->first + results;
    filter->weights = filter->count + results;
    for (int i = 0; i < results; i++) {
        const double centre = low + (i + 0.5) * scale, each = 1 / reach;
        int first = (int)(centre - reach + 0.5), end = (int)(centre + reach + 0.5);
        if (first < 0) first = 0;
        if (end > side) end = side;
        double sum = 0;
        for (int x = 0; x < end - first; x++) {
            const double distance = fabs((x + first - centre + 0.5) * each);
            exact[x] = distance < 1 ? 1 - distance : 0;
            sum += exact[x];
        }
        for (int x = 0; x < end - first; x++)
            filter->weights[i * filter->most + x] = (int)(0.5 + (sum != 0 ? exact[x] / sum : 0) * (1 << PRECISION));
        filter->first[i] = first;
        filter->count[i] = end - first;
    }
    free(exact);
    return 1;
}

static __m256i half(void) { return _mm256_set1_epi32(1 << (PRECISION - 1)); }

/* Write one row of results, of 3 bytes each: from the 4 bytes that begin at each pixel. */
static void filter_columns(const Filter *filter, const uint8_t *row, int results, uint8_t *to) {
    for (int i = 0; i < results; i++) {
        const int *weights = filter->weights + i * filter->most;
        const uint8_t *from = row + 3 * filter->first[i];
        __m128i sum = _mm256_castsi256_si128(half());
        for (int x = 0; x < filter->count[i]; x++, from += 3) {
            int32_t four;
            memcpy(&four, from, 4);
            const __m128i values = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
            sum = _mm_add_epi32(sum, _mm_mullo_epi32(values, _mm_set1_epi32(weights[x])));
        }
        const __m128i words = _mm_packs_epi32(_mm_srai_epi32(sum, PRECISION), sum);
        const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
        memcpy(to + 3 * i, &bytes, 4); /* the fourth byte is that of the next result */
    }
}

/* Write one row of results from several rows. */
static void filter_rows(const int *weights, int count, const uint8_t *rows, size_t row_bytes, uint8_t *to) {
    for (size_t i = 0; i < row_bytes; i += 16) {
        __m256i low = half(), high = half();
        const uint8_t *from = rows + i;
        for (int y = 0; y < count; y++, from += row_bytes) {
            const __m256i weight = _mm256_set1_epi32(weights[y]);
            const __m128i values = _mm_loadu_si128((const __m128i *)from);
            low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(values), weight));
            high = _mm256_add_epi32(
                high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(values, values)), weight));
        }
        const __m256i words =
            _mm256_packs_epi32(_mm256_srai_epi32(low, PRECISION), _mm256_srai_epi32(high, PRECISION));
        const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
        _mm_storeu_si128((__m128i *)(to + i), _mm_packus_epi16(_mm256_castsi256_si128(ordered),
                                                               _mm256_extracti128_si256(ordered, 1)));
    }
}

/* Resize the box (left, top, right, bottom) of an image (height, width, 3) to (side, side, 3). One more byte can be
 * read after the pixels, and `MARGIN` more written after the result. Returns 0 if there is not enough memory. */
EXPORT int pixmatcher_bilinear(const uint8_t *pixels, int width, int height, const float *box, int side,
                               uint8_t *result) {
    Filter columns = {0}, rows = {0};
    const size_t row_bytes = (size_t)3 * side;
    uint8_t *narrow = NULL;
    int ready = make_filter(&columns, width, box[0], box[2], side) && make_filter(&rows, height, box[1], box[3], side);
    if (ready) {
        const int first = rows.first[0], end = rows.first[side - 1] + rows.count[side - 1];
        narrow = malloc((end - first) * row_bytes + MARGIN);
        ready = narrow != NULL;
        for (int y = first; ready && y < end; y++)
            filter_columns(&columns, pixels + (size_t)3 * width * y, side, narrow + (y - first) * row_bytes);
        for (int y = 0; ready && y < side; y++)
            filter_rows(rows.weights + y * rows.most, rows.count[y], narrow + (rows.first[y] - first) * row_bytes,
                        row_bytes, result + y * row_bytes);
    }
    free(narrow);
    free(columns.first);
    free(rows.first);
    return ready;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
