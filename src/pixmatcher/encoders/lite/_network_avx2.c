/* The image network of `lite` for x86 processors that have AVX2 and no instructions for neural networks (VNNI).
 *
 * It computes the same integers as ONNX Runtime from the same weights, in less time:
 * - a block (expand, depthwise, project) is computed a few rows at a time, so that what is between its layers stays in
 *   the cache of the core;
 * - a depthwise layer multiplies 16-bit numbers by pairs of rows (VPMADDWD);
 * - each layer rounds its results to 8 bits as soon as they are computed.
 *
 * In 1x1 convolutions VPMADDUBSW adds two products in 16 bits. It does not saturate: two neighbouring weights of the same
 * sign add up to 128 at most, which `_network.py` checks. All weights are arranged there, and are trusted. Activations
 * are bytes in planes of 8 channels: (channel / 8, row, column, channel % 8).
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

#define EXPORT __attribute__((visibility("default")))

static int has_bit(unsigned word, int bit) { return word >> bit & 1; }

/* Whether the processor has AVX2 and FMA, but neither VNNI nor AVX-512, which make ONNX Runtime faster. */
EXPORT int pixmatcher_lite_suits(void) {
    unsigned a = 0, b = 0, c = 0, d = 0, later = 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const int avx512 = has_bit(b, 16) || has_bit(c, 11);
    if (a >= 1) __get_cpuid_count(7, 1, &later, &b, &c, &d);
    return !avx512 && !has_bit(later, 4); /* AVX-VNNI */
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define LOOP _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define LOOP _Pragma("GCC unroll 1")
#endif
/* The compiler would add in another order, for which there are not enough registers. */
#define ADD_PRODUCTS(sum, from, weights)                                   \
    {                                                                      \
        __m256i products;                                                  \
        __asm__("vpmaddwd %[x], %[w], %[products]\n\t"                     \
                "vpaddd %[products], %[total], %[total]"                   \
                : [total] "+x"(sum), [products] "=&x"(products)            \
                : [x] "x"(from), [w] "x"(weights));                        \
    }

enum {
    PIXELS = 5,  /* neighbouring pixels of a tile of a 1x1 convolution */
    PANEL = 16,  /* output channels of a panel of weights; the last panel of a layer can have 8 */
    COLUMNS = 5, /* neighbouring results of a tile of a depthwise convolution, in one row or in two */
    STRIP = 128, /* pixels of the result of a block that are computed at a time, at least two rows */
    MAX_KERNEL = 5,
    MAX_GROUPS = 512, /* groups of 4 channels that a 1x1 convolution reads */
    SIDE = 260,
    FOLD = 4, /* pixels that the first layer reads as one, see tools/lite_visual.py */
    STEM_ROWS = 3,
    STEM_PLANES = STEM_ROWS * 2 * FOLD * 3 / 8,
    BORDER = 127, /* the value of a pixel outside the image */
    MARGIN = 64,  /* bytes that may be read and written after an array */
};

typedef struct { /* a 1x1 convolution */
    int32_t channels, results;
    const int8_t *weights;  /* (panel, group of 4 channels, result of the panel, 4), groups as `order` says */
    const uint16_t *order;  /* (panel, channels / 4): numbers of the groups; first those in pairs, one after the other */
    const uint16_t *paired; /* of each panel, the number of groups that are in pairs */
    const int32_t *bias;    /* includes the zero point of the input */
    const float *factors;   /* from sums to results */
    int32_t zero;          /* the zero point of the results */
} Pointwise;

typedef struct {
    int32_t channels, kernel, stride, before; /* padding at the top and on the left */
    /* (channel / 8, pair of rows, column, row of the results: 2 if the stride is 1, channel % 8, row of the pair) */
    const int16_t *weights;
    const int32_t *bias;
    const float *factors;
} Depthwise;

typedef struct {
    Pointwise expand; /* without results in the first block, which begins with the first layer of the network */
    Depthwise depthwise;
    Pointwise project;
    int32_t side, result_side;
    int32_t skips;                /* whether the input is added to the result */
    float skip_factors[2], shift; /* of the result, of the input; added to both */
    float scale;                  /* of the result in the end */
    int32_t zero;
    int32_t statistics; /* whether its channels are summarised */
} Block;

typedef struct {
    Pointwise stem, head;
    int32_t block_count, feature_side, classes;
    const Block *blocks;
    float feature_scale;
    const int8_t *class_weights; /* (feature, class) */
    const float *class_scales, *class_bias;
} Network;

/* ---- 1x1 convolutions ---- */

/* Find groups of 4 channels whose products can be added in 16 bits, two groups at a time: among the weights of each two
 * channels and the two that are added to them, those of the same sign add up to 128 at most. `weights` are those of a
 * panel (group, result, 4). Write the numbers of the groups to `order`, first the pairs, and return how many groups are
 * in pairs. */
EXPORT int pixmatcher_lite_pair(const int8_t *weights, int groups, int results, uint16_t *order) {
    enum { VECTORS = 2 * 2 * PANEL / 32, LIMIT = 128 }; /* for each pair of weights its positive and its negative sum */
    static _Thread_local uint8_t sums[MAX_GROUPS][32 * VECTORS];
    uint16_t heaviest_first[MAX_GROUPS];
    int largest[MAX_GROUPS], count = 0, paired = 0;
    if (groups > MAX_GROUPS || results > PANEL) return -1;
    memset(sums, 0, sizeof sums);
    for (int g = 0; g < groups; g++) {
        largest[g] = 0;
        for (int i = 0; i < 2 * results; i++) {
            const int a = weights[(size_t)g * results * 4 + 2 * i], b = weights[(size_t)g * results * 4 + 2 * i + 1];
            const int positive = (a > 0 ? a : 0) + (b > 0 ? b : 0), negative = a + b - positive;
            if (positive > LIMIT || -negative > LIMIT) return -1;
            sums[g][2 * i] = (uint8_t)positive;
            sums[g][2 * i + 1] = (uint8_t)-negative;
            if (positive > largest[g]) largest[g] = positive;
            if (-negative > largest[g]) largest[g] = -negative;
        }
    }
    for (int value = LIMIT; value >= 0; value--)
        for (int g = 0; g < groups; g++)
            if (largest[g] == value) heaviest_first[count++] = (uint16_t)g;
    int single = groups; /* singles are written from the end */
    const __m256i limit = _mm256_set1_epi8((char)LIMIT);
    for (int i = 0; i < groups; i++) {
        const int g = heaviest_first[i];
        if (largest[g] < 0) continue; /* in a pair already */
        int found = -1;
        for (int j = i + 1; j < groups && found < 0; j++) {
            const int other = heaviest_first[j];
            if (largest[other] < 0) continue;
            __m256i above = _mm256_setzero_si256();
            for (int v = 0; v < VECTORS; v++) {
                const __m256i sum = _mm256_adds_epu8(_mm256_loadu_si256((const __m256i *)sums[g] + v),
                                                     _mm256_loadu_si256((const __m256i *)sums[other] + v));
                above = _mm256_or_si256(above, _mm256_subs_epu8(sum, limit));
            }
            if (_mm256_testz_si256(above, above)) found = other;
        }
        if (found < 0) {
            order[--single] = (uint16_t)g;
        } else {
            order[paired++] = (uint16_t)g;
            order[paired++] = (uint16_t)found;
            largest[found] = -1;
        }
        largest[g] = -1;
    }
    return paired;
}

/* The sums times the factors, rounded to the nearest (even) integer. */
INLINE __m256i rounded(__m256i sums, __m256 factors) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums), factors));
}

