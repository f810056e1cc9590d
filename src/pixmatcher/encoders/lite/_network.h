/* The image network of `lite`, for vectors of `LANES` numbers of 32 bits.
 *
 * It computes the same integers as ONNX Runtime from the same weights, in less time:
 * - a block (expand, depthwise, project) is computed a few rows at a time, so that what is between its layers stays in
 *   the cache of the core;
 * - a depthwise layer multiplies several rows at a time;
 * - each layer rounds its results to 8 bits as soon as they are computed.
 *
 * `_network_avx2.c` and `_network_avx512.c` include this file, after they define
 *     Vector   the type of a vector,
 *     LANES    the numbers of 32 bits in it,
 *     ROWS     the rows that a depthwise layer multiplies at a time,
 * and they define the two functions that are only declared here. All weights are arranged in `_network.py`, and are
 * trusted. Activations are bytes in planes of `LANES` channels: (channel / LANES, row, column, channel % LANES).
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define LOOP _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#define LOOP _Pragma("GCC unroll 1")
#endif
#define PADDED(channels) (((channels) + LANES - 1) / LANES * LANES)
/* Vectors of `ROWS` rows that a result in one row or in two rows is computed from. */
#define SETS(kernel) (((kernel) + ROWS) / ROWS)
#define TOGETHER_COLUMNS(width, stride, kernel) (((width)-1) * (stride) + (kernel) + 1)

enum {
    STRIP = 132, /* pixels of the result of a block that are computed at a time, at least two rows */
    MAX_KERNEL = 5,
    SIDE = 260,
    FOLD = 4, /* pixels that the first layer reads as one, see tools/lite_visual.py */
    STEM_ROWS = 3,
    STEM_CHANNELS = STEM_ROWS * 2 * FOLD * 3,
    BORDER = 127, /* the value of a pixel outside the image */
    MARGIN = 64,  /* bytes that may be read and written after an array */
};

typedef struct { /* a 1x1 convolution */
    int32_t channels, results;
    const int8_t *weights; /* (panel of 16 results, group of 4 channels, result of the panel, 4) */
    /* `_network_avx2.c` alone reads these two. */
    const uint16_t *order;  /* (panel, channels / 4): numbers of the groups; first those in pairs */
    const uint16_t *paired; /* of each panel, the number of groups that are in pairs */

    const int32_t *bias;    /* includes the zero point of the input */
    const float *factors;   /* from sums to results */
    int32_t zero;           /* the zero point of the results */
} Pointwise;

