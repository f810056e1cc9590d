/* The image network of `lite` for x86 processors that have AVX2 and no instructions for neural networks (VNNI).
 *
 * It computes the same integers as ONNX Runtime from the same weights, in less time:
 * - a block (expand, depthwise, project) is computed a few rows at a time, so that what is between its layers stays in
 *   the cache of the core;
 * - a depthwise layer multiplies 16-bit numbers by pairs of rows (VPMADDWD);
 * - each layer rounds its results to 8 bits as soon as they are computed.
 *
 * In 1x1 convolutions VPMADDUBSW adds two products in 16 bits. It does not saturate: two neighbouring weights of the same
 * sign add up to 128 at most, which `_network.py` checks. All arrays are made there, and are trusted. An activation is
 * an array (row, column, channel) of bytes.
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
#define UNROLL _Pragma("GCC unroll 16")
#define LOOP _Pragma("GCC unroll 1")
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
    ROWS = 4,     /* pixels that a tile of a 1x1 convolution has */
    PANEL = 24,   /* output channels of a panel of weights; the last ones of a layer can have 8 or 16 */
    COLUMNS = 5,  /* neighbouring results of a tile of a depthwise convolution, for 8 channels of one or two rows */
    STRIP = 128,  /* pixels of the result of a block that are computed at a time, at least two rows */
    MAX_KERNEL = 5,
    FOLD = 4, /* pixels that the first layer reads as one, see tools/lite_visual.py */
    STEM_BYTES = 3 * 2 * FOLD * 3,
    SIDE = 260,
    MARGIN = 64, /* bytes that may be read after an array */
};

typedef struct { /* a 1x1 convolution */
    int32_t channels, results;
    const int8_t *weights; /* (panel, channel / 4, result of the panel, 4) */
    const int32_t *bias;   /* includes the zero point of the input */
    const float *factors;  /* from sums to results */
    int32_t zero;          /* the zero point of the results */
} Pointwise;

typedef struct {
    int32_t channels, kernel, stride, before; /* padding at the top and on the left */
    /* (channel / 8, pair of rows, column, row of the results: 2 if the stride is 1, channel, row of the pair) */
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

/* Write 8 * vectors bytes: the sums times the factors, rounded to the nearest (even), plus the zero point, 0 to 255. */
INLINE void store_results(const __m256i *sums, const __m256 *factors, __m256i zero, int vectors, uint8_t *result) {
    __m256i values[3];
    UNROLL for (int v = 0; v < vectors; v++)
        values[v] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[v]), factors[v]));
    __m256i low = _mm256_packs_epi32(values[0], values[vectors > 1]);
    low = _mm256_adds_epi16(low, zero);
    __m256i high = low;
    if (vectors == 3) high = _mm256_adds_epi16(_mm256_packs_epi32(values[2], values[2]), zero);
    __m256i bytes = _mm256_packus_epi16(low, high);
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (vectors == 1) {
        _mm_storel_epi64((__m128i *)result, _mm256_castsi256_si128(bytes));
    } else {
        _mm_storeu_si128((__m128i *)result, _mm256_castsi256_si128(bytes));
        if (vectors == 3) _mm_storel_epi64((__m128i *)(result + 16), _mm256_extracti128_si256(bytes, 1));
    }
}

/* Compute 8 * vectors results of some pixels. */
INLINE void pointwise_tile(const uint8_t *input, int channels, const int8_t *weights, const int32_t *bias,
                           const float *factors, int zero, uint8_t *const *results, int offset, int rows, int vectors) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[ROWS * 3];
    UNROLL for (int v = 0; v < vectors; v++) {
        const __m256i start = _mm256_loadu_si256((const __m256i *)(bias + 8 * v));
        UNROLL for (int r = 0; r < rows; r++) sums[r * vectors + v] = start;
    }
    for (int c = 0; c < channels; c += 4) {
        const __m256i *w = (const __m256i *)weights;
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, input + (size_t)r * channels + c, 4);
            const __m256i x = _mm256_set1_epi32(four);
            UNROLL for (int v = 0; v < vectors; v++) {
                __m256i products;
                /* As the compiler would arrange these, there would not be enough registers. */
                __asm__("vpmaddubsw %[w], %[x], %[products]\n\t"
                        "vpmaddwd %[ones], %[products], %[products]\n\t"
                        "vpaddd %[products], %[sum], %[sum]"
                        : [sum] "+x"(sums[r * vectors + v]), [products] "=&x"(products)
                        : [w] "m"(w[v]), [x] "x"(x), [ones] "x"(ones));
            }
        }
        weights += 32 * vectors;
    }
    __m256 f[3];
    UNROLL for (int v = 0; v < vectors; v++) f[v] = _mm256_loadu_ps(factors + 8 * v);
    const __m256i zeros = _mm256_set1_epi16((int16_t)zero);
    UNROLL for (int r = 0; r < rows; r++) store_results(sums + r * vectors, f, zeros, vectors, results[r] + offset);
}