/* Pack four vectors of 8 results into 32 bytes, and add the zero point; values below 0 or above 255 are clipped. */
INLINE __m256i packed(__m256i a, __m256i b, __m256i c, __m256i d, __m256i zero) {
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(a, b), zero);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(c, d), zero);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* Write one or two vectors, each for 5 neighbouring places; the second ones at a distance of `next` bytes. */
INLINE void store_five(const __m256i *sums, int vectors, const __m256 *factors, __m256i zero, uint8_t *result,
                       size_t next) {
    __m256i values[10];
    UNROLL for (int i = 0; i < 5 * vectors; i++) values[i] = rounded(sums[i], factors[i / 5]);
    UNROLL for (int v = 0; v < vectors; v++) {
        const __m256i *of = values + 5 * v;
        _mm256_storeu_si256((__m256i *)(result + v * next), packed(of[0], of[1], of[2], of[3], zero));
    }
    const __m256i *last = values + 5 * (vectors - 1);
    const __m128i fifths = _mm256_castsi256_si128(packed(values[4], last[4], values[4], last[4], zero));
    _mm_storel_epi64((__m128i *)(result + 32), fifths);
    if (vectors == 2) _mm_storeh_pd((double *)(result + next + 32), _mm_castsi128_pd(fifths));
}

