/* The image network of `lite` for x86 processors that have AVX-512 and its instructions for neural networks (VNNI).
 *
 * VPDPBUSD multiplies groups of 4 bytes and adds the products to 32-bit sums: of 4 channels in a 1x1 convolution, of 4
 * rows in a depthwise one.
 */

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include <cpuid.h>

#define EXPORT __attribute__((visibility("default")))

/* Whether the processor has what this code needs, but not AMX, with which ONNX Runtime was not compared. */
EXPORT int pixmatcher_lite_suits(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    const int has_all = __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
    return has_all && __get_cpuid_count(7, 0, &a, &b, &c, &d) && !(d >> 25 & 1); /* AMX for 8-bit integers */
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vnni")
#endif

#define Vector __m512i
#define LANES 16
#define ROWS 4
#include "_network.h"

enum {
    PIXELS = 12, /* neighbouring pixels of a tile of a 1x1 convolution */
    MAX_COLUMNS = 13, /* neighbouring results of a tile of a depthwise convolution, in one row or in two */
};

INLINE Vector load(const void *address) { return _mm512_loadu_si512(address); }

/* Add to each sum the products of 4 unsigned and 4 signed bytes. */
INLINE void add_products(Vector *sum, Vector values, Vector weights) {
    __asm__("vpdpbusd %[w], %[x], %[sum]" : [sum] "+v"(*sum) : [x] "v"(values), [w] "v"(weights));
}

/* The sums times the factors, rounded to the nearest (even) integer. */
INLINE Vector rounded(Vector sums, __m512 factors) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_cvtepi32_ps(sums), factors));
}

/* Write the results of `count` neighbouring places (at least 4), in one row or in several at a distance of `next`
 * bytes. The zero point is added, if there is one; values below 0 or above 255 are clipped. */
INLINE void store(const Vector *sums, int count, int rows, __m512 factors, const Vector *zero, uint8_t *result,
                  size_t next) {
    const Vector places = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    UNROLL for (int first = 0; first < rows * count; first += 4) {
        Vector four[4];
        UNROLL for (int i = 0; i < 4; i++)
            four[i] = first + i < rows * count ? rounded(sums[first + i], factors) : four[i - 1];
        Vector low = _mm512_packs_epi32(four[0], four[1]), high = _mm512_packs_epi32(four[2], four[3]);
        if (zero) {
            low = _mm512_adds_epi16(low, *zero);
            high = _mm512_adds_epi16(high, *zero);
        }
        const Vector bytes = _mm512_permutexvar_epi32(places, _mm512_packus_epi16(low, high));
        uint8_t *to = result + first / count * next + first % count * LANES;
        if (first % count + 4 <= count) {
            _mm512_storeu_si512(to, bytes);
        } else { /* to the end of one row, and to the beginning of the next one */
            const int here = count - first % count;
            _mm512_mask_storeu_epi32(to, (__mmask16)((1 << 4 * here) - 1), bytes);
            if (first + here < rows * count)
                _mm512_mask_storeu_epi32(result + (first / count + 1) * next - here * LANES,
                                         (__mmask16)(0xffff << 4 * here), bytes);
        }
    }
}

/* ---- 1x1 convolutions ---- */

/* Add the products of a group of 4 channels. */
INLINE void add_group(Vector *sums, const uint8_t *input, const int8_t *weights, size_t panel_bytes, int panels) {
    Vector w[2];
    UNROLL for (int v = 0; v < panels; v++) w[v] = load(weights + v * panel_bytes);
    UNROLL for (int p = 0; p < PIXELS; p++) {
        int32_t four;
        memcpy(&four, input + LANES * p, 4);
        const Vector x = _mm512_set1_epi32(four);
        UNROLL for (int v = 0; v < panels; v++) add_products(sums + v * PIXELS + p, x, w[v]);
    }
}

/* Compute the results of one or two panels for PIXELS pixels. */
INLINE void pointwise_tile(const Pointwise *layer, int first, const uint8_t *input, size_t input_plane, uint8_t *result,
                           size_t result_plane, int panels) {
    const size_t panel_bytes = (size_t)LANES * layer->channels;
    const int8_t *weights = layer->weights + (size_t)first * layer->channels;
    Vector sums[2 * PIXELS];
    UNROLL for (int i = 0; i < panels * PIXELS; i++) sums[i] = load(layer->bias + first + i / PIXELS * LANES);
    int c = 0;
    for (; c + LANES <= layer->channels; c += LANES) {
        LOOP for (int i = 0; i < LANES; i += 4) {
            add_group(sums, input + i, weights, panel_bytes, panels);
            weights += 4 * LANES;
        }
        input += input_plane;
    }
    for (; c < layer->channels; c += 4) {
        add_group(sums, input, weights, panel_bytes, panels);
        weights += 4 * LANES;
        input += 4;
    }
    const Vector zero = _mm512_set1_epi16((int16_t)layer->zero);
    UNROLL for (int v = 0; v < panels; v++)
        store(sums + v * PIXELS, PIXELS, 1, _mm512_loadu_ps(layer->factors + first + v * LANES), &zero,
              result + v * result_plane, 0);
}

INLINE void pointwise_panels(const Pointwise *layer, int first, const uint8_t *input, size_t input_plane, int pixels,
                             uint8_t *result, size_t result_plane, int panels) {
    for (int p = 0;; p += PIXELS) {
        if (p > pixels - PIXELS) p = pixels - PIXELS; /* the last tile computes some results again */
        pointwise_tile(layer, first, input + LANES * p, input_plane, result + LANES * p, result_plane, panels);
        if (p == pixels - PIXELS) break;
    }
}