/* Compute a 1x1 convolution of pixels that are one after the other; each result goes to a place of its own. */
static void pointwise(const Pointwise *layer, const uint8_t *input, int pixels, uint8_t *const *results) {
    const int channels = layer->channels;
    int left;
    for (int first = 0; first < layer->results; first += PANEL) {
        const int8_t *weights = layer->weights + (size_t)first * channels;
        const int32_t *bias = layer->bias + first;
        const float *factors = layer->factors + first;
        left = layer->results - first;
#define TILES(VECTORS)                                                                                              \
    {                                                                                                               \
        int p = 0;                                                                                                  \
        for (; p + ROWS <= pixels; p += ROWS)                                                                       \
            pointwise_tile(input + (size_t)p * channels, channels, weights, bias, factors, layer->zero, results + p, \
                           first, ROWS, VECTORS);                                                                   \
        for (; p < pixels; p++)                                                                                     \
            pointwise_tile(input + (size_t)p * channels, channels, weights, bias, factors, layer->zero, results + p, \
                           first, 1, VECTORS);                                                                      \
    }
        if (left >= PANEL)
            TILES(3)
        else if (left == 16)
            TILES(2)
        else
            TILES(1)
    }
}

/* ---- Depthwise convolutions ---- */

/* Interleave 16 channels of the rows in pairs, as 16-bit numbers: (pair, column, channel, row of the pair). */
INLINE void pair_rows(const uint8_t *const *rows, int kernel, int columns, int channels, int first, __m256i *pairs) {
    for (int x = 0; x < columns; x++) {
        const size_t place = (size_t)x * channels + first;
        UNROLL for (int k = 0; k < kernel; k += 2) {
            const __m128i a = _mm_loadu_si128((const __m128i *)(rows[k] + place));
            const __m128i b = _mm_loadu_si128((const __m128i *)(rows[k + 1] + place));
            __m256i *to = pairs + 2 * ((k / 2) * columns + x);
            _mm256_store_si256(to, _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b)));
            _mm256_store_si256(to + 1, _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b)));
        }
    }
}

/* Compute COLUMNS neighbouring results of 8 channels, in one row or in two rows. */
INLINE void depthwise_tile(const __m256i *pairs, int kernel, int stride, int columns, const __m256i *weights,
                           __m256i bias, __m256 factors, uint8_t *const *results, size_t place, int channels, int rows) {
    const int sets = stride == 1 ? 2 : 1;
    __m256i sums[2 * COLUMNS];
    UNROLL for (int i = 0; i < rows * COLUMNS; i++) sums[i] = bias;
    for (int k = 0; k < (kernel + 1) / 2; k++) {
        const __m256i *from = pairs + 2 * k * columns;
        LOOP for (int x = 0; x < kernel; x++) {
            const __m256i first = weights[0], second = weights[rows - 1];
            UNROLL for (int i = 0; i < COLUMNS; i++) {
                const __m256i pair = from[2 * i * stride];
                ADD_PRODUCTS(sums[i], pair, first);
                if (rows == 2) ADD_PRODUCTS(sums[COLUMNS + i], pair, second);
            }
            weights += sets;
            from += 2;
        }
    }
    UNROLL for (int i = 0; i < COLUMNS; i++) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), factors));
        __m256i b = a;
        if (rows == 2) b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[COLUMNS + i]), factors));
        __m256i bytes = _mm256_packs_epi32(a, b);
        bytes = _mm256_packus_epi16(bytes, bytes);
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
        const __m128i both = _mm256_castsi256_si128(bytes);
        _mm_storel_epi64((__m128i *)(results[0] + place), both);
        if (rows == 2) _mm_storeh_pd((double *)(results[1] + place), _mm_castsi128_pd(both));
        place += channels;
    }
}