INLINE __m256i broadcast(const uint8_t *four) {
    int32_t value;
    memcpy(&value, four, 4);
    return _mm256_set1_epi32(value);
}

/* Compute 8 * vectors results of PIXELS pixels. `places` are the distances of the groups of channels. */
INLINE void pointwise_tile(const uint8_t *input, const size_t *places, int groups, int paired, const int8_t *weights,
                           const int32_t *bias, const float *factors, int zero, uint8_t *result, size_t result_plane,
                           int vectors) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[2 * PIXELS], products, others;
    UNROLL for (int i = 0; i < vectors * PIXELS; i++)
        sums[i] = _mm256_loadu_si256((const __m256i *)(bias + i / PIXELS * 8));
    const __m256i *w = (const __m256i *)weights;
    int g = 0;
    for (; g < paired; g += 2) {
        const uint8_t *first = input + places[g], *second = input + places[g + 1];
        UNROLL for (int p = 0; p < PIXELS; p++) {
            const __m256i x = broadcast(first + 8 * p), y = broadcast(second + 8 * p);
            UNROLL for (int v = 0; v < vectors; v++)
                __asm__("vpmaddubsw %[w], %[x], %[products]\n\t"
                        "vpmaddubsw %[others_w], %[y], %[others]\n\t"
                        "vpaddw %[others], %[products], %[products]\n\t"
                        "vpmaddwd %[ones], %[products], %[products]\n\t"
                        "vpaddd %[products], %[sum], %[sum]"
                        : [sum] "+x"(sums[v * PIXELS + p]), [products] "=&x"(products), [others] "=&x"(others)
                        : [w] "m"(w[v]), [others_w] "m"(w[vectors + v]), [x] "x"(x), [y] "x"(y), [ones] "x"(ones));
        }
        w += 2 * vectors;
    }
    for (; g < groups; g++) {
        const uint8_t *first = input + places[g];
        UNROLL for (int p = 0; p < PIXELS; p++) {
            const __m256i x = broadcast(first + 8 * p);
            UNROLL for (int v = 0; v < vectors; v++)
                __asm__("vpmaddubsw %[w], %[x], %[products]\n\t"
                        "vpmaddwd %[ones], %[products], %[products]\n\t"
                        "vpaddd %[products], %[sum], %[sum]"
                        : [sum] "+x"(sums[v * PIXELS + p]), [products] "=&x"(products)
                        : [w] "m"(w[v]), [x] "x"(x), [ones] "x"(ones));
        }
        w += vectors;
    }
    const __m256 both[2] = {_mm256_loadu_ps(factors), _mm256_loadu_ps(factors + 8 * (vectors - 1))};
    store_five(sums, vectors, both, _mm256_set1_epi16((int16_t)zero), result, result_plane);
}

INLINE void pointwise_panel(const Pointwise *layer, int first, const uint8_t *input, const size_t *places, int pixels,
                            uint8_t *result, size_t result_plane, int vectors) {
    const int groups = layer->channels / 4, paired = layer->paired[first / PANEL];
    for (int p = 0;; p += PIXELS) {
        if (p > pixels - PIXELS) p = pixels - PIXELS; /* the last tile computes some results again */
        pointwise_tile(input + 8 * p, places, groups, paired, layer->weights + (size_t)first * layer->channels,
                       layer->bias + first, layer->factors + first, layer->zero, result + 8 * p, result_plane, vectors);
        if (p == pixels - PIXELS) break;
    }
}

