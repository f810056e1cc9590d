/* The image network of `lite` for x86 processors that have AVX2, with or without its instructions for neural networks
 * (AVX-VNNI; `_network_avxvnni.c` defines AVX_VNNI and includes this file).
 *
 * With AVX2, a depthwise layer multiplies 16-bit numbers by pairs of rows (VPMADDWD). In 1x1 convolutions VPMADDUBSW
 * adds two products in 16 bits. It does not saturate: two neighbouring weights of the same sign add up to 128 at most,
 * which `pixmatcher_lite_pair` checks. With AVX-VNNI, VPDPBUSD adds four products in 32 bits: of 4 channels or 4 rows.
 */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

#define EXPORT __attribute__((visibility("default")))

static int has_bit(unsigned word, int bit) { return word >> bit & 1; }

/* Whether the processor has these instructions, and none that make ONNX Runtime faster or with which it was not
 * compared: for AVX2, neither VNNI nor AVX-512; for AVX-VNNI, no AMX. `_network.py` asks for AVX-512 first. */
EXPORT int pixmatcher_lite_suits(void) {
    unsigned a = 0, b = 0, c = 0, d = 0, later = 0;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const int avx512 = has_bit(b, 16) || has_bit(c, 11), amx = has_bit(d, 25);
    if (a >= 1) __get_cpuid_count(7, 1, &later, &b, &c, &d);
    const int avx_vnni = has_bit(later, 4);
    if (amx) return 0;
#if defined(AVX_VNNI)
    (void)avx512;
    return avx_vnni;
#else
    return !avx_vnni && !avx512;
#endif
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define Vector __m256i
#define LANES 8
#if defined(AVX_VNNI)
#define ROWS 4
#else
#define ROWS 2
#endif
#include "_network.h"

/* The compiler would add in another order, for which there are not enough registers. */
#if defined(AVX_VNNI)
#if defined(EVEX) /* the same with the encoding of AVX-512, for tests on processors that have only that */
#define VEX ""
#else
#define VEX "%{vex%} "
#endif
#define ADD_BYTES(sum, from, weights) \
    __asm__(VEX "vpdpbusd %[w], %[x], %[total]" : [total] "+x"(sum) : [x] "x"(from), [w] "x"(weights));
#define ADD_PRODUCTS ADD_BYTES /* of a depthwise layer */
#else
#define ADD_PRODUCTS(sum, from, weights)                                   \
    {                                                                      \
        __m256i products;                                                  \
        __asm__("vpmaddwd %[x], %[w], %[products]\n\t"                     \
                "vpaddd %[products], %[total], %[total]"                   \
                : [total] "+x"(sum), [products] "=&x"(products)            \
                : [x] "x"(from), [w] "x"(weights));                        \
    }
#define ADD_BYTES(sum, from, weights)                                                               \
    {                                                                                               \
        __m256i products;                                                                           \
        __asm__("vpmaddubsw %[w], %[x], %[products]\n\t"                                            \
                "vpmaddwd %[ones], %[products], %[products]\n\t"                                    \
                "vpaddd %[products], %[total], %[total]"                                            \
                : [total] "+x"(sum), [products] "=&x"(products)                                     \
                : [w] "m"(weights), [x] "x"(from), [ones] "x"(ones));                               \
    }
#endif

enum {
    PIXELS = 5,  /* neighbouring pixels of a tile of a 1x1 convolution */
    PANEL = 16,  /* output channels of a panel of weights; the last panel of a layer can have 8 */
    COLUMNS = 5, /* neighbouring results of a tile of a depthwise convolution, in one row or in two */
    MAX_GROUPS = 512, /* groups of 4 channels that a 1x1 convolution reads */
};

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
    __m256i sums[2 * PIXELS];
    UNROLL for (int i = 0; i < vectors * PIXELS; i++)
        sums[i] = _mm256_loadu_si256((const __m256i *)(bias + i / PIXELS * 8));
    const __m256i *w = (const __m256i *)weights;
    int g = 0;
#if !defined(AVX_VNNI)
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i products, others;
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
#else
    (void)paired;
#endif
    for (; g < groups; g++) {
        const uint8_t *first = input + places[g];
        UNROLL for (int p = 0; p < PIXELS; p++) {
            const __m256i x = broadcast(first + 8 * p);
            UNROLL for (int v = 0; v < vectors; v++) ADD_BYTES(sums[v * PIXELS + p], x, w[v]);
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

/* Interleave two columns of `ROWS` rows of 8 channels: (column, channel, row). */
INLINE void interleave(const __m128i *rows, Vector *together) {
    const __m128i a = _mm_unpacklo_epi8(rows[0], rows[1]), b = _mm_unpackhi_epi8(rows[0], rows[1]);
#if defined(AVX_VNNI)
    const __m128i c = _mm_unpacklo_epi8(rows[2], rows[3]), d = _mm_unpackhi_epi8(rows[2], rows[3]);
    together[0] = _mm256_set_m128i(_mm_unpackhi_epi16(a, c), _mm_unpacklo_epi16(a, c));
    together[1] = _mm256_set_m128i(_mm_unpackhi_epi16(b, d), _mm_unpacklo_epi16(b, d));
#else
    together[0] = _mm256_cvtepu8_epi16(a);
    together[1] = _mm256_cvtepu8_epi16(b);
#endif
}

/* Interleave rows of a plane; a column of zeros follows if there is an odd number of them. */
INLINE void interleave_rows(const uint8_t *const *inputs, size_t plane, int width, Vector *together) {
    for (int x = 0; x < width; x += 2) {
        __m128i rows[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            const __m128i row = _mm_loadu_si128((const __m128i *)((inputs[r] ? inputs[r] + plane : ZEROS) + 8 * x));
            rows[r] = x + 1 == width ? _mm_move_epi64(row) : row;
        }
        interleave(rows, together + x);
    }
}

/* Compute COLUMNS neighbouring results of 8 channels, in one row or in two rows. */
INLINE void depthwise_tile(const Vector *together, int kernel, int stride, int columns, const __m256i *weights,
                           __m256i bias, __m256 factors, uint8_t *result, size_t result_row, int rows) {
    __m256i sums[2 * COLUMNS];
    UNROLL for (int i = 0; i < rows * COLUMNS; i++) sums[i] = bias;
    for (int set = 0; set < SETS(kernel); set++) {
        const __m256i *from = together + set * columns;
        LOOP for (int x = 0; x < kernel; x++) {
            const __m256i first = weights[0], second = weights[rows - 1];
            UNROLL for (int i = 0; i < COLUMNS; i++) {
                const __m256i values = from[i * stride];
                ADD_PRODUCTS(sums[i], values, first);
                if (rows == 2) ADD_PRODUCTS(sums[COLUMNS + i], values, second);
            }
            weights += stride == 1 ? 2 : 1;
            from += 1;
        }
    }
    const __m256 both[2] = {factors, factors};
    store_five(sums, rows, both, _mm256_setzero_si256(), result, result_row);
}

INLINE void depthwise_rows_of(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                              Vector *together, uint8_t *result, size_t result_plane, int width, int kernel, int stride,
                              int rows) {
    const int columns = TOGETHER_COLUMNS(width, stride, kernel);
    const __m256i *weights = (const __m256i *)layer->weights;
    for (int c = 0; c < layer->channels; c += 8) {
        UNROLL for (int set = 0; set < SETS(kernel); set++)
            interleave_rows(inputs + set * ROWS, c / 8 * input_plane, side, together + set * columns + layer->before);
        const __m256i bias = _mm256_loadu_si256((const __m256i *)(layer->bias + c));
        const __m256 factors = _mm256_loadu_ps(layer->factors + c);
        for (int x = 0;; x += COLUMNS) {
            if (x > width - COLUMNS) x = width - COLUMNS; /* the last tile computes some results again */
            depthwise_tile(together + x * stride, kernel, stride, columns, weights, bias, factors, result + 8 * x,
                           (size_t)8 * width, rows);
            if (x == width - COLUMNS) break;
        }
        weights += SETS(kernel) * kernel * (stride == 1 ? 2 : 1);
        result += result_plane;
    }
}

static void depthwise_rows(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                           Vector *together, uint8_t *result, size_t result_plane, int width, int rows) {
#define CASE(KERNEL, STRIDE, OF)                                                                                     \
    if (layer->kernel == KERNEL && layer->stride == STRIDE && rows == OF)                                            \
        depthwise_rows_of(layer, inputs, input_plane, side, together, result, result_plane, width, KERNEL, STRIDE, OF);
    CASE(3, 1, 2)
    CASE(3, 1, 1)
    CASE(3, 2, 1)
    CASE(5, 1, 2)
    CASE(5, 1, 1)
    CASE(5, 2, 1)
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