INLINE void depthwise_rows_of(const Depthwise *layer, const uint8_t *const *inputs, int width, __m256i *pairs,
                              uint8_t *const *results, int kernel, int stride, int rows) {
    const int columns = (width - 1) * stride + kernel, channels = layer->channels;
    const int weights_of_eight = (kernel + 1) / 2 * kernel * (stride == 1 ? 2 : 1);
    const __m256i *weights = (const __m256i *)layer->weights;
    for (int c = 0; c < channels; c += 8) {
        if (c % 16 == 0) pair_rows(inputs, kernel, columns, channels, c, pairs);
        const __m256i bias = _mm256_loadu_si256((const __m256i *)(layer->bias + c));
        const __m256 factors = _mm256_loadu_ps(layer->factors + c);
        for (int x = 0;; x += COLUMNS) {
            if (x > width - COLUMNS) x = width - COLUMNS; /* the last tile computes some results again */
            depthwise_tile(pairs + 2 * x * stride + c / 8 % 2, kernel, stride, columns, weights, bias, factors, results,
                           (size_t)x * channels + c, channels, rows);
            if (x == width - COLUMNS) break;
        }
        weights += weights_of_eight;
    }
}

/* Compute one row of a depthwise convolution, or two if the stride is 1, from `kernel` + 1 rows of its padded input. */
static void depthwise_rows(const Depthwise *layer, const uint8_t *const *inputs, int width, __m256i *pairs,
                           uint8_t *const *results, int rows) {
#define CASE(KERNEL, STRIDE, ROWS)                                             \
    if (layer->kernel == KERNEL && layer->stride == STRIDE && rows == ROWS) \
        depthwise_rows_of(layer, inputs, width, pairs, results, KERNEL, STRIDE, ROWS);
    CASE(3, 1, 2)
    CASE(3, 1, 1)
    CASE(3, 2, 1)
    CASE(5, 1, 2)
    CASE(5, 1, 1)
    CASE(5, 2, 1)
}

/* ---- Blocks ---- */

/* Add the input of a block to its result: 8 bytes of each at a time. */
static void add_skip(const Block *block, const uint8_t *input, uint8_t *result, size_t count) {
    const __m256 of_result = _mm256_set1_ps(block->skip_factors[0]), of_input = _mm256_set1_ps(block->skip_factors[1]);
    const __m256 shift = _mm256_set1_ps(block->shift);
    for (size_t i = 0; i < count; i += 8) {
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(result + i))));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(input + i))));
        const __m256 sum = _mm256_fmadd_ps(a, of_result, _mm256_fmadd_ps(b, of_input, shift));
        const __m256i whole = _mm256_cvtps_epi32(sum);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(result + i), _mm_packus_epi16(words, words));
    }
}

/* The memory that one image needs at a time. */
typedef struct {
    uint8_t *expanded; /* the last rows of the input of a depthwise layer, padded; row y is at y % capacity */
    uint8_t *filtered; /* the result of a depthwise layer, for a strip */
    uint8_t *maps[2];  /* the input and the result of a block */
    uint8_t *padding;  /* a row outside of an image */
    __m256i *pairs;
    uint8_t **results;
} Memory;

/* Compute a row of the first layer into the row `y` (0 to 129) of its result. */
static void stem_row(const Pointwise *stem, const uint8_t *pixels, int y, uint8_t *patches, uint8_t **results) {
    enum { WIDTH = SIDE * 3, PLACES = SIDE / FOLD, BYTES = STEM_BYTES / 3, BORDER = 127 };
    uint8_t rows[3][WIDTH + BYTES];
    for (int r = 0; r < 3; r++) {
        memset(rows[r] + WIDTH, BORDER, BYTES);
        if (2 * y + r < SIDE)
            memcpy(rows[r], pixels + (size_t)(2 * y + r) * WIDTH, WIDTH);
        else
            memset(rows[r], BORDER, WIDTH);
        for (int x = 0; x < PLACES; x++) memcpy(patches + x * STEM_BYTES + r * BYTES, rows[r] + x * FOLD * 3, BYTES);
    }
    pointwise(stem, patches, PLACES, results);
}