/* Compute a 1x1 convolution of some pixels, at least PIXELS. */
static void pointwise(const Pointwise *layer, const uint8_t *input, size_t input_plane, int pixels, uint8_t *result,
                      size_t result_plane) {
    size_t places[MAX_GROUPS];
    const uint16_t *order = layer->order;
    for (int first = 0; first < layer->results; first += PANEL) {
        for (int g = 0; g < layer->channels / 4; g++, order++) places[g] = *order / 2 * input_plane + *order % 2 * 4;
        if (layer->results - first >= PANEL)
            pointwise_panel(layer, first, input, places, pixels, result, result_plane, 2);
        else
            pointwise_panel(layer, first, input, places, pixels, result, result_plane, 1);
        result += PANEL / 8 * result_plane;
    }
}

/* ---- Depthwise convolutions ---- */

static const uint8_t ZEROS[8 * SIDE + MARGIN]; /* a row outside the image */

/* Interleave two rows of 8 channels as 16-bit numbers: (column, channel, row). */
INLINE void pair_rows(const uint8_t *first, const uint8_t *second, int width, __m256i *pairs) {
    for (int x = 0; x < width; x += 2) {
        __m128i a = _mm_loadu_si128((const __m128i *)(first + 8 * x));
        __m128i b = _mm_loadu_si128((const __m128i *)(second + 8 * x));
        if (x + 1 == width) { /* the column after the last one is padding */
            a = _mm_move_epi64(a);
            b = _mm_move_epi64(b);
        }
        _mm256_store_si256(pairs + x, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)));
        _mm256_store_si256(pairs + x + 1, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)));
    }
}

/* Compute COLUMNS neighbouring results of 8 channels, in one row or in two rows. */
INLINE void depthwise_tile(const __m256i *pairs, int kernel, int stride, int columns, const __m256i *weights,
                           __m256i bias, __m256 factors, uint8_t *result, size_t result_row, int rows) {
    const int sets = stride == 1 ? 2 : 1;
    __m256i sums[2 * COLUMNS];
    UNROLL for (int i = 0; i < rows * COLUMNS; i++) sums[i] = bias;
    for (int k = 0; k < (kernel + 1) / 2; k++) {
        const __m256i *from = pairs + k * columns;
        LOOP for (int x = 0; x < kernel; x++) {
            const __m256i first = weights[0], second = weights[rows - 1];
            UNROLL for (int i = 0; i < COLUMNS; i++) {
                const __m256i pair = from[i * stride];
                ADD_PRODUCTS(sums[i], pair, first);
                if (rows == 2) ADD_PRODUCTS(sums[COLUMNS + i], pair, second);
            }
            weights += sets;
            from += 1;
        }
    }
    const __m256 both[2] = {factors, factors};
    store_five(sums, rows, both, _mm256_setzero_si256(), result, result_row);
}

INLINE void depthwise_rows_of(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                              __m256i *pairs, uint8_t *result, size_t result_plane, int width, int kernel, int stride,
                              int rows) {
    const int columns = (width - 1) * stride + kernel + 1, sets = stride == 1 ? 2 : 1;
    const __m256i *weights = (const __m256i *)layer->weights;
    for (int c = 0; c < layer->channels; c += 8) {
        UNROLL for (int k = 0; k < kernel; k += 2) {
            const size_t plane = c / 8 * input_plane;
            const uint8_t *first = inputs[k] ? inputs[k] + plane : ZEROS;
            const uint8_t *second = inputs[k + 1] ? inputs[k + 1] + plane : ZEROS;
            pair_rows(first, second, side, pairs + k / 2 * columns + layer->before);
        }
        const __m256i bias = _mm256_loadu_si256((const __m256i *)(layer->bias + c));
        const __m256 factors = _mm256_loadu_ps(layer->factors + c);
        for (int x = 0;; x += COLUMNS) {
            if (x > width - COLUMNS) x = width - COLUMNS; /* the last tile computes some results again */
            depthwise_tile(pairs + x * stride, kernel, stride, columns, weights, bias, factors, result + 8 * x,
                           (size_t)8 * width, rows);
            if (x == width - COLUMNS) break;
        }
        weights += (kernel + 1) / 2 * kernel * sets;
        result += result_plane;
    }
}