static void pointwise(const Pointwise *layer, const uint8_t *input, size_t input_plane, int pixels, uint8_t *result,
                      size_t result_plane) {
    int first = 0;
    for (; first + LANES < layer->results; first += 2 * LANES) {
        pointwise_panels(layer, first, input, input_plane, pixels, result, result_plane, 2);
        result += 2 * result_plane;
    }
    if (first < layer->results) pointwise_panels(layer, first, input, input_plane, pixels, result, result_plane, 1);
}

/* ---- Depthwise convolutions ---- */

/* Interleave four rows of 16 channels: (column, channel, row). Up to three columns of zeros follow. */
INLINE void interleave(const uint8_t *const *rows, size_t plane, int width, Vector *together) {
    for (int x = 0; x < width; x += 4) {
        const int most = width - x < 4 ? width - x : 4;
        Vector row[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++)
            row[r] = _mm512_maskz_loadu_epi32((__mmask16)((1 << 4 * most) - 1),
                                              (rows[r] ? rows[r] + plane : ZEROS) + LANES * x);
        const Vector a = _mm512_unpacklo_epi8(row[0], row[1]), b = _mm512_unpackhi_epi8(row[0], row[1]);
        const Vector c = _mm512_unpacklo_epi8(row[2], row[3]), d = _mm512_unpackhi_epi8(row[2], row[3]);
        /* Of 4 columns, the channels 0 to 3, 4 to 7, 8 to 11 and 12 to 15. */
        const Vector e = _mm512_unpacklo_epi16(a, c), f = _mm512_unpackhi_epi16(a, c);
        const Vector g = _mm512_unpacklo_epi16(b, d), h = _mm512_unpackhi_epi16(b, d);
        const Vector i = _mm512_shuffle_i32x4(e, f, 0x44), j = _mm512_shuffle_i32x4(g, h, 0x44);
        const Vector k = _mm512_shuffle_i32x4(e, f, 0xee), l = _mm512_shuffle_i32x4(g, h, 0xee);
        together[x] = _mm512_shuffle_i32x4(i, j, 0x88);
        together[x + 1] = _mm512_shuffle_i32x4(i, j, 0xdd);
        together[x + 2] = _mm512_shuffle_i32x4(k, l, 0x88);
        together[x + 3] = _mm512_shuffle_i32x4(k, l, 0xdd);
    }
}

/* Compute `count` neighbouring results of 16 channels, in one row or in two rows. */
INLINE void depthwise_tile(const Vector *together, int kernel, int stride, int columns, const Vector *weights,
                           Vector bias, __m512 factors, uint8_t *result, size_t result_row, int rows, int count) {
    Vector sums[2 * MAX_COLUMNS];
    UNROLL for (int i = 0; i < rows * count; i++) sums[i] = bias;
    for (int set = 0; set < SETS(kernel); set++) {
        const Vector *from = together + set * columns;
        LOOP for (int x = 0; x < kernel; x++) {
            const Vector first = weights[0], second = weights[rows - 1];
            UNROLL for (int i = 0; i < count; i++) {
                const Vector four = from[i * stride];
                add_products(sums + i, four, first);
                if (rows == 2) add_products(sums + count + i, four, second);
            }
            weights += stride == 1 ? 2 : 1;
            from += 1;
        }
    }
    store(sums, count, rows, factors, NULL, result, result_row);
}

INLINE void depthwise_rows_of(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                              Vector *together, uint8_t *result, size_t result_plane, int width, int kernel, int stride,
                              int rows, int count) {
    const int columns = TOGETHER_COLUMNS(width, stride, kernel);
    const Vector *weights = layer->weights;
    for (int c = 0; c < layer->channels; c += LANES) {
        UNROLL for (int set = 0; set < SETS(kernel); set++)
            interleave(inputs + set * ROWS, c / LANES * input_plane, side, together + set * columns + layer->before);
        const Vector bias = load(layer->bias + c);
        const __m512 factors = _mm512_loadu_ps(layer->factors + c);
        for (int x = 0;; x += count) {
            if (x > width - count) x = width - count; /* the last tile computes some results again */
            depthwise_tile(together + x * stride, kernel, stride, columns, weights, bias, factors, result + LANES * x,
                           (size_t)LANES * width, rows, count);
            if (x == width - count) break;
        }
        weights += SETS(kernel) * kernel * (stride == 1 ? 2 : 1);
        result += result_plane;
    }
}

static void depthwise_rows(const Depthwise *layer, const uint8_t *const *inputs, size_t input_plane, int side,
                           Vector *together, uint8_t *result, size_t result_plane, int width, int rows) {
    /* The most columns with which the last tile computes few results again: maps are 130, 65, 33, 17 and 9 wide. */
    const int most = width % 13 == 0 ? 13 : width % 11 == 0 ? 11 : 9;
#define TILE(KERNEL, STRIDE, OF, COUNT)                                                                        \
    if (layer->kernel == KERNEL && layer->stride == STRIDE && rows == OF && most == COUNT)                         \
        depthwise_rows_of(layer, inputs, input_plane, side, together, result, result_plane, width, KERNEL, STRIDE, \
                          OF, COUNT);
#define CASE(KERNEL, STRIDE, OF) \
    TILE(KERNEL, STRIDE, OF, 13) \
    TILE(KERNEL, STRIDE, OF, 11) \
    TILE(KERNEL, STRIDE, OF, 9)
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