/* The rows of the result of a block that are computed at a time. */
static int strip_rows(int width) { return STRIP / width > 2 ? STRIP / width / 2 * 2 : 2; }

static void run_block(const Network *network, const Block *block, const uint8_t *input, uint8_t *result, Memory *memory,
                      int of_pixels) {
    const Depthwise *depthwise = &block->depthwise;
    const int channels = depthwise->channels, kernel = depthwise->kernel, stride = depthwise->stride;
    const int side = block->side, result_side = block->result_side, before = depthwise->before;
    const int strip = strip_rows(result_side), capacity = (strip - 1) * stride + kernel;
    const int width = (result_side - 1) * stride + kernel; /* of a padded row */
    const size_t row_bytes = (size_t)width * channels;
    const int results = block->project.results;
    memset(memory->expanded, 0, capacity * row_bytes);
    int expanded = 0; /* rows that are expanded so far */
    for (int first = 0; first < result_side; first += strip) {
        const int last = first + strip < result_side ? first + strip : result_side;
        int needed = (last - 1) * stride - before + kernel;
        if (needed > side) needed = side;
        if (of_pixels) {
            for (; expanded < needed; expanded++) {
                uint8_t *row = memory->expanded + (expanded % capacity) * row_bytes + before * channels;
                for (int x = 0; x < SIDE / FOLD; x++) memory->results[x] = row + (size_t)x * 2 * channels;
                stem_row(&network->stem, input, expanded, memory->filtered, memory->results);
            }
        } else if (expanded < needed) {
            int count = 0;
            for (int y = expanded; y < needed; y++) {
                uint8_t *row = memory->expanded + (y % capacity) * row_bytes + before * channels;
                for (int x = 0; x < side; x++) memory->results[count++] = row + (size_t)x * channels;
            }
            pointwise(&block->expand, input + (size_t)expanded * side * block->expand.channels, count, memory->results);
            expanded = needed;
        }
        for (int y = first, rows; y < last; y += rows) {
            rows = stride == 1 && y + 1 < last ? 2 : 1;
            const uint8_t *inputs[MAX_KERNEL + 1];
            for (int k = 0; k <= kernel; k++) {
                const int from = y * stride - before + k;
                const int outside = from < 0 || from >= needed; /* needed: the last one can have weights of 0 only */
                inputs[k] = outside ? memory->padding : memory->expanded + (from % capacity) * row_bytes;
            }
            uint8_t *row = memory->filtered + (size_t)(y - first) * result_side * channels;
            uint8_t *const filtered[2] = {row, row + (size_t)result_side * channels};
            depthwise_rows(depthwise, inputs, result_side, memory->pairs, filtered, rows);
        }
        const int count = (last - first) * result_side;
        const size_t done = (size_t)first * result_side * results;
        for (int p = 0; p < count; p++) memory->results[p] = result + done + (size_t)p * results;
        pointwise(&block->project, memory->filtered, count, memory->results);
        if (block->skips) add_skip(block, input + done, result + done, (size_t)count * results);
    }
}

/* ---- Outputs ---- */