/* Compute one row of a depthwise convolution, or two if the stride is 1, from `kernel` + 1 rows of its input. A row
 * outside the input is NULL. */
static void depthwise_rows(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                           __m256i *pairs, uint8_t *result, size_t result_plane, int width, int rows) {
#define CASE(KERNEL, STRIDE, ROWS)                                                                                    \
    if (layer->kernel == KERNEL && layer->stride == STRIDE && rows == ROWS)                                           \
        depthwise_rows_of(layer, inputs, input_plane, side, pairs, result, result_plane, width, KERNEL, STRIDE, ROWS);
    CASE(3, 1, 2)
    CASE(3, 1, 1)
    CASE(3, 2, 1)
    CASE(5, 1, 2)
    CASE(5, 1, 1)
    CASE(5, 2, 1)
}

/* ---- Blocks ---- */

/* Add the input of a block to its result. */
static void add_skip(const Block *block, const uint8_t *input, uint8_t *result, int pixels) {
    const __m256 of_result = _mm256_set1_ps(block->skip_factors[0]), of_input = _mm256_set1_ps(block->skip_factors[1]);
    const __m256 shift = _mm256_set1_ps(block->shift);
    for (int i = 0; i < 8 * pixels; i += 8) {
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(result + i))));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(input + i))));
        const __m256i sum = _mm256_cvtps_epi32(_mm256_fmadd_ps(a, of_result, _mm256_fmadd_ps(b, of_input, shift)));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        _mm_storel_epi64((__m128i *)(result + i), _mm_packus_epi16(words, words));
    }
}

/* The memory that one image needs at a time. */
typedef struct {
    uint8_t *expanded; /* the rows of the input of a depthwise layer that a strip needs */
    uint8_t *filtered; /* the result of a depthwise layer, for a strip */
    uint8_t *maps[2];  /* the input and the result of a block */
    __m256i *pairs;
} Memory;

/* Compute a row of the result of the first layer; `work` is for its input and its result. */
static void stem_row(const Pointwise *stem, const uint8_t *image, int y, uint8_t *work, uint8_t *result,
                     size_t result_plane) {
    enum { PLACES = SIDE / FOLD, WIDTH = SIDE * 3, WINDOW = 2 * FOLD * 3 };
    uint8_t row[WIDTH + WINDOW], *folded = work + STEM_PLANES * PLACES * 8;
    memset(row + WIDTH, BORDER, WINDOW);
    for (int r = 0; r < STEM_ROWS; r++) {
        if (2 * y + r < SIDE)
            memcpy(row, image + (size_t)(2 * y + r) * WIDTH, WIDTH);
        else
            memset(row, BORDER, WIDTH);
        for (int plane = 0; plane < WINDOW / 8; plane++) {
            uint8_t *to = work + (r * WINDOW / 8 + plane) * PLACES * 8;
            for (int x = 0; x < PLACES; x++) memcpy(to + 8 * x, row + x * FOLD * 3 + 8 * plane, 8);
        }
    }
    pointwise(stem, work, PLACES * 8, PLACES, folded, PLACES * 8);
    const int planes = stem->results / 2 / 8; /* of each of the two neighbouring results */
    for (int plane = 0; plane < planes; plane++) {
        const uint8_t *left = folded + plane * PLACES * 8, *right = left + planes * PLACES * 8;
        for (int x = 0; x < PLACES; x++) {
            memcpy(result + 16 * x, left + 8 * x, 8);
            memcpy(result + 16 * x + 8, right + 8 * x, 8);
        }
        result += result_plane;
    }
}

/* The rows of the result of a block that are computed at a time. */
static int strip_rows(int width) { return STRIP / width > 2 ? STRIP / width / 2 * 2 : 2; }