typedef struct {
    int32_t channels, kernel, stride, before; /* padding at the top and on the left */
    /* (channel / LANES, set of rows, column, row of the results, channel % LANES, row of the set); there are two rows
     * of results if the stride is 1 */
    const void *weights;
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

/* Compute a 1x1 convolution of some pixels, at least PIXELS. */
static void pointwise(const Pointwise *layer, const uint8_t *input, size_t input_plane, int pixels, uint8_t *result,
                      size_t result_plane);

/* Compute one row of a depthwise convolution, or two if the stride is 1, from `SETS` * `ROWS` rows of its input. A row
 * outside the input is NULL. `together` is memory for these rows, with zeros in the columns outside the input. */
static void depthwise_rows(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                           Vector *together, uint8_t *result, size_t result_plane, int width, int rows);

static const uint8_t ZEROS[LANES * SIDE + MARGIN]; /* a row outside the image */

/* ---- Blocks ---- */

/* Add the input of a block to its result. */
static void add_skip(const Block *block, const uint8_t *input, uint8_t *result, int pixels) {
    const __m256 of_result = _mm256_set1_ps(block->skip_factors[0]), of_input = _mm256_set1_ps(block->skip_factors[1]);
    const __m256 shift = _mm256_set1_ps(block->shift);
    for (int i = 0; i < LANES * pixels; i += 8) {
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
    Vector *together;  /* rows of the input of a depthwise layer, `ROWS` of them in each number */
} Memory;

/* Compute a row of the result of the first layer; `work` is for its input and its result. */
static void stem_row(const Pointwise *stem, const uint8_t *image, int y, uint8_t *work, uint8_t *result,
                     size_t result_plane) {
    enum { PLACES = SIDE / FOLD, WIDTH = SIDE * 3, WINDOW = STEM_CHANNELS / STEM_ROWS };
    const size_t plane_bytes = (size_t)PLACES * LANES;
    uint8_t row[WIDTH + WINDOW], *folded = work + PADDED(STEM_CHANNELS) * PLACES;
    memset(row + WIDTH, BORDER, WINDOW);
    for (int r = 0; r < STEM_ROWS; r++) {
        if (2 * y + r < SIDE)
            memcpy(row, image + (size_t)(2 * y + r) * WIDTH, WIDTH);
        else
            memset(row, BORDER, WIDTH);
        for (int i = 0; i < WINDOW; i += 8) {
            const int channel = r * WINDOW + i;
            uint8_t *to = work + channel / LANES * plane_bytes + channel % LANES;
            for (int x = 0; x < PLACES; x++) memcpy(to + LANES * x, row + x * FOLD * 3 + i, 8);
        }
    }
    pointwise(stem, work, plane_bytes, PLACES, folded, plane_bytes);
    const int planes = stem->results / 2 / LANES; /* of each of the two neighbouring results */
    for (int plane = 0; plane < planes; plane++) {
        const uint8_t *left = folded + plane * plane_bytes, *right = left + planes * plane_bytes;
        for (int x = 0; x < PLACES; x++) {
            memcpy(result + 2 * LANES * x, left + LANES * x, LANES);
            memcpy(result + 2 * LANES * x + LANES, right + LANES * x, LANES);
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
    const int planes = depthwise->channels / LANES, capacity = (strip - 1) * stride + kernel;
    const size_t row_bytes = (size_t)LANES * side, expanded_plane = capacity * row_bytes;
    const size_t input_plane = side * row_bytes, result_plane = (size_t)LANES * width * width;
    const size_t filtered_plane = (size_t)LANES * strip * width;
    memset(memory->together, 0, SETS(kernel) * TOGETHER_COLUMNS(width, stride, kernel) * sizeof(Vector));
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
            const uint8_t *inputs[SETS(MAX_KERNEL) * ROWS];
            for (int k = 0; k < SETS(kernel) * ROWS; k++) {
                const int from = y * stride - before + k;
                inputs[k] = from < kept || from >= ready ? NULL : memory->expanded + (from - kept) * row_bytes;
            }
            depthwise_rows(depthwise, inputs, expanded_plane, side, memory->together,
                           memory->filtered + (size_t)LANES * (y - first) * width, filtered_plane, width, rows);
        }
        const int pixels = (last - first) * width;
        const size_t done = (size_t)LANES * first * width;
        pointwise(&block->project, memory->filtered, filtered_plane, pixels, result + done, result_plane);
        for (int plane = 0; plane < PADDED(block->project.results) / LANES && block->skips; plane++)
            add_skip(block, input + done + plane * result_plane, result + done + plane * result_plane, pixels);
    }
}

/* ---- Outputs ---- */

/* Write the mean and the standard deviation of each channel. */
static void summarise(const uint8_t *map, int pixels, int channels, float scale, int zero, float *result) {
    for (int c = 0; c < channels; c += 8) {
        const uint8_t *of_eight = map + (size_t)c / LANES * LANES * pixels + c % LANES;
        __m256i sums = _mm256_setzero_si256(), squares = sums;
        for (int p = 0; p < pixels; p++) {
            const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(of_eight + LANES * p)));
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
    for (int c = 0; c < channels; c += 8) {
        const uint8_t *of_eight = map + (size_t)c / LANES * LANES * pixels + c % LANES;
        __m256i sums = _mm256_setzero_si256();
        for (int p = 0; p < pixels; p++) {
            const __m128i eight = _mm_loadl_epi64((const __m128i *)(of_eight + LANES * p));
            sums = _mm256_add_epi32(sums, _mm256_cvtepu8_epi32(eight));
        }
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
        const __m256 scales = _mm256_loadu_ps(network->class_scales + c);
        const __m256 bias = _mm256_loadu_ps(network->class_bias + c);
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
    size_t of_expanded = 0, of_filtered = SIDE / FOLD * (PADDED(STEM_CHANNELS) + network->stem.results);
    size_t of_map = (size_t)last_pixels * network->head.results, of_together = 0;
    for (int b = 0; b < network->block_count; b++) {
        const Block *block = network->blocks + b;
        const Depthwise *depthwise = &block->depthwise;
        const size_t width = block->result_side, strip = strip_rows(block->result_side);
        const size_t rows = (strip - 1) * depthwise->stride + depthwise->kernel;
        of_expanded = larger(of_expanded, rows * block->side * depthwise->channels);
        of_filtered = larger(of_filtered, strip * width * depthwise->channels);
        of_map = larger(of_map, width * width * PADDED(block->project.results));
        const int kernel = depthwise->kernel;
        of_together = larger(of_together, SETS(kernel) * TOGETHER_COLUMNS(width, depthwise->stride, kernel));
    }
    Memory memory = {aligned(of_expanded), aligned(of_filtered), {aligned(of_map), aligned(of_map)},
                     aligned((of_together + ROWS) * sizeof(Vector))};
    const int ready = memory.expanded && memory.filtered && memory.maps[0] && memory.maps[1] && memory.together;
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
        const size_t plane = (size_t)LANES * last_pixels;
        pointwise(&network->head, input, plane, last_pixels, last, plane);
        pool(last, last_pixels, network->head.results, network->feature_scale,
             features + (size_t)image * network->head.results);
    }
    if (ready) classify(network, count, features, logits);
    free(memory.expanded);
    free(memory.filtered);
    free(memory.maps[0]);
    free(memory.maps[1]);
    free(memory.together);
    return ready;
}