/* Write the mean and the standard deviation of each channel. */
static void summarise(const uint8_t *values, int pixels, int channels, float scale, int zero, float *result) {
    for (int c = 0; c < channels; c += 8) {
        __m256i sums = _mm256_setzero_si256(), squares = sums;
        for (int p = 0; p < pixels; p++) {
            const __m128i eight = _mm_loadl_epi64((const __m128i *)(values + (size_t)p * channels + c));
            const __m256i x = _mm256_cvtepu8_epi32(eight);
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
static void pool(const uint8_t *values, int pixels, int channels, float scale, float *result) {
    for (int c = 0; c < channels; c += 8) {
        __m256i sums = _mm256_setzero_si256();
        for (int p = 0; p < pixels; p++) {
            const __m128i eight = _mm_loadl_epi64((const __m128i *)(values + (size_t)p * channels + c));
            sums = _mm256_add_epi32(sums, _mm256_cvtepu8_epi32(eight));
        }
        _mm256_storeu_ps(result + c, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale / (float)pixels)));
    }
}

/* Write the product of the features and the weights of the classes, scaled, plus the bias. */
static void classify(const Network *network, const float *features, float *logits) {
    const int classes = network->classes;
    memset(logits, 0, classes * sizeof(float));
    for (int f = 0; f < network->head.results; f += 8) {
        const int8_t *weights = network->class_weights + (size_t)f * classes;
        for (int c = 0; c < classes; c += 8) {
            __m256 sum = _mm256_loadu_ps(logits + c);
            UNROLL for (int i = 0; i < 8; i++) {
                const __m128i eight = _mm_loadl_epi64((const __m128i *)(weights + (size_t)i * classes + c));
                const __m256 w = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
                sum = _mm256_fmadd_ps(w, _mm256_broadcast_ss(features + f + i), sum);
            }
            _mm256_storeu_ps(logits + c, sum);
        }
    }
    for (int c = 0; c < classes; c += 8) {
        const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(logits + c), _mm256_loadu_ps(network->class_scales + c));
        _mm256_storeu_ps(logits + c, _mm256_add_ps(scaled, _mm256_loadu_ps(network->class_bias + c)));
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
    size_t of_rows = 0, of_strip = (size_t)SIDE / FOLD * STEM_BYTES, of_map = 0, of_row = 0, of_pairs = 0, of_results = 0;
    for (int b = 0; b < network->block_count; b++) {
        const Block *block = network->blocks + b;
        const size_t side = block->result_side, strip = strip_rows(block->result_side);
        const size_t width = (side - 1) * block->depthwise.stride + block->depthwise.kernel;
        const size_t rows = (strip - 1) * block->depthwise.stride + block->depthwise.kernel;
        of_row = larger(of_row, width * block->depthwise.channels);
        of_rows = larger(of_rows, rows * width * block->depthwise.channels);
        of_strip = larger(of_strip, strip * side * block->depthwise.channels);
        of_map = larger(of_map, side * side * block->project.results);
        of_pairs = larger(of_pairs, (MAX_KERNEL + 1) / 2 * width * 2);
        of_results = larger(of_results, larger(side * strip, rows * block->side));
    }
    const size_t last_pixels = (size_t)network->feature_side * network->feature_side;
    of_results = larger(of_results, last_pixels);
    of_map = larger(of_map, last_pixels * network->head.results);
    Memory memory = {aligned(of_rows),         aligned(of_strip),
                     {aligned(of_map), aligned(of_map)}, aligned(of_row),
                     aligned(of_pairs * sizeof(__m256i)), aligned(of_results * sizeof(uint8_t *))};
    const int ready = memory.expanded && memory.filtered && memory.maps[0] && memory.maps[1] && memory.padding &&
                      memory.pairs && memory.results;
    if (ready) memset(memory.padding, 0, of_row);
    for (int image = 0; ready && image < count; image++) {
        const uint8_t *input = pixels + (size_t)image * SIDE * SIDE * 3;
        int next = 0;
        for (int b = 0; b < network->block_count; b++) {
            const Block *block = network->blocks + b;
            uint8_t *result = memory.maps[next];
            run_block(network, block, input, result, &memory, b == 0);
            if (block->statistics) {
                const int channels = block->project.results;
                summarise(result, block->result_side * block->result_side, channels, block->scale, block->zero, statistics);
                statistics += 2 * channels;
            }
            input = result;
            next = 1 - next;
        }
        const int results = network->head.results;
        for (size_t p = 0; p < last_pixels; p++) memory.results[p] = memory.maps[next] + p * results;
        pointwise(&network->head, input, (int)last_pixels, memory.results);
        pool(memory.maps[next], (int)last_pixels, results, network->feature_scale, features);
        classify(network, features, logits);
        features += results;
        logits += network->classes;
    }
    free(memory.expanded);
    free(memory.filtered);
    free(memory.maps[0]);
    free(memory.maps[1]);
    free(memory.padding);
    free(memory.pairs);
    free(memory.results);
    return ready;
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