/* Compute a block; the first one begins with the first layer, and its input is the image. */
static void run_block(const Network *network, const Block *block, const uint8_t *input, uint8_t *result, Memory *memory,
                      int is_first) {
    const Depthwise *depthwise = &block->depthwise;
    const int kernel = depthwise->kernel, stride = depthwise->stride, before = depthwise->before;
    const int side = block->side, width = block->result_side, strip = strip_rows(width);
    const int planes = depthwise->channels / 8, capacity = (strip - 1) * stride + kernel;
    const size_t row_bytes = (size_t)8 * side, expanded_plane = capacity * row_bytes;
    const size_t input_plane = side * row_bytes, result_plane = (size_t)8 * width * width;
    const size_t filtered_plane = (size_t)8 * strip * width;
    memset(memory->pairs, 0, (MAX_KERNEL + 1) / 2 * ((width - 1) * stride + kernel + 1) * sizeof(__m256i));
    int kept = 0, ready = 0; /* the first row and the row after the last one in `expanded` */
    for (int first = 0; first < width; first += strip) {
        const int last = first + strip < width ? first + strip : width;
        const int begin = first * stride - before > 0 ? first * stride - before : 0;
        const int end = (last - 1) * stride - before + kernel < side ? (last - 1) * stride - before + kernel : side;
        for (int plane = 0; plane < planes && begin > kept; plane++) {
            uint8_t *rows = memory->expanded + plane * expanded_plane;
            memmove(rows, rows + (begin - kept) * row_bytes, (ready - begin) * row_bytes);
        }
        kept = begin;
        if (is_first) {
            for (; ready < end; ready++)
                stem_row(&network->stem, input, ready, memory->filtered, memory->expanded + (ready - kept) * row_bytes,
                         expanded_plane);
        } else if (ready < end) {
            pointwise(&block->expand, input + ready * row_bytes, input_plane, (end - ready) * side,
                      memory->expanded + (ready - kept) * row_bytes, expanded_plane);
            ready = end;
        }
        for (int y = first, rows; y < last; y += rows) {
            rows = stride == 1 && y + 1 < last ? 2 : 1;
            const uint8_t *inputs[MAX_KERNEL + 1];
            for (int k = 0; k <= kernel; k++) {
                const int from = y * stride - before + k;
                inputs[k] = from < kept || from >= ready ? NULL : memory->expanded + (from - kept) * row_bytes;
            }
            depthwise_rows(depthwise, inputs, expanded_plane, side, memory->pairs,
                           memory->filtered + (size_t)8 * (y - first) * width, filtered_plane, width, rows);
        }
        const int pixels = (last - first) * width;
        const size_t done = (size_t)8 * first * width;
        pointwise(&block->project, memory->filtered, filtered_plane, pixels, result + done, result_plane);
        for (int plane = 0; plane < block->project.results / 8 && block->skips; plane++)
            add_skip(block, input + done + plane * result_plane, result + done + plane * result_plane, pixels);
    }
}

/* ---- Outputs ---- */

/* Write the mean and the standard deviation of each channel. */
static void summarise(const uint8_t *map, int pixels, int channels, float scale, int zero, float *result) {
    for (int c = 0; c < channels; c += 8, map += 8 * pixels) {
        __m256i sums = _mm256_setzero_si256(), squares = sums;
        for (int p = 0; p < pixels; p++) {
            const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(map + 8 * p)));
            sums = _mm256_add_epi32(sums, x);
            squares = _mm256_add_epi32(squares, _mm256_madd_epi16(x, x));
        }
        int32_t of_sums[8], of_squares[8];
        _mm256_storeu_si256((__m256i *)of_sums, sums);
        _mm256_storeu_si256((__m256i *)of_squares, squares);
        for (int i = 0; i < 8; i++) {
            const double mean = (double)of_sums[i] / pixels;
            const double variance = (double)of_squares[i] / pixels - mean * mean;
            result[c + i] = (float)(scale * (mean - zero));
            result[channels + c + i] = (float)(scale * sqrt(variance > 0 ? variance : 0));
        }
    }
}

/* Write the mean of each channel. */
static void pool(const uint8_t *map, int pixels, int channels, float scale, float *result) {
    for (int c = 0; c < channels; c += 8, map += 8 * pixels) {
        __m256i sums = _mm256_setzero_si256();
        for (int p = 0; p < pixels; p++)
            sums = _mm256_add_epi32(sums, _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(map + 8 * p))));
        _mm256_storeu_ps(result + c, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale / (float)pixels)));
    }
}

/* Write the products of the features and the weights of the classes, scaled, plus the bias, for all images at once. */
static void classify(const Network *network, int images, const float *features, float *logits) {
    const int classes = network->classes, count = network->head.results;
    memset(logits, 0, (size_t)images * classes * sizeof(float));
    for (int f = 0; f < count; f += 8) {
        const int8_t *weights = network->class_weights + (size_t)f * classes;
        for (int image = 0; image < images; image++) {
            float *sums = logits + (size_t)image * classes;
            const float *of_image = features + (size_t)image * count + f;
            for (int c = 0; c < classes; c += 8) {
                __m256 sum = _mm256_loadu_ps(sums + c);
                UNROLL for (int i = 0; i < 8; i++) {
                    const __m128i eight = _mm_loadl_epi64((const __m128i *)(weights + (size_t)i * classes + c));
                    const __m256 w = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
                    sum = _mm256_fmadd_ps(w, _mm256_broadcast_ss(of_image + i), sum);
                }
                _mm256_storeu_ps(sums + c, sum);
            }
        }
    }
    for (int c = 0; c < classes; c += 8) {
        const __m256 scales = _mm256_loadu_ps(network->class_scales + c), bias = _mm256_loadu_ps(network->class_bias + c);
        for (int image = 0; image < images; image++) {
            float *sums = logits + (size_t)image * classes + c;
            _mm256_storeu_ps(sums, _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(sums), scales), bias));
        }
    }
}

static void *aligned(size_t bytes) {
    void *memory = NULL;
    return posix_memalign(&memory, 64, bytes + MARGIN) ? NULL : memory;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

/* Compute the outputs of images (count, 260, 260, 3): features, logits and statistics, one row each for an image.
 * Returns 0 if there is not enough memory. */
EXPORT int pixmatcher_lite_run(const Network *network, const uint8_t *pixels, int count, float *features, float *logits,
                               float *statistics) {
    const int last_pixels = network->feature_side * network->feature_side;
    size_t of_expanded = 0, of_filtered = SIDE / FOLD * (STEM_PLANES * 8 + network->stem.results), of_pairs = 0;
    size_t of_map = (size_t)last_pixels * network->head.results;
    for (int b = 0; b < network->block_count; b++) {
        const Block *block = network->blocks + b;
        const Depthwise *depthwise = &block->depthwise;
        const size_t width = block->result_side, strip = strip_rows(block->result_side);
        const size_t rows = (strip - 1) * depthwise->stride + depthwise->kernel;
        of_expanded = larger(of_expanded, rows * block->side * depthwise->channels);
        of_filtered = larger(of_filtered, strip * width * depthwise->channels);
        of_map = larger(of_map, width * width * block->project.results);
        of_pairs = larger(of_pairs, (MAX_KERNEL + 1) / 2 * ((width - 1) * depthwise->stride + depthwise->kernel + 1));
    }
    Memory memory = {aligned(of_expanded), aligned(of_filtered), {aligned(of_map), aligned(of_map)},
                     aligned(of_pairs * sizeof(__m256i))};
    const int ready = memory.expanded && memory.filtered && memory.maps[0] && memory.maps[1] && memory.pairs;
    for (int image = 0; ready && image < count; image++) {
        const uint8_t *input = pixels + (size_t)image * SIDE * SIDE * 3;
        for (int b = 0; b < network->block_count; b++) {
            const Block *block = network->blocks + b;
            uint8_t *result = memory.maps[b % 2];
            run_block(network, block, input, result, &memory, b == 0);
            if (block->statistics) {
                const int channels = block->project.results, count_of = block->result_side * block->result_side;
                summarise(result, count_of, channels, block->scale, block->zero, statistics);
                statistics += 2 * channels;
            }
            input = result;
        }
        uint8_t *last = memory.maps[network->block_count % 2];
        const size_t plane = (size_t)8 * last_pixels;
        pointwise(&network->head, input, plane, last_pixels, last, plane);
        pool(last, last_pixels, network->head.results, network->feature_scale,
             features + (size_t)image * network->head.results);
    }
    if (ready) classify(network, count, features, logits);
    free(memory.expanded);
    free(memory.filtered);
    free(memory.maps[0]);
    free(memory.maps[1]);
    free(memory.pairs);
    return ready;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
